//! The dispatches of steps that carry a state from batch to batch, and of those that stand beside them.

use super::steps::Lowering;
use super::{Draft, whole};
use crate::device::recurrent::{delta_shape, scan_shape};
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
            Op::StateScan {
                x,
                dt,
                b,
                c,
                a,
                d,
                state,
                dst,
                ..
            } => {
                use kernels::state_scan::{KERNEL, Params, grid};
                let columns = |id| self.shared.weights.get(id).n_cols;
                let Some((shape, places)) = scan_shape(self.plan, columns, op) else {
                    return Vec::new();
                };
                let params = Params::new(&shape, places);
                let state = whole(&self.buffers.states[state.0]);
                let [x, b, c] = [x, b, c].map(|columns| of(columns.buffer));
                let storage = vec![x, of(dt), b, c, vector(a), vector(d), state, of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::DeltaRule {
                qkv,
                alpha,
                beta,
                a,
                bias,
                state,
                dst,
                ..
            } => {
                use kernels::delta_rule::{KERNEL, Params, grid};
                let Some(shape) = delta_shape(self.plan, op) else {
                    return Vec::new();
                };
                let params = Params::new(&shape);
                let state = whole(&self.buffers.states[state.0]);
                let inputs = [of(qkv), of(alpha), of(beta), vector(a), vector(bias)];
                let storage = inputs.into_iter().chain([state, of(dst)]).collect();
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::GroupNorm {
                src,
                weight,
                group,
                eps,
                dst,
            } => {
                use kernels::group_norm::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), group, eps);
                let storage = vec![of(src), vector(weight), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::TakeColumns {
                src,
                first,
                length,
                period,
                dst,
            } => {
                use kernels::take_columns::{KERNEL, Params, grid};
                let widths = [src, dst].map(|id| self.width(id));
                let params = Params::new(widths, first, [length, period]);
                vec![self.plain(index, dst, &KERNEL, params, vec![of(src), of(dst)], grid)]
            }
            _ => Vec::new(),
        }
    }
}
