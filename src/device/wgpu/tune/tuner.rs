//! The search on the GPU: a bounded time, what reads most first.

use super::search::{Found, search};
use super::{Entry, ManyRows, OfModel, Setting, Subject, Trial, Tuning};
use crate::device::wgpu::Shared;
use crate::device::wgpu::lower::{Dispatch, Probe};
use crate::device::wgpu::select::Choice;
use crate::device::wgpu::timestamps;
use crate::error::Result;
use crate::kernels::teams::{FewRows, Of, Teams};
use crate::kv_cache::KvLayout;
use crate::plan::{Extent, Plan};
use std::collections::{BTreeSet, HashMap, hash_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions of the caches that attention is measured with.
pub(super) const CAPACITY: usize = 2048;
/// Positions in front of the row that products are measured with.
const POSITION: usize = 127;
/// Doublings and halvings between the rule's teams and others that are tried.
const MOST_DISTANCE: u32 = 2;
/// Of a subject: as many layers that follow each other do not come from a cache, where their weights are large.
const MOST_DISPATCHES: usize = 24;
/// Dispatches of one measurement run for about this long.
const RUN_MICROS: f64 = 1000.0;
/// Uses of all that is measured in one measurement.
const MOST_USES: f64 = 64.0;
/// The GPU works for as long before anything counts: an idle one has a slow clock.
const WARM_UP: Duration = Duration::from_millis(30);

/// Measures what a plan asks for and `tuning` has no entry of (or whatever it has, with `again`) until the time is up.
///
/// `plan` has no 8-bit activations. Where `may_float`, those that sessions round to 8-bit integers by rule may stay as
/// they are.
///
/// # Errors
/// Those of the device.
pub(super) fn measure(
    shared: &Shared,
    plan: &Plan,
    kv: &KvLayout,
    tuning: &mut Tuning,
    options: &Options,
) -> Result<OfModel> {
    let kv = KvLayout {
        capacity: kv.capacity.min(CAPACITY),
        ..kv.clone()
    };
    let mut tuner = Tuner {
        shared,
        kv: &kv,
        has_clock: timestamps::clock(&shared.context).is_ok(),
        options,
        tuning,
        made: BTreeSet::new(),
        is_warm: false,
    };
    let int8_rows = shared.rounding.int8_rows;
    let with_int8 = plan
        .clone()
        .with_int8_activations(shared.weights.source(), int8_rows);
    tuner.run(plan, &with_int8)
}

/// Of [`measure`].
pub(super) struct Options {
    pub(super) deadline: Instant,
    pub(super) again: bool,
    pub(super) may_float: bool,
}

pub(super) struct Tuner<'a> {
    pub(super) shared: &'a Shared,
    pub(super) kv: &'a KvLayout,
    has_clock: bool,
    pub(super) options: &'a Options,
    pub(super) tuning: &'a mut Tuning,
    /// The entries that were made now.
    made: BTreeSet<String>,
    is_warm: bool,
}

/// The batch that something is measured in.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) n_rows: usize,
    pub(super) n_visible: usize,
}

impl Tuner<'_> {
    fn run(&mut self, plan: &Plan, with_int8: &Plan) -> Result<OfModel> {
        let mut model = OfModel::default();
        let choice = self.choice(Tuning::default());
        let probe = Probe::new(self.shared, with_int8, self.kv, &choice)?;
        let subjects = ranked(&probe.subjects(&choice), self.kv);
        let (few, many): (Vec<_>, Vec<_>) = subjects
            .into_iter()
            .partition(|subject| !matches!(subject, Subject::ManyRows(_)));
        for subject in few {
            self.measure(&probe, &subject, &mut model)?;
        }
        if self.options.may_float && self.shared.rounding.int8_rows > 0 {
            model.int8 = self.int8_or_float(plan, &probe, &mut model)?;
        }
        for (_, n_rows) in ManyRows::RANGES {
            for subject in &many {
                if let Subject::ManyRows(product) = subject
                    && n_rows <= with_int8.max_rows
                {
                    let product = ManyRows { n_rows, ..*product };
                    self.measure(&probe, &Subject::ManyRows(product), &mut model)?;
                }
            }
        }
        Ok(model)
    }

    pub(super) fn choice(&self, tuning: Tuning) -> Choice {
        let Shared {
            context, rounding, ..
        } = self.shared;
        Choice::new(context, *rounding, self.kv.ty).tuned(Arc::new(tuning))
    }

    /// The choice where one subject has a setting.
    fn choice_with(&self, subject: &Subject, setting: Setting) -> Choice {
        self.choice(self.tuning.with(subject, setting))
    }

    /// Notes the entry of a subject, made now unless it is there.
    pub(super) fn measure(
        &mut self,
        probe: &Probe<'_>,
        subject: &Subject,
        model: &mut OfModel,
    ) -> Result<()> {
        let name = subject.to_string();
        let entry = self.tuning.entries.get(&name);
        let is_known = entry.is_some_and(|entry| entry.is_complete);
        if !self.made.contains(&name) && (self.options.again || !is_known) {
            let deadline = self.share();
            let entry = match subject {
                Subject::FewRows(product) => self.teams(probe, product, deadline)?,
                Subject::ManyRows(product) => self.tile(probe, product, deadline)?,
                Subject::Attention(..) => self.splits(probe, subject, deadline)?,
            };
            self.tuning.entries.insert(name.clone(), entry);
            self.made.insert(name.clone());
        }
        model.subjects.push(name);
        Ok(())
    }

    /// When a subject's time is up: no subject takes more than half of what is left.
    fn share(&self) -> Instant {
        let now = Instant::now();
        now + self.options.deadline.saturating_duration_since(now) / 2
    }

    fn teams(&mut self, probe: &Probe<'_>, product: &FewRows, deadline: Instant) -> Result<Entry> {
        let rule = product.rule();
        // What is near to the rule first: there may be no time for the others.
        let distance = |teams: &Teams| {
            let steps = |a: u32, b: u32| a.ilog2().abs_diff(b.ilog2());
            steps(teams.size, rule.size)
                + steps(teams.workgroup, rule.workgroup)
                + steps(teams.pairs, rule.pairs)
        };
        let mut others = product.candidates();
        others.retain(|teams| distance(teams) <= MOST_DISTANCE);
        others.sort_by_key(distance);
        let others: Vec<_> = others.into_iter().map(Setting::Teams).collect();
        let rows = self.one_row();
        let subject = Subject::FewRows(*product);
        let rule = Setting::Teams(rule);
        self.search(probe, [&subject, &subject], rule, &others, rows, deadline)
    }

    fn tile(&mut self, probe: &Probe<'_>, product: &ManyRows, deadline: Instant) -> Result<Entry> {
        let &ManyRows {
            weight,
            n_out,
            units_per_row,
            n_rows,
        } = product;
        let choice = self.choice(Tuning::default());
        let by_rule = choice.tiles(weight, n_out, units_per_row);
        let rule = by_rule.iter().find(|(rows, _)| rows.covers(n_rows));
        let all = choice.every_tile(units_per_row);
        let setting = |tile: &crate::kernels::matmul_coop::Tile| Setting::Tile(tile.shape());
        let rule = rule.map(|(_, tile)| tile).or(all.first());
        let rule = rule.map_or(Setting::Tile([0; 5]), setting);
        let others: Vec<_> = all.iter().map(setting).collect();
        let in_plan = ManyRows {
            n_rows: 0,
            ..*product
        };
        let subjects = [Subject::ManyRows(*product), Subject::ManyRows(in_plan)];
        let rows = Rows {
            n_rows,
            n_visible: n_rows,
        };
        self.search(probe, subjects.each_ref(), rule, &others, rows, deadline)
    }

    pub(super) fn one_row(&self) -> Rows {
        Rows {
            n_rows: 1,
            n_visible: (POSITION + 1).min(self.kv.capacity),
        }
    }

    /// Searches among settings of the first subject, by the dispatches that are the second's.
    pub(super) fn search(
        &mut self,
        probe: &Probe<'_>,
        [subject, in_plan]: [&Subject; 2],
        rule: Setting,
        others: &[Setting],
        rows: Rows,
        deadline: Instant,
    ) -> Result<Entry> {
        let mut wanted: Vec<Setting> = others.iter().filter(|&&s| s != rule).copied().collect();
        wanted.insert(0, rule);
        let mut n_compiled = 0;
        let mut prepared: HashMap<usize, (Vec<Dispatch>, usize)> = HashMap::new();
        let found = search(rule, others, |setting| {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let Some(place) = wanted.iter().position(|wanted| *wanted == setting) else {
                return Ok(None);
            };
            if place >= n_compiled {
                let end = (place + rayon::current_num_threads().max(2)).min(wanted.len());
                let choices = wanted[place..end].iter();
                let choices: Vec<_> = choices.map(|s| self.choice_with(subject, *s)).collect();
                probe.compile(&choices, in_plan)?;
                n_compiled = end;
            }
            if let hash_map::Entry::Vacant(vacant) = prepared.entry(place) {
                let choice = self.choice_with(subject, setting);
                let all = probe.dispatches(&choice, Some(in_plan), MOST_DISPATCHES)?;
                let once = self.time(probe, &all, rows, 1)? * MOST_DISPATCHES as f64;
                let n_uses = (RUN_MICROS / once.max(1e-3)).clamp(1.0, MOST_USES) as usize;
                self.warm_up(probe, &all, rows, n_uses)?;
                vacant.insert((all, n_uses));
            }
            let (dispatches, n_uses) = &prepared[&place];
            self.time(probe, dispatches, rows, *n_uses).map(Some)
        })?;
        let Found {
            chosen,
            trials,
            is_complete,
        } = found;
        let trial = |(setting, micros)| Trial {
            setting,
            nanoseconds: nanoseconds(micros),
        };
        Ok(Entry {
            rule,
            chosen,
            trials: trials.into_iter().map(trial).collect(),
            is_complete,
        })
    }

    fn warm_up(
        &mut self,
        probe: &Probe<'_>,
        dispatches: &[Dispatch],
        rows: Rows,
        n_uses: usize,
    ) -> Result<()> {
        let started = Instant::now();
        while !self.is_warm && started.elapsed() < WARM_UP {
            self.time(probe, dispatches, rows, n_uses)?;
        }
        self.is_warm = true;
        Ok(())
    }

    /// Microseconds of one step of the dispatches that a batch needs: the mean of so many uses one behind the other.
    pub(super) fn time(
        &self,
        probe: &Probe<'_>,
        dispatches: &[Dispatch],
        rows: Rows,
        n_uses: usize,
    ) -> Result<f64> {
        let (time, n_steps) = self.time_all(probe, dispatches, rows, n_uses)?;
        Ok(time / n_steps.max(1) as f64)
    }

    /// Microseconds of one use of all of them, and how many steps that is: as many as the dispatches stand for, which
    /// fusion makes fewer of.
    pub(super) fn time_all(
        &self,
        probe: &Probe<'_>,
        dispatches: &[Dispatch],
        Rows { n_rows, n_visible }: Rows,
        n_uses: usize,
    ) -> Result<(f64, usize)> {
        let mut needed: Vec<timestamps::Sized<'_>> = Vec::new();
        let mut steps = BTreeSet::new();
        for dispatch in dispatches {
            if dispatch.rows.covers(n_rows) && dispatch.visible.contains(&n_visible) {
                let n_rows = match dispatch.extent {
                    Extent::Tokens | Extent::Outputs => n_rows,
                    Extent::Chosen(n) => n_rows * n,
                };
                needed.push((dispatch, (dispatch.grid)(n_rows)));
                steps.insert(dispatch.step);
            }
        }
        let n = n_uses * needed.len();
        let all: Vec<_> = needed.into_iter().cycle().take(n).collect();
        probe.set_batch(n_rows, n_visible - n_rows)?;
        let context = &self.shared.context;
        let time = match self.has_clock {
            true => timestamps::time_all(context, &all)?,
            false => timestamps::time_by_host(context, &all)?,
        };
        let micros = time.as_secs_f64() * 1e6 / n_uses.max(1) as f64;
        Ok((micros, steps.len()))
    }
}

pub(super) fn nanoseconds(micros: f64) -> u64 {
    (micros * 1e3) as u64
}

pub(super) fn unmeasured(rule: Setting) -> Entry {
    Entry {
        rule,
        chosen: rule,
        trials: Vec::new(),
        is_complete: true,
    }
}

/// Every subject once, what reads the most bytes of a token first.
pub(super) fn ranked(subjects: &[Subject], kv: &KvLayout) -> Vec<Subject> {
    let bytes = |subject: &Subject| match subject {
        Subject::FewRows(product) => {
            let n_matrices = if product.of == Of::Gated { 2 } else { 1 };
            let row_bytes = product.weight.row_bytes(product.units_per_row * 32);
            n_matrices * product.n_out * row_bytes
        }
        Subject::ManyRows(product) => {
            product.n_out * product.weight.row_bytes(product.units_per_row * 32)
        }
        Subject::Attention(heads, ty) => {
            2 * heads.n_head_kv * heads.head_dim * ty.bytes() * kv.capacity
        }
    };
    let mut sums: Vec<(Subject, usize)> = Vec::new();
    for subject in subjects {
        match sums.iter_mut().find(|(known, _)| known == subject) {
            Some((_, sum)) => *sum += bytes(subject),
            None => sums.push((*subject, bytes(subject))),
        }
    }
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    sums.into_iter().map(|(subject, _)| subject).collect()
}
