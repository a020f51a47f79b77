//! Each kind of step that a model has, by itself, on values made for it.
//!
//! The parts of the plan that are alike but for their layer are tried once: on the device's own weights, with the
//! very kernels that run them in a session, of one row, of few and of many.

use super::depth::Depth;
use super::divergence::{Divergence, Input, Phase};
use super::judge::{Agreed, Judge, Verified};
use crate::device::{Executor, Observation};
use crate::error::Result;
use crate::kernels;
use crate::plan::{Batch, BufferId, EmbedIndex, Op, Outputs, Plan};
use crate::sampler::random::SplitMix64;
use std::collections::BTreeSet;
use std::ops::Range;

/// Positions of the first row: none before it, some, and so many that attention may go another way.
const POSITIONS: [usize; 3] = [0, 61, 1567];
/// Positions that the cache of a check has, where the model's has as many.
pub(super) const CAPACITY: usize = 1640;
/// More rows than this take long on the reference: they are tried on random values alone.
const MANY_ROWS: usize = 67;

/// More rows than this take too long for a quick check to try them on more than random values behind some others.
const QUICK_ROWS: usize = 5;

/// What the kernels came to.
#[derive(Debug, Default)]
pub(super) struct KernelReport {
    /// Kinds of parts, each number of rows counted by itself.
    pub(super) n_kinds: usize,
    /// Inputs that they were tried on.
    pub(super) n_inputs: usize,
    /// Numbers of rows that do not fit the context.
    left_out: Vec<usize>,
    pub(super) agreed: Agreed,
    pub(super) divergence: Option<Divergence>,
}

impl std::fmt::Display for KernelReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KernelReport {
            n_kinds,
            n_inputs,
            agreed,
            left_out,
            ..
        } = self;
        write!(
            f,
            "{n_kinds} kinds of steps agree with the reference on {n_inputs} inputs ({} values){}",
            agreed.n_values,
            agreed.nearest()
        )?;
        match &left_out[..] {
            [] => Ok(()),
            rows => write!(f, "; not tried, as the context is too short: {rows:?} rows"),
        }
    }
}

/// Tries every kind of part of the plan.
pub(super) fn check_kernels(
    verified: &Verified,
    executor: &mut dyn Executor,
    tokens: &[u32],
    depth: Depth,
) -> Result<KernelReport> {
    let mut prober = Prober {
        judge: Judge::new(verified),
        verified,
        random: SplitMix64::new(0x7275_6573),
        report: KernelReport::default(),
    };
    let plan = &verified.plan;
    // Tails of tiles of 4 to 64 rows and more than one of them, and where other kernels take over.
    let (few, turns): (&[usize], &[usize]) = match depth {
        Depth::Quick => (&[1, 5], &[0]),
        Depth::Full => (&[1, 2, 3, 4, 5, 17, 67], &[0, 2]),
    };
    let starts = executor.turns().into_iter();
    let turns = starts.flat_map(|start| turns.iter().map(move |more| start + more));
    let wanted: BTreeSet<usize> = few.iter().copied().chain(turns).collect();
    let (tried, left_out): (Vec<usize>, Vec<usize>) = wanted
        .into_iter()
        .filter(|&n_rows| n_rows <= plan.max_rows)
        .partition(|&n_rows| n_rows <= verified.kv.capacity);
    prober.report.left_out = left_out;
    for n_rows in tried {
        let tokens: Vec<u32> = tokens.iter().copied().cycle().take(n_rows).collect();
        let batch = Batch {
            tokens: &tokens,
            position: 0,
            outputs: match n_rows <= plan.max_outputs {
                true => Outputs::All,
                false => Outputs::Last,
            },
        };
        let mut kinds = BTreeSet::new();
        for part in executor.parts(&batch) {
            if !kinds.insert(kind(verified, &part)) {
                continue;
            }
            prober.report.n_kinds += 1;
            prober.part(executor, &batch, &part, depth)?;
            if prober.report.divergence.is_some() {
                return Ok(prober.report);
            }
        }
    }
    Ok(KernelReport {
        agreed: prober.judge.agreed,
        ..prober.report
    })
}

/// What tells parts apart that run by different kernels or with other parameters.
fn kind(verified: &Verified, part: &Range<usize>) -> String {
    let Verified {
        weights, plan, kv, ..
    } = verified;
    let of_weight = |id| {
        let weight = weights.get(id);
        format!("{:?} {}x{}", weight.ty, weight.n_rows, weight.n_cols)
    };
    let of_op = |op: &Op| match *op {
        Op::Embed { weight, index, .. } => format!("{} {index:?}", of_weight(weight)),
        Op::RmsNorm {
            src,
            weight,
            group,
            eps,
            ..
        } => format!(
            "{group} of {} {} {eps}",
            plan.buffer(src).width,
            weight.map(of_weight).unwrap_or_default()
        ),
        Op::LayerNorm {
            weight,
            bias,
            group,
            eps,
            ..
        } => format!("{} {} {group} {eps}", of_weight(weight), bias.is_some()),
        Op::MatMul { weight, bias, .. } => {
            format!("{} {}", of_weight(weight), bias.is_some())
        }
        Op::ChooseExperts {
            logits,
            bias,
            gating,
            groups,
            dst,
        } => {
            let [n_expert, n_chosen] = [logits, dst].map(|id| plan.buffer(id).width);
            format!(
                "{n_chosen} of {n_expert} {gating:?} {groups:?} {}",
                bias.is_some()
            )
        }
        Op::ExpertWeights {
            logits,
            dst,
            gating,
            normalised,
            scale,
            factors,
            ..
        } => {
            let [n_expert, n_chosen] = [logits, dst].map(|id| plan.buffer(id).width);
            let has_factors = factors.is_some();
            format!("{n_chosen} of {n_expert} {gating:?} {normalised} {scale} {has_factors}")
        }
        Op::ExpertMatMul {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            ..
        } => format!(
            "{} {n_expert} {:?} {} {}",
            of_weight(weight),
            plan.buffer(src).extent,
            plan.buffer(chosen).width,
            bias.is_some()
        ),
        Op::HeadMatMul {
            src,
            weight,
            n_head,
            ..
        } => {
            let width = plan.buffer(src).width;
            format!("{} {n_head} {width}", of_weight(weight))
        }
        Op::WeighSlots { weights, .. } => format!("{}", plan.buffer(weights).width),
        Op::WeightedSum { src, weights, .. } => {
            let n_slots = plan.buffer(src).extent.n_slots();
            format!("{n_slots} {}", weights.is_some())
        }
        Op::Rope {
            table, head_dim, ..
        } => format!("{} {head_dim}", table.0),
        Op::StoreKv { layer, .. } => format!("{:?}", kv.layers[layer]),
        Op::Attention {
            layer,
            n_head,
            scale,
            causal,
            window,
            chunk,
            soft_cap,
            alibi,
            sinks,
            ..
        } => format!(
            "{:?} {n_head} {scale} {causal} {window:?} {chunk:?} {soft_cap:?} {alibi} {}",
            kv.layers[layer],
            sinks.is_some()
        ),
        Op::GatedActivation { activation, .. } => format!("{activation:?}"),
        Op::Map { function, .. } => format!("{function:?}"),
        Op::CausalConv {
            bias,
            n_taps,
            activation,
            ..
        } => format!("{n_taps} {activation:?} {}", bias.is_some()),
        Op::StateScan {
            dt,
            a,
            n_group,
            dst,
            ..
        } => {
            let [n_head, width] = [dt, dst].map(|id| plan.buffer(id).width);
            format!("{width} in {n_head} {n_group} {}", of_weight(a))
        }
        Op::DeltaRule {
            alpha,
            n_head_k,
            is_tiled,
            eps,
            ..
        } => {
            let n_head = plan.buffer(alpha).width;
            format!("{n_head} of {n_head_k} {is_tiled} {eps}")
        }
        Op::GroupNorm {
            weight, group, eps, ..
        } => format!("{} {group} {eps}", of_weight(weight)),
        Op::TakeColumns {
            first,
            length,
            period,
            dst,
            ..
        } => {
            let to = plan.buffer(dst);
            format!("{first} {length} {period} {} {:?}", to.width, to.extent)
        }
        Op::Add { .. } | Op::SelectOutputs { .. } => String::new(),
    };
    let steps = plan.steps[part.clone()].iter();
    steps
        .map(|step| format!("{} {}; ", step.name_in_layer(), of_op(&step.op)))
        .collect()
}

struct Prober<'a> {
    judge: Judge,
    verified: &'a Verified,
    random: SplitMix64,
    report: KernelReport,
}

impl Prober<'_> {
    /// Tries a part on every kind of input, at several positions where they matter.
    fn part(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
        part: &Range<usize>,
        depth: Depth,
    ) -> Result<()> {
        let ops = || {
            self.verified.plan.steps[part.clone()]
                .iter()
                .map(|step| &step.op)
        };
        let minds_positions = ops().any(|op| {
            op.state().is_some()
                || matches!(
                    op,
                    Op::Rope { .. }
                        | Op::StoreKv { .. }
                        | Op::Attention { .. }
                        | Op::Embed {
                            index: EmbedIndex::Position,
                            ..
                        }
                )
        });
        let positions = match (minds_positions, depth, batch.n_rows()) {
            (false, ..) => &POSITIONS[..1],
            (true, Depth::Quick, n_rows) if n_rows > QUICK_ROWS => &POSITIONS[1..2],
            (true, ..) => &POSITIONS[..],
        };
        let inputs: &[Input] = match (depth, batch.n_rows()) {
            (_, n_rows) if n_rows > MANY_ROWS => &[Input::Random],
            (Depth::Quick, n_rows) if n_rows > QUICK_ROWS => &[Input::Random],
            (Depth::Quick, 2..) => &[Input::Random, Input::Huge],
            _ => &[Input::Random, Input::Tiny, Input::Huge, Input::Zero],
        };
        for &position in positions {
            let batch = Batch { position, ..*batch };
            if position + batch.n_rows() > self.verified.kv.capacity {
                continue;
            }
            for &input in inputs {
                self.probe(executor, &batch, part, input)?;
                if self.report.divergence.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn probe(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
        part: &Range<usize>,
        input: Input,
    ) -> Result<()> {
        self.give(executor, batch, part, input)?;
        self.report.n_inputs += 1;
        let phase = Phase::Probe {
            input,
            n_rows: batch.n_rows(),
        };
        let mut divergence = None;
        let result = executor.run_steps(batch, part.clone(), &mut |seen: &Observation<'_>| {
            divergence = self.judge.step(batch, phase, seen);
            Divergence::end_run(divergence.as_ref())
        });
        self.report.divergence = divergence;
        match self.report.divergence {
            Some(_) => Ok(()),
            None => result,
        }
    }

    /// Fills all that a part reads before it writes it, on the device and on the reference.
    fn give(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
        part: &Range<usize>,
        input: Input,
    ) -> Result<()> {
        let plan = &self.verified.plan;
        let mut written: BTreeSet<BufferId> = BTreeSet::new();
        for step in &plan.steps[part.clone()] {
            for id in step.op.sources() {
                if !written.insert(id) {
                    continue;
                }
                // Huge scores differ by more than huge numbers tell apart.
                let is_query = matches!(step.op, Op::Attention { .. });
                let input = match input {
                    Input::Huge if is_query => Input::Random,
                    input => input,
                };
                let n = plan.rows_of(id, batch) * plan.buffer(id).width;
                let values = match n_expert_of(plan, &step.op, id) {
                    Some(n_expert) => ids(&mut self.random, n_expert, n),
                    None => values(&mut self.random, input, n),
                };
                executor.set_buffer(id, &values)?;
                self.judge.reference.replace(id, &values);
            }
            if let Op::Attention { layer, .. } = step.op {
                self.give_cache(executor, batch, layer, input)?;
            }
            if let Some(id) = step.op.state() {
                let state = values(&mut self.random, input, plan.states[id.0].len);
                executor.set_state(id, &state)?;
                self.judge.reference.replace_state(id, &state);
            }
            written.extend(step.op.dst());
        }
        Ok(())
    }

    /// Fills the cache up to the last position of a batch.
    fn give_cache(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
        layer: usize,
        input: Input,
    ) -> Result<()> {
        let kv = &self.verified.kv;
        let (n_rows, shape) = (batch.position + batch.n_rows(), kv.layers[layer]);
        let of_keys = match input {
            Input::Huge => Input::Random,
            input => input,
        };
        let of_values = match shape.values_end_keys {
            true => of_keys,
            false => input,
        };
        let mut rows = values(&mut self.random, of_keys, n_rows * shape.key_width());
        rows.extend(values(
            &mut self.random,
            of_values,
            n_rows * shape.value_width(),
        ));
        if input == Input::Tiny {
            // GPUs may take 16-bit floats below 2^-14 as zero.
            let normal = |value: f32| value.signum() * (1e-3 + value.abs());
            rows.iter_mut().for_each(|value| *value = normal(*value));
        }
        let mut stored = vec![0.0; rows.len()];
        kernels::store_kv::twin(kv.ty, &rows, &mut stored);
        executor.set_cached_rows(layer, 0, &stored)?;
        self.judge.reference.replace_cached(layer, 0, &stored);
        Ok(())
    }
}

/// Where an op reads a buffer as ids of experts: how many there are.
fn n_expert_of(plan: &Plan, op: &Op, id: BufferId) -> Option<usize> {
    match *op {
        Op::ExpertWeights { logits, chosen, .. } => {
            (chosen == id).then(|| plan.buffer(logits).width)
        }
        Op::ExpertMatMul {
            chosen, n_expert, ..
        } => (chosen == id).then_some(n_expert),
        _ => None,
    }
}

/// Ids of experts.
fn ids(random: &mut SplitMix64, n_expert: usize, n: usize) -> Vec<f32> {
    let id = |_| (random.next_u64() % n_expert.max(1) as u64) as f32;
    (0..n).map(id).collect()
}

/// Numbers of a kind of input.
fn values(random: &mut SplitMix64, input: Input, n: usize) -> Vec<f32> {
    let value = |_| {
        let bits = random.next_u64();
        let uniform = (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let is_outlier = bits & 0x7F == 0;
        match input {
            Input::Random if is_outlier => uniform * 20.0,
            Input::Random => uniform,
            Input::Tiny => uniform * 1e-6,
            Input::Huge if is_outlier => uniform * 1e6,
            Input::Huge => uniform * 1e5,
            Input::Zero => 0.0,
        }
    };
    (0..n).map(value).collect()
}
