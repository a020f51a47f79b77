//! Which steps of a mixture of experts one kernel computes together.

use super::Finder;
use crate::model::WeightId;
use crate::plan::{Activation, BufferId, Op};

/// Both products of a gated feed-forward block with the experts of each token, and its non-linearity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::device::wgpu::lower) struct ExpertGated {
    pub(in crate::device::wgpu::lower) gate: ExpertProduct,
    pub(in crate::device::wgpu::lower) up: ExpertProduct,
    pub(in crate::device::wgpu::lower) activation: Activation,
    pub(in crate::device::wgpu::lower) dst: BufferId,
}

/// A product with the matrices of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::device::wgpu::lower) struct ExpertProduct {
    pub(in crate::device::wgpu::lower) src: BufferId,
    pub(in crate::device::wgpu::lower) chosen: BufferId,
    pub(in crate::device::wgpu::lower) weight: WeightId,
    pub(in crate::device::wgpu::lower) bias: Option<WeightId>,
    pub(in crate::device::wgpu::lower) n_expert: usize,
    /// Whether few rows of `src` become int8.
    pub(in crate::device::wgpu::lower) int8: bool,
    pub(in crate::device::wgpu::lower) dst: BufferId,
}

impl Finder<'_> {
    /// The product of a step with whole matrices of experts.
    fn expert_product(&self, step: usize) -> Option<ExpertProduct> {
        let Op::ExpertMatMul {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            int8_rows,
            dst,
        } = self.plan.steps[step].op
        else {
            return None;
        };
        let int8 = int8_rows > 0;
        self.places.is_whole(weight).then_some(ExpertProduct {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            int8,
            dst,
        })
    }

    /// The two products of a gated block of experts in their order, and all three steps.
    pub(super) fn expert_gated(&self, step: usize) -> Option<([usize; 2], ExpertGated)> {
        let Op::GatedActivation {
            gate,
            up,
            activation,
            dst,
        } = self.plan.steps[step].op
        else {
            return None;
        };
        let of_gate = self.writer(step, gate)?;
        let of_up = self.writer(step, up)?;
        let steps = [of_gate.min(of_up), of_gate.max(of_up)];
        let [gate, up] = [self.expert_product(of_gate)?, self.expert_product(of_up)?];
        let biases_together = match (gate.bias, up.bias) {
            (None, None) => true,
            // The kernel has the bias of `up` behind that of the gate.
            (Some(gate), Some(up)) => gate.0 < up.0 && self.places.are_together(&[gate, up]),
            _ => false,
        };
        let read = [gate.src, gate.chosen];
        let fits = [up.src, up.chosen] == read
            && gate.int8 == up.int8
            && ![gate.dst, up.dst, dst].iter().any(|id| read.contains(id))
            && self.is_untouched(steps[0]..step, dst)
            && self.is_untouched(steps[0]..steps[1], up.dst)
            && self.is_untouched(steps[0] + 1..steps[1], gate.dst)
            && gate.n_expert == up.n_expert
            && self.places.weight_type(gate.weight) == self.places.weight_type(up.weight)
            && self.places.are_together(&[gate.weight, up.weight])
            && biases_together;
        let gated = ExpertGated {
            gate,
            up,
            activation,
            dst,
        };
        fits.then_some((steps, gated))
    }
}
