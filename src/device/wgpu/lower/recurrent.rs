//! The dispatches of steps that carry a state from batch to batch.

use super::steps::Lowering;
use super::{Draft, whole};
use crate::kernels;
use crate::model::WeightId;
use crate::plan::{BufferId, Op};

impl<'a> Lowering<'a> {
    pub(super) fn recurrent(&self, index: usize, op: &Op) -> Vec<Draft<'a>> {
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let vector = |id: WeightId| self.shared.weights.vector(id);
        match *op {
            Op::CausalConv {
                src,
                weight,
                bias,
                n_taps,
                activation,
                state,
                dst,
            } => {
                use kernels::causal_conv::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), n_taps, activation, bias.is_some());
                let bias = bias.unwrap_or(weight);
                let state = whole(&self.buffers.states[state.0]);
                let storage = vec![of(src), vector(weight), vector(bias), state, of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            _ => Vec::new(),
        }
    }
}
