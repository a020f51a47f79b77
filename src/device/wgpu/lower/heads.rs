//! The products of heads with matrices of their own.

use super::steps::Lowering;
use super::{Draft, whole};
use crate::device::wgpu::weights::WeightShard;
use crate::kernels::head_matvec::{Heads, KERNEL, Params, grid};
use crate::kernels::{Src, Variant, matvec};
use crate::plan::Op;

impl<'a> Lowering<'a> {
    /// One dispatch for each shard of the weights, each of which writes what its rows give.
    pub(super) fn head_matmul(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        let Op::HeadMatMul {
            src,
            weight,
            n_head,
            dst,
        } = *op
        else {
            return Vec::new();
        };
        let matrices = self.shared.weights.get(weight);
        let heads = Heads {
            n_head,
            src_dim: self.width(src) / n_head,
            n_out: matrices.n_rows / n_head,
            n_cols: matrices.n_cols,
        };
        let shards = self.shared.weights.shards(weight).iter();
        let draft = |shard: &'a WeightShard| {
            let matrix = shard.shard.matrix();
            let n_pairs = matvec::n_pairs(matrix.team_size, Src::F32);
            let params = Params::new(matrix, n_pairs, &heads);
            let [inputs, outputs] = [src, dst].map(|id| whole(self.buffers.activation(id)));
            let storage = vec![shard.binding(), inputs, outputs];
            let draft = self.plain(step, dst, &KERNEL, params, storage, grid);
            Draft {
                variant: Variant {
                    weight: shard.shard.ty,
                    ..draft.variant
                },
                ..draft
            }
        };
        shards.map(draft).collect()
    }
}
