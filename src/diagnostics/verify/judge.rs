//! Compares each step of a device with the reference, on the inputs that the device had.

use super::compare::{compare, compare_above, least_error, tolerance};
use super::divergence::{Divergence, Finding, Phase};
use super::ties::Scored;
use crate::device::reference::ReferenceExecutor;
use crate::device::{Observation, Rounding};
use crate::kernels::attention::Shape;
use crate::kernels::attention_coop;
use crate::kv_cache::KvLayout;
use crate::model::Weights;
use crate::plan::{Batch, Extent, Op, Plan};
use std::sync::Arc;

/// What is verified: a plan with its weights, and how a device runs it.
#[derive(Clone)]
pub(crate) struct Verified {
    pub(crate) weights: Weights,
    pub(crate) plan: Arc<Plan>,
    pub(crate) kv: KvLayout,
    pub(crate) rounding: Rounding,
}

impl Verified {
    /// The reference with an empty cache.
    pub(crate) fn reference(&self) -> ReferenceExecutor {
        ReferenceExecutor::new(self.weights.clone(), self.plan.clone(), &self.kv)
    }
}

/// What agreed with the reference.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    pub(super) n_steps: usize,
    pub(super) n_values: u64,
    /// The step that came nearest to its bound, and the share of the bound that its error took.
    nearest_to_bound: Option<(String, Phase, f32)>,
}

impl Agreed {
    fn add(&mut self, seen: &Observation<'_>, phase: Phase, share: f32) {
        self.n_steps += 1;
        self.n_values += seen.values.len() as u64;
        let nearest = self.nearest_to_bound.as_ref();
        if nearest.is_none_or(|(.., nearest)| share > *nearest) {
            self.nearest_to_bound = Some((seen.step.name.clone(), phase, share));
        }
    }

    /// `; nearest to its bound: ..`, or nothing.
    pub(super) fn nearest(&self) -> String {
        match &self.nearest_to_bound {
            Some((step, phase, share)) => {
                let percent = share * 100.0;
                format!("; nearest to its bound: `{step}` ({phase}) at {percent:.1} %")
            }
            None => String::new(),
        }
    }
}

pub(super) struct Judge {
    pub(super) reference: ReferenceExecutor,
    verified: Verified,
    pub(super) agreed: Agreed,
}

impl Judge {
    pub(super) fn new(verified: &Verified) -> Judge {
        Judge {
            reference: verified.reference(),
            verified: verified.clone(),
            agreed: Agreed::default(),
        }
    }

    /// Runs a step on the reference and compares; the device's values become the inputs of later steps.
    pub(super) fn step(
        &mut self,
        batch: &Batch<'_>,
        phase: Phase,
        seen: &Observation<'_>,
    ) -> Option<Divergence> {
        self.reference.step(seen.index, batch);
        let plan = &self.verified.plan;
        let op = &plan.steps[seen.index].op;
        let expected = match (op, op.dst()) {
            (Op::StoreKv { layer, .. }, _) => self.reference.cached_rows(*layer, batch),
            (_, Some(dst)) => self.reference.buffer(dst).to_vec(),
            (_, None) => Vec::new(),
        };
        let is_zero = |values: &[f32]| values.iter().all(|&value| value == 0.0);
        // Nothing that a model makes of a prompt is all zero, whatever the reference says, but the one expert of a
        // token.
        let is_one_id = match *op {
            Op::ChooseExperts { dst, .. } => plan.buffer(dst).width == 1,
            _ => false,
        };
        let may_be_zero = (is_one_id || matches!(phase, Phase::Probe { .. })) && is_zero(&expected);
        if !seen.values.is_empty() && is_zero(seen.values) && !may_be_zero {
            return Some(self.divergence(seen.index, batch, phase, (0, 0), Finding::AllZero));
        }
        let width = match op {
            // Its keys and its values may differ in width.
            Op::StoreKv { .. } => 1,
            _ => seen.width.max(1),
        };
        let sizes = self.sizes_of_single(op);
        let outcome = compare_above(
            seen.values,
            &expected,
            width,
            self.tolerance(op, batch),
            least_error(op),
            |row| sizes.get(row).copied().unwrap_or(0.0),
        );
        if let Some((row, column, finding)) = outcome.wrong
            && !self.is_tie(op, seen.values)
        {
            let (row, column) = match *op {
                Op::StoreKv { layer, .. } => {
                    self.verified.kv.layers[layer].place(row, batch.n_rows())
                }
                _ => (row, column),
            };
            return Some(self.divergence(seen.index, batch, phase, (row, column), finding));
        }
        self.agreed.add(seen, phase, outcome.share);
        if let (Some(found), Some(expected)) = (seen.state, self.reference.state(op)) {
            let n = expected.len().max(1);
            let outcome = compare(found, expected, n, self.tolerance(op, batch));
            if let Some((_, column, finding)) = outcome.wrong {
                let last = batch.n_rows().saturating_sub(1);
                return Some(self.divergence(seen.index, batch, phase, (last, column), finding));
            }
        }
        self.reference.follow(batch, seen);
        None
    }

    /// Whether experts that are not the reference's are as good as these, within what rounding explains.
    fn is_tie(&self, op: &Op, found: &[f32]) -> bool {
        let Op::ChooseExperts {
            logits,
            bias,
            gating,
            groups,
            dst,
        } = *op
        else {
            return false;
        };
        let plan = &self.verified.plan;
        let bias = bias.map(|bias| self.verified.weights.vector(bias));
        let scored = Scored {
            gating,
            bias: bias.as_deref(),
            groups,
            n_expert: plan.buffer(logits).width,
            n_chosen: plan.buffer(dst).width,
        };
        let rounds = scored.bias.is_some() || scored.groups.is_some();
        rounds && scored.explains(self.reference.buffer(logits), found)
    }

    /// The sizes of rows of one product each, which may cancel: what a row of many such products would have as its root mean
    /// square, by row. Nothing for other steps.
    fn sizes_of_single(&self, op: &Op) -> Vec<f32> {
        let Verified { weights, .. } = &self.verified;
        match *op {
            Op::MatMul { src, weight, .. } if weights.get(weight).n_rows == 1 => {
                let weight = weights.vector(weight);
                let rows = self.reference.buffer(src).chunks_exact(weight.len());
                let size = |row: &[f32]| {
                    let products = row.iter().zip(&weight);
                    let squares = products.map(|(&x, &w)| (f64::from(x) * f64::from(w)).powi(2));
                    squares.sum::<f64>().sqrt() as f32
                };
                rows.map(size).collect()
            }
            _ => Vec::new(),
        }
    }

    fn tolerance(&self, op: &Op, batch: &Batch<'_>) -> f32 {
        let Verified {
            weights,
            plan,
            rounding,
            ..
        } = &self.verified;
        let is_f16 = match *op {
            Op::MatMul { weight, dst, .. } => {
                rounding.is_f16(weights.get(weight).ty, plan.rows_of(dst, batch))
            }
            Op::ExpertMatMul { weight, .. } => {
                rounding.is_f16(weights.get(weight).ty, batch.n_rows())
            }
            Op::Attention { .. } => {
                let shape = Shape::of(op, &self.verified.kv, batch.position, batch.n_rows());
                let fits = shape.is_some_and(|shape| attention_coop::fits(&shape));
                fits && rounding.is_f16_attention(batch.n_rows())
            }
            _ => false,
        };
        tolerance(op, is_f16)
    }

    pub(super) fn divergence(
        &self,
        index: usize,
        batch: &Batch<'_>,
        phase: Phase,
        (row, column): (usize, usize),
        finding: Finding,
    ) -> Divergence {
        let plan = &self.verified.plan;
        let step = &plan.steps[index];
        let is_of_outputs = step
            .op
            .dst()
            .is_some_and(|dst| plan.buffer(dst).extent == Extent::Outputs);
        let first = if is_of_outputs {
            batch.n_rows() - batch.n_outputs()
        } else {
            0
        };
        Divergence {
            step: step.name.clone(),
            phase,
            position: batch.position + (first + row) % batch.n_rows(),
            row,
            column,
            finding,
        }
    }
}
