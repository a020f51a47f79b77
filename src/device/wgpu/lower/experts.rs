//! The products of experts.

use super::buffers::tiling;
use super::fuse::ExpertGated;
use super::steps::Lowering;
use super::{Draft, Rounded, whole};
use crate::device::wgpu::select::Rows;
use crate::device::wgpu::weights::WeightShard;
use crate::kernels::expert_tiles::{self, Tiling};
use crate::kernels::matmul_coop::Tile;
use crate::kernels::repack::{Matrix, team_size};
use crate::kernels::{
    ROW_ALIGNMENT, Src, Variant, expert_gated, expert_matmul, expert_matmul_coop, expert_matvec,
    matvec, row_stride,
};
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
            let many = self.many_with_experts(step, op, shard);
            many.into_iter().chain([few])
        };
        let shards = self.shared.weights.shards(weight).iter();
        shards.flat_map(drafts).collect()
    }

    /// How products of many rows with experts are cut: cooperative matrices have tiles of their own.
    fn tilings(&self, op: &Op) -> Vec<(Rows, Option<Tile>, Tiling)> {
        let Op::ExpertMatMul {
            chosen,
            weight,
            n_expert,
            dst,
            ..
        } = *op
        else {
            return Vec::new();
        };
        let of_weight = self.shared.weights.get(weight);
        let units_per_row = of_weight.n_cols.div_ceil(ROW_ALIGNMENT);
        let counts = [n_expert, self.width(chosen)];
        let n_out = self.width(dst);
        let tiles = self
            .choice
            .expert_tiles(of_weight.ty, n_out, units_per_row, counts);
        let tiles = match tiles.is_empty() {
            true => vec![(Rows::MANY, None)],
            false => tiles
                .into_iter()
                .map(|(rows, tile)| (rows, Some(tile)))
                .collect(),
        };
        let with_tiling = |(rows, tile): (Rows, Option<Tile>)| {
            let tile_rows = tile.map_or(expert_matmul::TILE, |tile| tile.rows());
            Some((rows, tile, tiling(self.plan, op, tile_rows)?))
        };
        tiles.into_iter().filter_map(with_tiling).collect()
    }

    /// The tables of tiles that a product of many rows lacks.
    pub(super) fn expert_tables(
        &self,
        step: usize,
        op: &Op,
        rounded: &mut Rounded,
    ) -> Vec<Draft<'a>> {
        use expert_tiles::{KERNEL, grid};
        let Op::ExpertMatMul { chosen, .. } = *op else {
            return Vec::new();
        };
        let mut drafts = Vec::new();
        for (rows, _, tiling) in self.tilings(op) {
            let Some(table) = self.buffers.expert_tiles(tiling.tile_rows) else {
                continue;
            };
            let tiled = &mut rounded.tiled;
            let is_same = |ids, tile_rows| ids == chosen && tile_rows == tiling.tile_rows;
            let is_there = tiled
                .iter()
                .any(|(ids, n, there)| is_same(*ids, *n) && there.contains(&rows));
            if is_there {
                continue;
            }
            // A table has one choice of experts.
            tiled.retain(|(ids, n, _)| *ids == chosen || *n != tiling.tile_rows);
            tiled.push((chosen, tiling.tile_rows, rows.clone()));
            let storage = vec![whole(self.buffers.activation(chosen)), whole(table)];
            let draft = self.plain(step, chosen, &KERNEL, tiling.params(), storage, grid);
            drafts.push(Draft {
                writes: Vec::new(),
                rows,
                ..draft
            });
        }
        drafts
    }

    /// The dispatches of many rows with a shard of the experts' weights.
    fn many_with_experts(&self, step: usize, op: &Op, shard: &'a WeightShard) -> Vec<Draft<'a>> {
        let Op::ExpertMatMul {
            src,
            chosen,
            bias,
            dst,
            ..
        } = *op
        else {
            return Vec::new();
        };
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let draft = |(rows, tile, tiling): (Rows, Option<Tile>, Tiling)| {
            let table = whole(self.buffers.expert_tiles(tiling.tile_rows)?);
            let params = expert_matmul::Params {
                matrix: shard.shard.matrix(),
                src_stride: row_stride(self.width(src)) as u32,
                dst_stride: row_stride(self.width(dst)) as u32,
                n_out: self.width(dst) as u32,
                has_bias: u32::from(bias.is_some()),
                slots_per_src: self.slots_per_src(src, self.width(chosen)),
                order_start: tiling.order_start() as u32,
                padding: [0; 2],
            };
            let bias = bias.map_or(table.clone(), |bias| self.shared.weights.vector(bias));
            let mut storage = vec![shard.binding()];
            let (kernel, outputs) = match tile {
                Some(tile) => {
                    let halves = self.buffers.f16_rows.as_ref()?;
                    storage.extend(halves.each_ref().map(whole));
                    (&expert_matmul_coop::KERNEL, tile.outputs())
                }
                None => {
                    storage.push(of(src));
                    (&expert_matmul::KERNEL, expert_matmul::TILE)
                }
            };
            storage.extend([table, bias, of(dst)]);
            let grid =
                move |params: &_, n_slots| expert_matmul::grid(&tiling, outputs, params, n_slots);
            let draft = self.plain(step, dst, kernel, params, storage, grid);
            Some(Draft {
                rows,
                variant: Variant {
                    weight: shard.shard.ty,
                    tile,
                    ..draft.variant
                },
                ..draft
            })
        };
        self.tilings(op).into_iter().filter_map(draft).collect()
    }

    /// The dispatch of a gated block of experts, at the turn of its first product.
    pub(super) fn expert_gated(&self, step: usize, gated: &ExpertGated) -> Draft<'a> {
        let ExpertGated { gate, up, dst, .. } = gated;
        let weights = &self.shared.weights;
        let ids = [gate.weight, up.weight];
        let (both, starts) = weights.joint_binding(&ids);
        let shards = ids.map(|id| &weights.shards(id)[0].shard);
        let [matrix, up_matrix] = [0, 1].map(|i| shards[i].matrix().behind(starts[i]));
        let strides = [gate.src, *dst, gate.chosen].map(|id| row_stride(self.width(id)));
        let counts = [*dst, gate.chosen].map(|id| self.width(id));
        let mut params =
            expert_gated::Params::new([matrix, up_matrix], strides, gated.activation, counts);
        params.slots_per_src = self.slots_per_src(gate.src, counts[1]);
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let mut biases = of(gate.chosen);
        if let (Some(of_gate), Some(of_up)) = (gate.bias, up.bias) {
            let (binding, starts) = weights.joint_binding(&[of_gate, of_up]);
            (biases, params.up_bias) = (binding, starts[1]);
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
                weight: shards[0].ty,
                src,
                ..expert_gated::teams(&params).put_into(draft.variant)
            },
            ..draft
        }
    }
}
