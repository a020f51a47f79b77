//! The products of experts.

use super::steps::Lowering;
use super::{Draft, whole};
use crate::kernels::{Src, Variant, expert_matvec, matvec, row_stride};
use crate::plan::{Extent, Op};

impl<'a> Lowering<'a> {
    /// One dispatch for each shard of the experts' weights, each of which writes what its rows give.
    pub(super) fn expert_matmul(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        let Op::ExpertMatMul {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            dst,
        } = *op
        else {
            return Vec::new();
        };
        let stride = |id| row_stride(self.width(id)) as u32;
        let n_chosen = self.width(chosen) as u32;
        let shards = self.shared.weights.shards(weight).iter();
        let draft = |shard: &'a crate::device::wgpu::weights::WeightShard| {
            let matrix = shard.shard.matrix();
            let params = expert_matvec::Params {
                matrix,
                src_stride: stride(src),
                dst_stride: stride(dst),
                n_pairs: matvec::n_pairs(matrix.team_size, Src::F32),
                has_bias: u32::from(bias.is_some()),
                n_out: self.width(dst) as u32,
                n_expert: n_expert as u32,
                n_chosen,
                chosen_stride: stride(chosen),
                slots_per_src: match self.plan.buffer(src).extent {
                    Extent::Chosen(_) => 1,
                    Extent::Tokens | Extent::Outputs => n_chosen,
                },
                padding: [0; 3],
            };
            let [inputs, ids, outputs] =
                [src, chosen, dst].map(|id| whole(self.buffers.activation(id)));
            // Where there is no bias its binding is not read.
            let bias = bias.map_or(ids.clone(), |bias| self.shared.weights.vector(bias));
            let storage = vec![shard.binding(), inputs, ids, bias, outputs];
            let kernel = &expert_matvec::KERNEL;
            let draft = self.plain(step, dst, kernel, params, storage, expert_matvec::grid);
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
