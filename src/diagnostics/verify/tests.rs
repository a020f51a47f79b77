//! An executor that is wrong on purpose: verify must say no, and name the step.

use super::{Finding, Phase, VerifyReport, verify};
use crate::device::reference::ReferenceExecutor;
use crate::device::{Executor, Observation, Observer, Rounding, Sentinels};
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, Weights, decoder_plan};
use crate::plan::{Batch, Op, Plan};
use crate::tiny;
use std::sync::Arc;

/// What the executor does wrong in one step.
#[derive(Clone, Copy, Debug)]
enum Fault {
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
struct Faulty {
    inner: ReferenceExecutor,
    plan: Arc<Plan>,
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
            Fault::OneElement => values[n - 2] += 0.01 * super::compare::rms(&values[n - width..]),
        }
        self.inner.set_buffer(dst, &values);
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
        self.inner.set_cached_rows(layer, batch, &rows);
    }
}

impl Executor for Faulty {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let phase = if batch.n_rows() > 1 {
            Phase::Prefill
        } else {
            Phase::Decode
        };
        let plan = self.plan.clone();
        let is_watched = observer.is_some();
        let mut ignore = |_: &Observation<'_>| Ok(());
        let observer = observer.unwrap_or(&mut ignore);
        for (index, step) in plan.steps.iter().enumerate() {
            let is_faulty = step.name == self.step && phase == self.phase;
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
            })?;
        }
        *logits = self.inner.buffer(plan.logits).to_vec();
        if !is_watched && phase == self.phase && matches!(self.fault, Fault::WrongUnwatched) {
            logits[7] += 1e-3;
        }
        Ok(())
    }

    fn watch(&mut self, sentinels: Sentinels) {
        self.inner.watch(sentinels);
    }
}

struct Setup {
    weights: Weights,
    plan: Arc<Plan>,
    kv: KvLayout,
}

fn setup() -> Setup {
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

const TOKENS: [u32; 5] = [1, 260, 270, 280, 290];

fn run(step: &str, phase: Phase, fault: Fault) -> VerifyReport {
    run_in(Rounding::default(), step, phase, fault)
}

fn run_in(rounding: Rounding, step: &str, phase: Phase, fault: Fault) -> VerifyReport {
    let Setup { weights, plan, kv } = setup();
    // A wrong epsilon is a wrong plan under the right names.
    let mut wrong = Plan::clone(&plan);
    for candidate in &mut wrong.steps {
        if let (true, Op::RmsNorm { eps, .. }) = (candidate.name == step, &mut candidate.op)
            && matches!(fault, Fault::WrongEpsilon)
        {
            *eps = 1e-6;
        }
    }
    let plan_of_device = Arc::new(wrong);
    let inner = ReferenceExecutor::new(weights.clone(), plan_of_device.clone(), &kv);
    let mut faulty = Faulty {
        inner,
        plan: plan_of_device,
        step: step.to_owned(),
        phase,
        fault,
    };
    verify(&weights, &plan, &kv, rounding, &mut faulty, &TOKENS, 2).unwrap()
}

fn assert_names(step: &str, phase: Phase, fault: Fault) -> Finding {
    let report = run(step, phase, fault);
    let Some(found) = report.first_divergence() else {
        panic!("{fault:?} in `{step}` was not seen: {report}");
    };
    assert!(!report.passed());
    assert_eq!(
        (found.step.as_str(), found.phase),
        (step, phase),
        "{fault:?}: {report}"
    );
    assert!(report.to_string().contains(step), "{report}");
    found.finding.clone()
}

#[test]
fn verify_passes_what_is_right() {
    let report = run("none", Phase::Prefill, Fault::None);
    assert!(report.passed(), "{report}");
    assert_eq!(report.n_steps, 3 * setup().plan.steps.len());
}

#[test]
fn verify_names_the_step_that_is_zero() {
    for step in ["embd", "blk.0.attn_q", "blk.1.ffn_gated", "result_output"] {
        assert_eq!(
            assert_names(step, Phase::Prefill, Fault::Zeros),
            Finding::AllZero
        );
        assert_eq!(
            assert_names(step, Phase::Decode, Fault::Zeros),
            Finding::AllZero
        );
    }
}

#[test]
fn verify_names_the_norm_with_another_epsilon() {
    // A tenth of the epsilon in the norm of the embedding: the decode step before is right.
    let finding = assert_names("blk.0.attn_norm", Phase::Prefill, Fault::WrongEpsilon);
    assert!(matches!(finding, Finding::Differs { .. }), "{finding:?}");
}

#[test]
fn verify_names_the_step_whose_tail_is_not_written() {
    for step in ["blk.0.ffn_up", "blk.1.kqv_out", "blk.1.l_out"] {
        let report = run(step, Phase::Prefill, Fault::TailRow);
        let found = report.first_divergence().unwrap();
        assert_eq!(
            (found.step.as_str(), found.row, found.position),
            (step, 4, 4),
            "{report}"
        );
        assert_names(step, Phase::Decode, Fault::TailColumns);
    }
}

#[test]
fn verify_allows_f16_activations_their_rounding_and_no_more() {
    let rounding = Rounding {
        int8_rows: 0,
        f16_above: Some(4),
    };
    let passes = |step, phase, fault| run_in(rounding, step, phase, fault).passed();
    for step in ["blk.1.attn_output", "blk.1.kqv_out"] {
        assert!(passes(step, Phase::Prefill, Fault::OneElement), "{step}");
        assert!(!passes(step, Phase::Decode, Fault::OneElement), "{step}");
        assert!(!run(step, Phase::Prefill, Fault::OneElement).passed());
    }
    assert!(!passes(
        "blk.1.attn_norm",
        Phase::Prefill,
        Fault::OneElement
    ));
    assert!(!passes("blk.0.ffn_up", Phase::Prefill, Fault::TailRow));
    assert!(!passes("blk.0.ffn_up", Phase::Prefill, Fault::TailColumns));
}

#[test]
fn verify_names_the_step_that_is_not_finite() {
    for fault in [Fault::NotANumber, Fault::Infinite] {
        let finding = assert_names("blk.0.Vcur", Phase::Prefill, fault);
        assert!(matches!(finding, Finding::NotFinite { .. }), "{finding:?}");
        assert_names("result_norm", Phase::Decode, fault);
    }
}

#[test]
fn verify_names_one_wrong_element_with_both_values() {
    let report = run("blk.1.attn_output", Phase::Decode, Fault::OneElement);
    let found = report.first_divergence().unwrap();
    assert_eq!(
        (found.step.as_str(), found.position, found.column),
        ("blk.1.attn_output", 5, 62)
    );
    let Finding::Differs {
        found,
        expected,
        bound,
    } = found.finding
    else {
        panic!("{report}")
    };
    assert!((found - expected).abs() > bound, "{report}");
}

#[test]
fn verify_names_the_cache_store() {
    for fault in [Fault::Zeros, Fault::OneElement] {
        assert_names("blk.1.kv_cache", Phase::Prefill, fault);
    }
}

#[test]
fn verify_names_the_step_that_was_left_out() {
    let finding = assert_names("blk.0.ffn_norm", Phase::Prefill, Fault::Skipped);
    assert_eq!(finding, Finding::Missing);
    let finding = assert_names("result_output", Phase::Decode, Fault::Skipped);
    assert_eq!(finding, Finding::Missing);
}

#[test]
fn verify_names_the_rotation_by_a_wrong_position() {
    assert_names("blk.0.Qcur", Phase::Decode, Fault::WrongPosition);
    assert_names("blk.1.Kcur", Phase::Prefill, Fault::WrongPosition);
}

#[test]
fn verify_names_a_run_that_is_wrong_when_nobody_watches() {
    for phase in [Phase::Prefill, Phase::Decode] {
        let finding = assert_names("result_output", phase, Fault::WrongUnwatched);
        assert!(
            matches!(finding, Finding::UnobservedDiffers { .. }),
            "{finding:?}"
        );
    }
}
