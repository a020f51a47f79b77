//! An executor that is wrong on purpose: whatever judges must say no, and name the step.

use super::verify::Phase;
use crate::device::reference::ReferenceExecutor;
use crate::device::{Executor, Observation, Observer, Sentinels, Stepwise};
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, Weights, decoder_plan};
use crate::plan::{Batch, BufferId, Op, Plan, StateId};
use crate::tiny;
use std::ops::Range;
use std::sync::Arc;

/// What the executor does wrong in one step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    None,
    Zeros,
    /// An epsilon of another order.
    WrongEpsilon,
    /// The last row keeps what was there before.
    TailRow,
    /// The last elements of each row keep what was there before.
    TailColumns,
    NotANumber,
    Infinite,
    /// One element is off by a hundredth of the row's root mean square.
    OneElement,
    /// Not run at all.
    Skipped,
    /// Reads the table of positions one further on.
    WrongPosition,
    /// Right while it is watched, zeros when it is not.
    WrongUnwatched,
}

/// The reference with a fault in one step, in batches of the phase.
pub(super) struct Faulty {
    inner: ReferenceExecutor,
    plan: Arc<Plan>,
    /// `*NAME` for all that end so.
    step: String,
    phase: Phase,
    fault: Fault,
}

impl Faulty {
    fn damage(&mut self, index: usize, batch: &Batch<'_>) {
        let op = self.plan.steps[index].op.clone();
        let Some(dst) = op.dst() else {
            self.damage_cache(&op, batch);
            return;
        };
        let width = self.plan.buffer(dst).width;
        let mut values = self.inner.buffer(dst).to_vec();
        let n = values.len();
        match self.fault {
            Fault::None
            | Fault::Skipped
            | Fault::WrongEpsilon
            | Fault::WrongPosition
            | Fault::WrongUnwatched => {}
            Fault::Zeros => values.fill(0.0),
            Fault::TailRow => values[n - width..].fill(0.0),
            Fault::TailColumns => {
                values
                    .chunks_exact_mut(width)
                    .for_each(|row| row[width - 3..].fill(0.5));
            }
            Fault::NotANumber => values[n / 2] = f32::NAN,
            Fault::Infinite => values[n - 1] = f32::INFINITY,
            Fault::OneElement => {
                values[n - 2] += 0.01 * crate::diagnostics::verify::rms(&values[n - width..])
            }
        }
        self.inner.replace(dst, &values);
    }

    fn damage_cache(&mut self, op: &Op, batch: &Batch<'_>) {
        let Op::StoreKv { layer, .. } = *op else {
            return;
        };
        let mut rows = self.inner.cached_rows(layer, batch);
        match self.fault {
            Fault::Zeros => rows.fill(0.0),
            Fault::OneElement => rows[3] += 0.1,
            _ => {}
        }
        self.inner.replace_cached(layer, batch.position, &rows);
    }
}

impl Faulty {
    pub(super) fn new(setup: &Setup, step: &str, phase: Phase, fault: Fault) -> Faulty {
        // A wrong epsilon is a wrong plan under the right names.
        let mut wrong = Plan::clone(&setup.plan);
        for candidate in &mut wrong.steps {
            if let (true, Op::RmsNorm { eps, .. }) = (candidate.name == step, &mut candidate.op)
                && matches!(fault, Fault::WrongEpsilon)
            {
                *eps = 1e-6;
            }
        }
        let plan = Arc::new(wrong);
        Faulty {
            inner: ReferenceExecutor::new(setup.weights.clone(), plan.clone(), &setup.kv),
            plan,
            step: step.to_owned(),
            phase,
            fault,
        }
    }

    fn is_faulty(&self, step: &str) -> bool {
        match self.step.strip_prefix('*') {
            Some(end) => step.ends_with(end),
            None => step == self.step,
        }
    }

    fn phase_of(batch: &Batch<'_>) -> Phase {
        match batch.n_rows() {
            1 => Phase::Decode,
            _ => Phase::Prefill,
        }
    }
}

impl Executor for Faulty {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let is_watched = observer.is_some();
        let mut ignore = |_: &Observation<'_>| Ok(());
        let observer = observer.unwrap_or(&mut ignore);
        self.run_steps(batch, 0..self.plan.steps.len(), observer)?;
        *logits = self.inner.buffer(self.plan.logits).to_vec();
        let phase = Faulty::phase_of(batch);
        if !is_watched && phase == self.phase && matches!(self.fault, Fault::WrongUnwatched) {
            logits[7] += 1e-3;
        }
        Ok(())
    }

    fn watch(&mut self, sentinels: Sentinels) {
        self.inner.watch(sentinels);
    }
}

impl Stepwise for Faulty {
    fn parts(&self, batch: &Batch<'_>) -> Vec<Range<usize>> {
        self.inner.parts(batch)
    }

    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        steps: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let plan = self.plan.clone();
        for index in steps {
            let step = &plan.steps[index];
            let is_faulty = self.is_faulty(&step.name) && Faulty::phase_of(batch) == self.phase;
            if is_faulty && matches!(self.fault, Fault::Skipped) {
                continue;
            }
            let shifted = Batch {
                position: batch.position + 1,
                ..*batch
            };
            let shift = is_faulty && matches!(self.fault, Fault::WrongPosition);
            self.inner.step(index, if shift { &shifted } else { batch });
            if is_faulty {
                self.damage(index, batch);
            }
            let (values, width) = match (&step.op, step.op.dst()) {
                (Op::StoreKv { layer, k, .. }, _) => {
                    (self.inner.cached_rows(*layer, batch), plan.buffer(*k).width)
                }
                (_, Some(dst)) => (self.inner.buffer(dst).to_vec(), plan.buffer(dst).width),
                (_, None) => unreachable!("every other step has a destination"),
            };
            observer(&Observation {
                index,
                step,
                values: &values,
                width,
                state: self.inner.state(&step.op),
            })?;
        }
        Ok(())
    }

    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()> {
        self.inner.set_buffer(id, rows)
    }

    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        Stepwise::cached_rows(&self.inner, layer, batch)
    }

    fn set_state(&mut self, id: StateId, values: &[f32]) -> Result<()> {
        self.inner.set_state(id, values)
    }

    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()> {
        self.inner.set_cached_rows(layer, position, rows)
    }
}

pub(super) struct Setup {
    pub(super) weights: Weights,
    pub(super) plan: Arc<Plan>,
    pub(super) kv: KvLayout,
}

pub(super) fn setup() -> Setup {
    let gguf = Arc::new(tiny::gguf(WeightType::Q8_0, None));
    let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
    let plan = Arc::new(decoder_plan(&model, 16, 4).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: 16,
        ty: KvType::F32,
    };
    Setup {
        weights: model.weights,
        plan,
        kv,
    }
}
