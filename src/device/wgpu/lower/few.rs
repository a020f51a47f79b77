//! The kernels that compute several steps of a batch of few rows.

use super::fuse::{Gated, Group, Heads, Norm, Product, Projection};
use super::steps::Lowering;
use super::{Draft, whole};
use crate::device::wgpu::select::FEW_ROWS;
use crate::device::wgpu::tune::Subject;
use crate::kernels::repack::Matrix;
use crate::kernels::teams::{FewRows, Of};
use crate::kernels::{Src, Variant, matvec_gated, matvec_heads, rope, row_stride};
use crate::model::WeightId;
use crate::plan::BufferId;

const _: () = assert!(FEW_ROWS <= matvec_heads::KEPT_ROWS);

impl<'a> Lowering<'a> {
    /// The dispatch of a group of steps, at the turn of the first.
    pub(super) fn fused(&self, step: usize, group: &Group, writes: &[usize]) -> Draft<'a> {
        let draft = match group {
            Group::Heads(heads) => self.heads(step, heads, writes),
            Group::Gated(gated) => self.gated(step, gated),
            Group::ExpertGated(gated) => self.expert_gated(step, gated),
        };
        Draft {
            writes: writes.to_vec(),
            ..draft.for_few(self.choice)
        }
    }

    /// What few rows of a product's source are, and what they are bound as.
    fn few_src(&self, product: &Product, norm: Option<Norm>) -> (Src, wgpu::BufferBinding<'a>) {
        let f32_rows = |buffer| whole(self.buffers.activation(buffer));
        match (norm, self.buffers.int8(product.src)) {
            (Some(norm), _) => (Src::Norm, f32_rows(norm.src)),
            (None, Some(int8)) if product.int8 => (Src::Int8, whole(int8)),
            (None, _) => (Src::F32, f32_rows(product.src)),
        }
    }

    /// What the norm of a product's source has beside it; `other` is bound where its result is not written.
    fn norm_storage(
        &self,
        product: &Product,
        norm: Option<Norm>,
        other: &wgpu::BufferBinding<'a>,
    ) -> Vec<wgpu::BufferBinding<'a>> {
        let of = |norm: Norm| {
            let weight = self.shared.weights.vector(norm.weight);
            let normed = match norm.writes {
                true => whole(self.buffers.activation(product.src)),
                false => other.clone(),
            };
            vec![weight, normed]
        };
        norm.map(of).unwrap_or_default()
    }

    fn heads(&self, step: usize, heads: &Heads, writes: &[usize]) -> Draft<'a> {
        let first = &heads.projections[0];
        let src = first.product.src;
        let (few, few_src) = self.few_src(&first.product, heads.norm);
        let of_each = heads.projections.iter().flat_map(Projection::weights);
        let ids: Vec<WeightId> = of_each.collect();
        let (weights, starts) = self.shared.weights.joint_binding(&ids);
        let mut starts = starts.into_iter();
        let mut start = || starts.next().unwrap_or(0);

        let own = |buffer: BufferId| {
            let mut writers = writes
                .iter()
                .filter(|&&step| self.plan.steps[step].op.dst() == Some(buffer));
            writers.find_map(|step| self.own.get(step))
        };
        let mut kept = None;
        let mut projections = Vec::new();
        let mut results = Vec::new();
        for projection in &heads.projections {
            let Projection { product, rope, .. } = projection;
            let matrix = self.shared.weights.shards(product.weight)[0].shard.matrix();
            let matrix = matrix.behind(start());
            let place = projection.kept().first().and_then(|&buffer| own(buffer));
            projections.push(matvec_heads::Projection {
                bias_at: projection.bias.map(|_| start()),
                has_rope: rope.is_some(),
                has_cache: projection.cache.is_some(),
                kept_at: place.map_or(0, |place| (place.offset / 4) as u32),
                ..matvec_heads::Projection::new(matrix)
            });
            kept = kept.or(place.map(|place| whole(&place.buffer)));
            results.push(match projection.cache {
                Some((layer, part)) => whole(&self.buffers.caches[layer][part]),
                None => {
                    let last = rope.map_or(product.dst, |rope| rope.dst);
                    whole(self.buffers.activation(last))
                }
            });
        }

        let n_rows = projections.iter().map(|of| of.matrix.n_rows).sum::<u32>();
        let weight = self.shared.weights.get(first.product.weight).ty;
        let of_all = FewRows {
            of: Of::Heads,
            weight,
            src: few,
            n_out: n_rows as usize,
            units_per_row: projections[0].matrix.units_per_row as usize,
        };
        let teams = self.choice.teams(&of_all);
        let src_stride = row_stride(self.width(src));
        let mut params = matvec_heads::Params::new(&projections, &teams, src_stride);
        let mut ropes = heads
            .projections
            .iter()
            .map(|of| of.rope.map(|rope| (of, rope)));
        // What is not wanted is not touched, whatever is bound for it.
        let mut table = weights.clone();
        if let Some((of, rope)) = ropes.find_map(|rope| rope) {
            let spec = &self.plan.rope_tables[rope.table.0];
            let width = self.width(of.product.dst);
            params = params.with_rope(&rope::Params::new(width, rope.head_dim, spec));
            table = whole(&self.tables[rope.table.0]);
        }
        if let Some(norm) = heads.norm {
            (params.eps, params.writes_norm) = (norm.eps, u32::from(norm.writes));
        }
        let unwritten = results[0].clone();
        results.resize(matvec_heads::MOST_PROJECTIONS, unwritten.clone());
        let norm = self.norm_storage(&first.product, heads.norm, &unwritten);
        let mut storage = vec![weights, few_src, table, kept.unwrap_or(unwritten)];
        storage.extend(results);
        storage.extend(norm);
        let kernel = &matvec_heads::KERNEL;
        let dst = first.product.dst;
        let draft = self.plain(step, dst, kernel, params, storage, matvec_heads::grid);
        Draft {
            subject: Some(Subject::FewRows(of_all)),
            variant: Variant {
                weight,
                src: few,
                ..teams.put_into(draft.variant)
            },
            ..draft
        }
    }

    fn gated(&self, step: usize, gated: &Gated) -> Draft<'a> {
        let Gated { gate, up, dst, .. } = gated;
        let ids = [gate.weight, up.weight];
        let (weights, starts) = self.shared.weights.joint_binding(&ids);
        let shards = ids.map(|id| &self.shared.weights.shards(id)[0].shard);
        let (few, few_src) = self.few_src(gate, gated.norm);
        let product = FewRows {
            of: Of::Gated,
            weight: shards[0].ty,
            src: few,
            n_out: shards[0].n_rows,
            units_per_row: shards[0].matrix().units_per_row as usize,
        };
        let teams = self.choice.teams(&product);
        let [matrix, up_matrix] = [0, 1].map(|i| Matrix {
            team_size: teams.size,
            ..shards[i].matrix().behind(starts[i])
        });
        let strides = [gate.src, *dst].map(|buffer| row_stride(self.width(buffer)));
        let mut params = matvec_gated::Params::new(matrix, up_matrix, strides, gated.activation);
        let [gate_dst, up_dst, result] =
            [gate.dst, up.dst, *dst].map(|buffer| whole(self.buffers.activation(buffer)));
        let mut int8_dst = result.clone();
        if let Some(int8) = self.buffers.int8(*dst) {
            params.has_int8 = 1;
            int8_dst = whole(int8);
        }
        if let Some(norm) = gated.norm {
            (params.eps, params.writes_norm) = (norm.eps, u32::from(norm.writes));
        }
        let norm = self.norm_storage(gate, gated.norm, &result);
        let mut storage = vec![weights, few_src, gate_dst, up_dst, result, int8_dst];
        storage.extend(norm);
        let kernel = &matvec_gated::KERNEL;
        let draft = self.plain(step, *dst, kernel, params, storage, matvec_gated::grid);
        Draft {
            subject: Some(Subject::FewRows(product)),
            variant: Variant {
                weight: shards[0].ty,
                src: few,
                ..teams.put_into(draft.variant)
            },
            ..draft
        }
    }
}
