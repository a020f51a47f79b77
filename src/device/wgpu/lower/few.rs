//! The kernels that compute several steps of a batch of few rows.

use super::fuse::{Gated, Group, Heads, Norm, Product};
use super::steps::Lowering;
use super::{Draft, whole};
use crate::device::wgpu::buffer::Buffer;
use crate::device::wgpu::tune::Subject;
use crate::kernels::repack::Matrix;
use crate::kernels::teams::{FewRows, Of};
use crate::kernels::{Src, Variant, matvec_gated, matvec_heads, rope, row_stride};
use crate::plan::BufferId;

impl<'a> Lowering<'a> {
    /// The dispatch of a group of steps, at the turn of the first.
    pub(super) fn fused(&self, step: usize, group: &Group, writes: &[usize]) -> Draft<'a> {
        let draft = match group {
            Group::Heads(heads) => self.heads(step, heads, writes),
            Group::Gated(gated) => self.gated(step, gated),
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

    /// Where few rows of a buffer go that some steps write.
    fn written(&self, steps: &[usize], buffer: BufferId) -> &'a Buffer {
        let mut writers = steps
            .iter()
            .filter(|&&step| self.plan.steps[step].op.dst() == Some(buffer));
        let own = writers.find_map(|step| self.own.get(step).copied());
        own.unwrap_or(self.buffers.activation(buffer))
    }

    fn heads(&self, step: usize, heads: &Heads, writes: &[usize]) -> Draft<'a> {
        let Product {
            src, weight, dst, ..
        } = heads.product;
        let shard = &self.shared.weights.shards(weight)[0];
        let matrix = shard.shard.matrix();
        let width = self.width(dst);
        let strides = [src, dst].map(|buffer| row_stride(self.width(buffer)));
        let (few, few_src) = self.few_src(&heads.product, heads.norm);
        let of_product = FewRows {
            of: Of::Heads,
            weight: shard.shard.ty,
            src: few,
            n_out: shard.shard.n_rows,
            units_per_row: matrix.units_per_row as usize,
        };
        let teams = self.choice.teams(&of_product);
        let matrix = Matrix {
            team_size: teams.size,
            ..matrix
        };
        let mut params = matvec_heads::Params::new(matrix, strides, teams.n_pairs(), width);

        // What is not wanted is not touched, whatever is bound for it.
        let product = whole(self.written(writes, dst));
        let mut bias = shard.binding();
        let mut table = shard.binding();
        let mut turned = product.clone();
        let mut cache = product.clone();
        if let Some(weight) = heads.bias {
            params.has_bias = 1;
            bias = self.shared.weights.vector(weight);
        }
        if let Some(of_rope) = heads.rope {
            let spec = &self.plan.rope_tables[of_rope.table.0];
            let of_rope_params = rope::Params::new(width, of_rope.head_dim, spec);
            params = params.with_rope(&of_rope_params);
            table = whole(&self.tables[of_rope.table.0]);
            turned = whole(self.written(writes, of_rope.dst));
        }
        if let Some((layer, part)) = heads.cache {
            params.has_cache = 1;
            cache = whole(&self.buffers.caches[layer][part]);
        }
        if let Some(norm) = heads.norm {
            (params.eps, params.writes_norm) = (norm.eps, u32::from(norm.writes));
        }
        let norm = self.norm_storage(&heads.product, heads.norm, &product);
        let mut storage = vec![
            shard.binding(),
            few_src,
            bias,
            table,
            product,
            turned,
            cache,
        ];
        storage.extend(norm);
        let kernel = &matvec_heads::KERNEL;
        let draft = self.plain(step, dst, kernel, params, storage, matvec_heads::grid);
        Draft {
            subject: Some(Subject::FewRows(of_product)),
            variant: Variant {
                weight: shard.shard.ty,
                src: few,
                ..teams.put_into(draft.variant)
            },
            ..draft
        }
    }

    fn gated(&self, step: usize, gated: &Gated) -> Draft<'a> {
        let Gated { gate, up, dst, .. } = gated;
        let gate_shard = &self.shared.weights.shards(gate.weight)[0];
        let up_shard = &self.shared.weights.shards(up.weight)[0];
        let (weights, up_start) = gate_shard.binding_with(up_shard);
        let (few, few_src) = self.few_src(gate, gated.norm);
        let matrix = gate_shard.shard.matrix();
        let product = FewRows {
            of: Of::Gated,
            weight: gate_shard.shard.ty,
            src: few,
            n_out: gate_shard.shard.n_rows,
            units_per_row: matrix.units_per_row as usize,
        };
        let teams = self.choice.teams(&product);
        let matrix = Matrix {
            team_size: teams.size,
            ..matrix
        };
        let up_matrix = Matrix {
            planes: matrix.planes.map(|plane| plane + up_start),
            ..matrix
        };
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
                weight: gate_shard.shard.ty,
                src: few,
                ..teams.put_into(draft.variant)
            },
            ..draft
        }
    }
}
