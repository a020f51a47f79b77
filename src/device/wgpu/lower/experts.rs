//! The products of experts.

use super::fuse::ExpertGated;
use super::steps::Lowering;
use super::{Draft, whole};
use crate::device::wgpu::weights::WeightShard;
use crate::kernels::repack::{Matrix, team_size};
use crate::kernels::{Src, Variant, expert_gated, expert_matvec, matvec, row_stride};
use crate::plan::{BufferId, Extent, Op};

impl<'a> Lowering<'a> {
    /// What few rows of the source of a product are, and what they are bound as.
    fn expert_src(&self, src: BufferId, is_int8: bool) -> (Src, wgpu::BufferBinding<'a>) {
        match self.buffers.int8(src).filter(|_| is_int8) {
            Some(int8) => (Src::Int8, whole(int8)),
            None => (Src::F32, whole(self.buffers.activation(src))),
        }
    }

    /// Slots that share a row of a source.
    fn slots_per_src(&self, src: BufferId, n_chosen: usize) -> u32 {
        match self.plan.buffer(src).extent {
            Extent::Chosen(_) => 1,
            Extent::Tokens | Extent::Outputs => n_chosen as u32,
        }
    }

    /// One dispatch for each shard of the experts' weights, each of which writes what its rows give.
    pub(super) fn expert_matmul(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        let Op::ExpertMatMul {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            int8_rows,
            dst,
        } = *op
        else {
            return Vec::new();
        };
        let stride = |id| row_stride(self.width(id)) as u32;
        let [n_chosen, n_out] = [chosen, dst].map(|id| self.width(id));
        let draft = |shard: &'a WeightShard, (of_src, inputs): (Src, wgpu::BufferBinding<'a>)| {
            let matrix = shard.shard.matrix();
            let matrix = Matrix {
                team_size: team_size(n_out * n_chosen, matrix.units_per_row as usize),
                ..matrix
            };
            let params = expert_matvec::Params {
                matrix,
                src_stride: stride(src),
                dst_stride: stride(dst),
                n_pairs: matvec::n_pairs(matrix.team_size, of_src),
                has_bias: u32::from(bias.is_some()),
                n_out: n_out as u32,
                n_expert: n_expert as u32,
                n_chosen: n_chosen as u32,
                chosen_stride: stride(chosen),
                slots_per_src: self.slots_per_src(src, n_chosen),
                padding: [0; 3],
            };
            let [ids, outputs] = [chosen, dst].map(|id| whole(self.buffers.activation(id)));
            // Where there is no bias its binding is not read.
            let bias = bias.map_or(ids.clone(), |bias| self.shared.weights.vector(bias));
            let storage = vec![shard.binding(), inputs, ids, bias, outputs];
            let kernel = &expert_matvec::KERNEL;
            let draft = self.plain(step, dst, kernel, params, storage, expert_matvec::grid);
            Draft {
                variant: Variant {
                    weight: shard.shard.ty,
                    src: of_src,
                    ..draft.variant
                },
                ..draft
            }
        };
        let drafts = |shard: &'a WeightShard| {
            let few = draft(shard, self.expert_src(src, int8_rows > 0)).for_few(self.choice);
            let many = draft(shard, self.expert_src(src, false));
            [Some(few), many.for_many()]
        };
        let shards = self.shared.weights.shards(weight).iter();
        shards.flat_map(drafts).flatten().collect()
    }

    /// The dispatch of a gated block of experts, at the turn of its first product.
    pub(super) fn expert_gated(&self, step: usize, gated: &ExpertGated) -> Draft<'a> {
        let ExpertGated { gate, up, dst, .. } = gated;
        let weights = &self.shared.weights;
        let [gate_shard, up_shard] = [gate, up].map(|product| &weights.shards(product.weight)[0]);
        let (both, up_start) = gate_shard.binding_with(up_shard);
        let matrix = gate_shard.shard.matrix();
        let up_matrix = Matrix {
            planes: matrix.planes.map(|plane| plane + up_start),
            ..matrix
        };
        let strides = [gate.src, *dst, gate.chosen].map(|id| row_stride(self.width(id)));
        let counts = [*dst, gate.chosen].map(|id| self.width(id));
        let mut params =
            expert_gated::Params::new([matrix, up_matrix], strides, gated.activation, counts);
        params.slots_per_src = self.slots_per_src(gate.src, counts[1]);
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let mut biases = of(gate.chosen);
        if let (Some(of_gate), Some(of_up)) = (gate.bias, up.bias) {
            let [of_gate, of_up] = [of_gate, of_up].map(|bias| &weights.shards(bias)[0]);
            (biases, params.up_bias) = of_gate.binding_with(of_up);
            params.has_bias = 1;
        }
        let mut int8_dst = of(*dst);
        if let Some(int8) = self.buffers.int8(*dst) {
            params.has_int8 = 1;
            int8_dst = whole(int8);
        }
        let (src, few_src) = self.expert_src(gate.src, gate.int8);
        let storage = vec![
            both,
            few_src,
            of(gate.chosen),
            biases,
            of(gate.dst),
            of(up.dst),
            of(*dst),
            int8_dst,
        ];
        let kernel = &expert_gated::KERNEL;
        let draft = self.plain(step, *dst, kernel, params, storage, expert_gated::grid);
        Draft {
            variant: Variant {
                weight: gate_shard.shard.ty,
                src,
                is_wide: expert_gated::is_wide(&params),
                ..draft.variant
            },
            ..draft
        }
    }
}
