//! Whether activations of few rows become 8-bit integers.

use super::search::{WORTH_IT, median};
use super::tuner::{Tuner, nanoseconds, ranked, unmeasured};
use super::{Entry, OfModel, Setting, Subject, Trial, Tuning};
use crate::device::wgpu::lower::Probe;
use crate::error::Result;
use crate::kernels::Src;
use crate::kernels::teams::FewRows;
use crate::kv_cache::KvLayout;
use crate::plan::Plan;
use std::time::Instant;

/// Runs of a whole token in each form.
const ROUNDS: usize = 5;

impl Tuner<'_> {
    /// Whether few rows are faster as 8-bit integers. The product that reads most decides where floats do not make it
    /// faster, else a whole token.
    pub(super) fn int8_or_float(
        &mut self,
        plan: &Plan,
        with_int8: &Probe<'_>,
        model: &mut OfModel,
    ) -> Result<Option<Entry>> {
        let entry = |int8: f64, float: f64, is_complete| {
            let trial = |is_int8, micros| Trial {
                setting: Setting::Int8(is_int8),
                nanoseconds: nanoseconds(micros),
            };
            let is_float = is_complete && float < WORTH_IT * int8;
            Some(Entry {
                rule: Setting::Int8(true),
                chosen: Setting::Int8(!is_float),
                trials: vec![trial(true, int8), trial(false, float)],
                is_complete,
            })
        };
        let choice = self.choice(Tuning::default());
        let few = |probe: &Probe<'_>, kv: &KvLayout| -> Vec<FewRows> {
            let products = ranked(&probe.subjects(&choice), kv).into_iter();
            let few = products.filter_map(|subject| match subject {
                Subject::FewRows(product) => Some(product),
                _ => None,
            });
            few.collect()
        };
        let probe = Probe::new(self.shared, plan, self.kv, &choice)?;
        let is_rounded = |product: &&FewRows| product.src != Src::F32;
        let Some(rounded) = few(with_int8, self.kv).into_iter().find(|p| is_rounded(&p)) else {
            return Ok(None);
        };
        let floats = few(&probe, self.kv);
        let same = |float: &&FewRows| {
            let src = rounded.src;
            FewRows { src, ..**float } == rounded
        };
        let Some(&float) = floats.iter().find(same) else {
            return Ok(None);
        };
        let [int8, float] = [rounded, float].map(Subject::FewRows);
        let mut asked = OfModel::default();
        self.measure(&probe, &float, &mut asked)?;
        let [int8, float] = [int8, float].map(|subject| self.chosen_micros(&subject));
        let (Some(int8), Some(float)) = (int8, float) else {
            return Ok(Some(Entry {
                is_complete: false,
                ..unmeasured(Setting::Int8(true))
            }));
        };
        if float >= WORTH_IT * int8 {
            return Ok(entry(int8, float, true));
        }
        for product in floats {
            self.measure(&probe, &Subject::FewRows(product), &mut asked)?;
        }
        let choice = self.choice(self.tuning.clone());
        let mut times = [Vec::new(), Vec::new()];
        let dispatches =
            [with_int8, &probe].map(|probe| probe.dispatches(&choice, None, usize::MAX));
        let [of_int8, of_float] = dispatches;
        let dispatches = [of_int8?, of_float?];
        for _ in 0..ROUNDS {
            for (index, probe) in [with_int8, &probe].into_iter().enumerate() {
                if Instant::now() >= self.options.deadline {
                    return Ok(entry(int8, float, false));
                }
                // Norms are steps of their own in front of floats: only whole tokens compare.
                let (time, _) = self.time_all(probe, &dispatches[index], self.one_row(), 1)?;
                times[index].push(time);
            }
        }
        let [int8, float] = times.each_mut().map(|times| median(times));
        let entry = entry(int8, float, true);
        if entry
            .as_ref()
            .is_some_and(|e| e.chosen == Setting::Int8(false))
        {
            model.subjects.extend(asked.subjects);
        }
        Ok(entry)
    }

    /// How long what was chosen takes, if it was measured to the end.
    fn chosen_micros(&self, subject: &Subject) -> Option<f64> {
        let entry = self.tuning.entries.get(&subject.to_string())?;
        let mut trials = entry.trials.iter().filter(|_| entry.is_complete);
        let chosen = trials.find(|trial| trial.setting == entry.chosen);
        chosen.map(|trial| trial.nanoseconds as f64 / 1e3)
    }
}
