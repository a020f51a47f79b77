//! The dispatches of each step on its own.

use super::buffers::attention_shape;
use super::fuse::Part;
use super::{Draft, Own, Rounded, SessionBuffers, whole};
use crate::device::wgpu::Shared;
use crate::device::wgpu::buffer::Buffer;
use crate::device::wgpu::select::{Choice, Rows};
use crate::device::wgpu::tune::{ManyRows, Subject};
use crate::device::wgpu::weights::WeightShard;
use crate::kernels::attention_few::Heads;
use crate::kernels::repack::Matrix;
use crate::kernels::teams::{FewRows, Of};
use crate::kernels::{self, Kernel, Src, Variant, row_stride};
use crate::kv_cache::KvLayout;
use crate::model::WeightId;
use crate::plan::{BufferId, EmbedIndex, Extent, Op, Plan, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Whatever the rows of a batch see.
const ALWAYS: RangeInclusive<usize> = 0..=usize::MAX;

pub(super) struct Lowering<'a> {
    pub(super) shared: &'a Shared,
    pub(super) plan: &'a Plan,
    pub(super) kv: &'a KvLayout,
    pub(super) buffers: &'a SessionBuffers,
    pub(super) own: BTreeMap<usize, &'a Own>,
    pub(super) tables: &'a [Buffer],
    pub(super) choice: &'a Choice,
}

impl<'a> Lowering<'a> {
    pub(super) fn width(&self, id: BufferId) -> usize {
        self.plan.buffer(id).width
    }

    pub(super) fn step(&self, index: usize, op: &Op) -> Vec<Draft<'a>> {
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let vector = |id: WeightId| self.shared.weights.vector(id);
        match *op {
            Op::Embed { .. } => self.embed(index, op),
            Op::MatMul { .. } => self.matmul(index, op),
            Op::ChooseExperts {
                logits,
                bias,
                gating,
                groups,
                dst,
            } => {
                use kernels::choose_experts::{KERNEL, Params, grid};
                let counts = [logits, dst].map(|id| self.width(id));
                let params = Params::new(counts, gating, bias.is_some(), groups);
                let bias = bias.map_or(of(logits), vector);
                let storage = vec![of(logits), bias, of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::ExpertWeights {
                logits,
                chosen,
                gating,
                normalised,
                scale,
                factors,
                dst,
            } => {
                use kernels::expert_weights::{KERNEL, Params, grid};
                let counts = [logits, dst].map(|id| self.width(id));
                let params = Params::new(counts, gating, normalised, scale, factors.is_some());
                let factors = factors.map_or(of(logits), vector);
                let storage = vec![of(logits), of(chosen), factors, of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::ExpertMatMul { .. } => self.expert_matmul(index, op),
            Op::HeadMatMul { .. } => self.head_matmul(index, op),
            Op::WeighSlots { src, weights, dst } => {
                use kernels::weigh_slots::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), self.width(weights));
                let storage = vec![of(src), of(weights), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::WeightedSum { src, weights, dst } => {
                use kernels::weighted_sum::{KERNEL, Params, grid};
                let n_slots = self.plan.buffer(src).extent.n_slots();
                let params = Params::new(self.width(dst), n_slots);
                let params = match weights {
                    Some(_) => params,
                    None => params.unweighted(),
                };
                let storage = vec![of(src), of(weights.unwrap_or(src)), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::RmsNorm {
                src,
                weight,
                group,
                eps,
                dst,
            } => {
                use kernels::rms_norm::{F16, INT8, KERNEL, Params, grid};
                let params = Params {
                    is_plain: u32::from(weight.is_none()),
                    ..Params::new(self.width(dst), group, eps)
                };
                let weight = weight.map_or(of(src), vector);
                let norm = |rows, rounds, [int8, halves, scales]: [wgpu::BufferBinding<'a>; 3]| {
                    let params = Params { rounds, ..params };
                    let storage = vec![of(src), weight.clone(), of(dst), int8, halves, scales];
                    let draft = self.plain(index, dst, &KERNEL, params, storage, grid);
                    match rows == Rows::FEW {
                        true => draft.for_few(self.choice),
                        false => Draft { rows, ..draft },
                    }
                };
                let nothing = || of(dst);
                let few = match self.int8_of_norm(op) {
                    Some(int8) => norm(Rows::FEW, INT8, [whole(int8), nothing(), nothing()]),
                    None => norm(Rows::FEW, 0, [nothing(), nothing(), nothing()]),
                };
                let many = match self.f16_of_rows(op) {
                    Some([halves, scales]) => {
                        norm(Rows::MANY, F16, [nothing(), whole(halves), whole(scales)])
                    }
                    None => norm(Rows::MANY, 0, [nothing(), nothing(), nothing()]),
                };
                vec![few, many]
            }
            Op::LayerNorm {
                src,
                weight,
                bias,
                group,
                eps,
                dst,
            } => {
                use kernels::layer_norm::{KERNEL, Params, grid};
                let n_weight = self.shared.weights.get(weight).n_cols;
                let params = Params::new(self.width(dst), group, n_weight, eps, bias.is_some());
                let bias = bias.unwrap_or(weight);
                let storage = vec![of(src), vector(weight), vector(bias), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::Rope {
                src,
                table,
                head_dim,
                dst,
            } => {
                use kernels::rope::{KERNEL, Params, grid};
                let spec = &self.plan.rope_tables[table.0];
                let params = Params::new(self.width(dst), head_dim, spec);
                let storage = vec![of(src), whole(&self.tables[table.0]), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::StoreKv { k, v, layer } => {
                use kernels::store_kv::{KERNEL, Params, grid};
                let [keys, values] = self.buffers.caches[layer].each_ref().map(whole);
                let params = Params::new([k, v].map(|id| self.width(id)));
                vec![self.plain(
                    index,
                    k,
                    &KERNEL,
                    params,
                    vec![of(k), of(v), keys, values],
                    grid,
                )]
            }
            Op::Attention { .. } => self.attention(index, op),
            Op::GatedActivation {
                gate,
                up,
                activation,
                dst,
            } => {
                use kernels::gated_activation::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), activation);
                let gated = |rows, has_f16, [halves, scales]: [wgpu::BufferBinding<'a>; 2]| {
                    let params = Params { has_f16, ..params };
                    let storage = vec![of(gate), of(up), of(dst), halves, scales];
                    let draft = self.plain(index, dst, &KERNEL, params, storage, grid);
                    Draft { rows, ..draft }
                };
                let many = match self.f16_of_rows(op) {
                    Some(f16_rows) => gated(Rows::MANY, 1, f16_rows.each_ref().map(whole)),
                    None => gated(Rows::MANY, 0, [of(dst), of(dst)]),
                };
                vec![gated(Rows::FEW, 0, [of(dst), of(dst)]), many]
            }
            Op::Map { src, function, dst } => {
                use kernels::map::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), function);
                vec![self.plain(index, dst, &KERNEL, params, vec![of(src), of(dst)], grid)]
            }
            Op::CausalConv { .. }
            | Op::StateScan { .. }
            | Op::DeltaRule { .. }
            | Op::GroupNorm { .. }
            | Op::TakeColumns { .. } => self.recurrent(index, op),
            // The product in front of it has added its residual.
            Op::Add { .. } if self.residual_of(index.wrapping_sub(1)).is_some() => Vec::new(),
            Op::Add { a, b, dst } => {
                use kernels::add::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst));
                vec![self.plain(
                    index,
                    dst,
                    &KERNEL,
                    params,
                    vec![of(a), of(b), of(dst)],
                    grid,
                )]
            }
            Op::SelectOutputs { src, dst } => {
                use kernels::select_outputs::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst));
                vec![self.plain(index, dst, &KERNEL, params, vec![of(src), of(dst)], grid)]
            }
        }
    }

    fn attention(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        use kernels::{attention, attention_coop, attention_few, attention_merge};
        let (
            &Op::Attention {
                q,
                layer,
                sinks,
                dst,
                ..
            },
            Some(shape),
        ) = (op, attention_shape(self.kv, op))
        else {
            return Vec::new();
        };
        let of = |id: BufferId| whole(self.buffers.activation(id));
        let [keys, values] = self.buffers.caches[layer].each_ref().map(whole);
        let params = attention::Params::new(&shape);
        let storage = vec![of(q), keys.clone(), values.clone(), of(dst)];
        let mut with_sinks = storage.clone();
        let sinks = sinks.map_or(of(q), |id| self.shared.weights.vector(id));
        with_sinks.insert(3, sinks.clone());
        let any = self.plain(
            step,
            dst,
            &attention::KERNEL,
            params,
            with_sinks,
            attention::grid,
        );
        let tile = self.choice.attention_tile(shape.head_dim);
        let tile = tile.filter(|_| attention_coop::fits(&shape));
        let many = tile.map(|tile| {
            let kernel = &attention_coop::KERNEL;
            let grid = move |params: &_, n_rows| attention_coop::grid(tile, params, n_rows);
            let mut storage = storage;
            storage.push(sinks.clone());
            let draft = self.plain(step, dst, kernel, params, storage, grid);
            Draft {
                rows: Rows::MANY,
                variant: Variant {
                    attention_tile: Some(tile),
                    ..draft.variant
                },
                ..draft
            }
        });
        let Some(partials) = self
            .buffers
            .partials
            .as_ref()
            .filter(|_| attention_few::fits(&shape))
        else {
            return match many {
                Some(many) => vec![
                    Draft {
                        rows: Rows::FEW,
                        ..any
                    },
                    many,
                ],
                None => vec![any],
            };
        };

        let splits = self.choice.splits(&shape);
        let (most_whole, n_splits) = (splits.most_whole, splits.n);
        let subject = (n_splits > 1).then(|| Subject::Attention((&shape).into(), self.kv.ty));
        let int8 = self.int8_of_attention(op);
        let int8_binding = int8.map_or(of(dst), whole);
        let few = |heads: Heads, n_splits: usize, visible| {
            let params = attention_few::Params::new(&shape, n_splits, int8.is_some());
            let storage = vec![
                of(q),
                keys.clone(),
                values.clone(),
                of(dst),
                int8_binding.clone(),
                whole(partials),
                sinks.clone(),
            ];
            let kernel = &attention_few::KERNEL;
            let grid = move |params: &_, n_rows| attention_few::grid(params, heads, n_rows);
            let draft = self.plain(step, dst, kernel, params, storage, grid);
            let draft = Draft {
                visible,
                subject,
                variant: Variant {
                    heads: Some(heads),
                    ..draft.variant
                },
                ..draft
            };
            draft.for_few(self.choice)
        };
        let mut drafts = vec![
            many.unwrap_or(Draft {
                rows: Rows::MANY,
                ..any
            }),
            few(Heads::whole(&shape), 1, 0..=most_whole),
        ];
        if n_splits > 1 {
            let visible = most_whole.saturating_add(1)..=usize::MAX;
            let split = few(Heads::shared(&shape), n_splits, visible.clone());
            let params = attention_few::Params::new(&shape, n_splits, int8.is_some());
            let storage = vec![whole(partials), of(dst), int8_binding, sinks.clone()];
            let kernel = &attention_merge::KERNEL;
            let merge = self.plain(step, dst, kernel, params, storage, attention_merge::grid);
            drafts.push(Draft {
                writes: Vec::new(),
                ..split
            });
            let merge = Draft {
                visible,
                subject,
                variant: Variant {
                    heads: Some(Heads::merge(&shape)),
                    ..merge.variant
                },
                ..merge
            };
            drafts.push(merge.for_few(self.choice));
        }
        drafts
    }

    /// Where attention of few rows writes their int8 form too.
    fn int8_of_attention(&self, op: &Op) -> Option<&'a Buffer> {
        let shape = attention_shape(self.kv, op)?;
        let int8 = self.buffers.int8(op.dst()?)?;
        let writes = self.choice.fuses && kernels::attention_few::writes_int8(&shape);
        writes.then_some(int8)
    }

    /// A dispatch for any batch of a kernel without a weight matrix; its rows are those of `rows_like`.
    pub(super) fn plain<P: bytemuck::Pod + Send>(
        &self,
        step: usize,
        rows_like: BufferId,
        kernel: &'static Kernel,
        params: P,
        storage: Vec<wgpu::BufferBinding<'a>>,
        grid: impl Fn(&P, usize) -> [u32; 3] + Send + 'static,
    ) -> Draft<'a> {
        Draft {
            step,
            writes: vec![step],
            is_sentinel: false,
            rows: Rows::ANY,
            visible: ALWAYS,
            subject: None,
            extent: self.plan.buffer(rows_like).extent,
            kernel,
            variant: self.choice.plain(),
            params: bytemuck::bytes_of(&params).to_vec(),
            storage,
            grid: Box::new(move |n_rows| grid(&params, n_rows)),
        }
    }

    /// The look at what a step wrote, where that is the result of a layer.
    pub(super) fn sentinel(&self, step: usize) -> Option<Draft<'a>> {
        use kernels::sentinel::{KERNEL, Params, grid};
        let (slot, result) = self.plan.layer_output(step)?;
        let params = Params::new(slot, self.width(result));
        let src = whole(self.buffers.activation(result));
        let storage = vec![src, whole(&self.buffers.sentinels)];
        Some(Draft {
            writes: Vec::new(),
            is_sentinel: true,
            ..self.plain(step, result, &KERNEL, params, storage, grid)
        })
    }

    fn embed(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        use kernels::embed::{BY_NOTHING, BY_POSITION, KERNEL, Params, grid};
        let Op::Embed {
            weight,
            index,
            scale,
            dst,
        } = *op
        else {
            return Vec::new();
        };
        let shards = self.shared.weights.shards(weight).iter();
        shards
            .map(|shard| {
                let params = Params {
                    matrix: shard.shard.matrix(),
                    dst_stride: row_stride(self.width(dst)) as u32,
                    scale,
                    named_by: match index {
                        EmbedIndex::Token => 0,
                        EmbedIndex::Position => BY_POSITION,
                        EmbedIndex::First => BY_NOTHING,
                    },
                    padding: 0,
                };
                let activation = whole(self.buffers.activation(dst));
                let storage = vec![whole(&self.buffers.tokens), shard.binding(), activation];
                let draft = self.plain(step, dst, &KERNEL, params, storage, grid);
                let weight = shard.shard.ty;
                Draft {
                    variant: Variant {
                        weight,
                        ..draft.variant
                    },
                    ..draft
                }
            })
            .collect()
    }

    /// Where a product is followed by a step that adds something to it: what, and where to. One
    /// dispatch then writes both steps.
    fn residual_of(&self, product: usize) -> Option<[BufferId; 2]> {
        let steps = &self.plan.steps;
        match (&steps.get(product)?.op, &steps.get(product + 1)?.op) {
            (&Op::MatMul { src, dst, .. }, &Op::Add { a, b, dst: sum }) if sum != src => {
                let residual = if a == dst { b } else { a };
                let is_residual = [a, b].contains(&dst) && residual != dst;
                (is_residual && self.choice.fuses).then_some([residual, sum])
            }
            _ => None,
        }
    }

    /// The rounded forms of a product's source that it lacks.
    pub(super) fn rounding(
        &self,
        step: usize,
        op: &Op,
        rounded: &mut Rounded,
        normed_in_kernels: &BTreeSet<usize>,
    ) -> Vec<Draft<'a>> {
        let (Op::MatMul {
            src,
            weight,
            int8_rows,
            ..
        }
        | Op::ExpertMatMul {
            src,
            weight,
            int8_rows,
            ..
        }) = *op
        else {
            return Vec::new();
        };
        let mut drafts = Vec::new();
        let is_there = int8_rows == 0 || normed_in_kernels.contains(&step);
        if !is_there && rounded.int8.insert(src) {
            drafts.extend(self.quantize(step, src));
        }
        let ty = self.shared.weights.get(weight).ty;
        if self.choice.is_cooperative(ty) && rounded.f16.replace(src) != Some(src) {
            drafts.extend(self.f16_rows(step, src));
        }
        drafts
    }

    /// Where the norm of whole rows writes their int8 form too, in batches of few rows.
    fn int8_of_norm(&self, op: &Op) -> Option<&'a Buffer> {
        match *op {
            Op::RmsNorm { group, dst, .. } if self.choice.fuses && group == self.width(dst) => {
                self.buffers.int8(dst)
            }
            _ => None,
        }
    }

    /// Where a step's kernel writes the rows of its result as 16-bit floats too, in batches of many rows: where
    /// a product of them follows.
    pub(super) fn f16_of_rows(&self, op: &Op) -> Option<&'a [Buffer; 2]> {
        let dst = match *op {
            Op::GatedActivation { dst, .. } => dst,
            Op::RmsNorm { group, dst, .. } => (group == self.width(dst)).then_some(dst)?,
            _ => return None,
        };
        let takes = |step: &Step| match step.op {
            Op::MatMul { src, weight, .. } | Op::ExpertMatMul { src, weight, .. } => {
                src == dst
                    && self
                        .choice
                        .is_cooperative(self.shared.weights.get(weight).ty)
            }
            _ => false,
        };
        let is_taken = self.choice.fuses && self.plan.steps.iter().any(takes);
        self.buffers.f16_rows.as_ref().filter(|_| is_taken)
    }

    /// Whether few rows of what a step writes have their int8 form from its kernel.
    pub(super) fn has_int8(&self, op: &Op, part: &Part) -> bool {
        match *op {
            Op::GatedActivation { dst, .. } => {
                *part == Part::Later && self.buffers.int8(dst).is_some()
            }
            Op::Attention { .. } => self.int8_of_attention(op).is_some(),
            _ => *part == Part::Alone && self.int8_of_norm(op).is_some(),
        }
    }

    /// The int8 form of a buffer, for batches of few rows.
    fn quantize(&self, step: usize, src: BufferId) -> Option<Draft<'a>> {
        use kernels::quantize::{KERNEL, Params, grid};
        let int8 = self.buffers.int8(src)?;
        let params = Params {
            n_slots: self.plan.buffer(src).extent.n_slots() as u32,
            ..Params::new(self.width(src))
        };
        let storage = vec![whole(self.buffers.activation(src)), whole(int8)];
        let draft = self.plain(step, src, &KERNEL, params, storage, grid);
        Some(Draft {
            writes: Vec::new(),
            rows: Rows::FEW,
            ..draft
        })
    }

    /// The rows of a buffer as 16-bit floats, for batches of many rows.
    fn f16_rows(&self, step: usize, src: BufferId) -> Option<Draft<'a>> {
        use kernels::f16_rows::{KERNEL, Params, grid};
        let [halves, scales] = self.buffers.f16_rows.as_ref()?;
        let rows = self.plan.buffer(src).extent;
        let params = Params {
            n_slots: rows.n_slots() as u32,
            ..Params::new(self.width(src), u32::from(rows == Extent::Outputs))
        };
        let storage = vec![
            whole(self.buffers.activation(src)),
            whole(halves),
            whole(scales),
        ];
        let draft = self.plain(step, src, &KERNEL, params, storage, grid);
        Some(Draft {
            writes: Vec::new(),
            rows: Rows::MANY,
            ..draft
        })
    }

    fn matmul(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        use kernels::{matmul, matmul_coop, matvec};
        let Op::MatMul {
            src,
            weight,
            bias,
            int8_rows,
            dst,
        } = *op
        else {
            return Vec::new();
        };
        let extent = self.plan.buffer(dst).extent;
        let residual = self.residual_of(step);
        let shard_drafts = |shard: &'a WeightShard| {
            let matrix = shard.shard.matrix();
            let [src_stride, dst_stride] = [src, dst].map(|id| row_stride(self.width(id)) as u32);
            let extent = u32::from(extent == Extent::Outputs);
            let has_bias = u32::from(bias.is_some());
            let has_residual = u32::from(residual.is_some());
            // Where there is no bias or residual its binding is not read.
            let weights = shard.binding();
            let bias = bias.map_or(weights.clone(), |bias| self.shared.weights.vector(bias));
            let [f32_src, product] = [src, dst].map(|id| whole(self.buffers.activation(id)));
            let (residual, sum) = match residual {
                Some(ids) => {
                    let [residual, sum] = ids.map(|id| whole(self.buffers.activation(id)));
                    (residual, sum)
                }
                None => (weights.clone(), product.clone()),
            };
            let storage = |src: &[wgpu::BufferBinding<'a>]| {
                let mut storage = vec![weights.clone()];
                storage.extend_from_slice(src);
                storage.extend([bias.clone(), residual.clone(), product.clone(), sum.clone()]);
                storage
            };

            let int8 = self.buffers.int8(src).filter(|_| int8_rows > 0);
            let few = if int8.is_some() { Src::Int8 } else { Src::F32 };
            let product = FewRows {
                of: Of::Matvec,
                weight: shard.shard.ty,
                src: few,
                n_out: shard.shard.n_rows,
                units_per_row: matrix.units_per_row as usize,
            };
            let teams = self.choice.teams(&product);
            let params = matvec::Params {
                matrix: Matrix {
                    team_size: teams.size,
                    ..matrix
                },
                src_stride,
                dst_stride,
                n_pairs: teams.n_pairs(),
                has_bias,
                has_residual,
                padding: [0; 3],
            };
            let few_src = int8.map_or(f32_src.clone(), whole);
            let draft = self.plain(
                step,
                dst,
                &matvec::KERNEL,
                params,
                storage(&[few_src]),
                matvec::grid,
            );
            let draft = Draft {
                subject: Some(Subject::FewRows(product)),
                variant: Variant {
                    src: few,
                    ..teams.put_into(draft.variant)
                },
                ..draft
            };
            let mut drafts = vec![draft.for_few(self.choice)];

            let params = matmul::Params {
                matrix,
                src_stride,
                dst_stride,
                extent,
                has_bias,
                has_residual,
                padding: [0; 3],
            };
            if let Some(f16_rows) = &self.buffers.f16_rows {
                let storage = storage(&f16_rows.each_ref().map(whole));
                let units_per_row = matrix.units_per_row as usize;
                let tiles = self
                    .choice
                    .tiles(shard.shard.ty, shard.shard.n_rows, units_per_row);
                let product = ManyRows {
                    weight: shard.shard.ty,
                    n_out: shard.shard.n_rows,
                    units_per_row,
                    n_rows: 0,
                };
                drafts.extend(tiles.into_iter().map(|(rows, tile)| {
                    let kernel = &matmul_coop::KERNEL;
                    let grid = move |params: &_, n_rows| matmul_coop::grid(tile, params, n_rows);
                    let draft = self.plain(step, dst, kernel, params, storage.clone(), grid);
                    Draft {
                        rows,
                        subject: Some(Subject::ManyRows(product)),
                        variant: Variant {
                            tile: Some(tile),
                            ..draft.variant
                        },
                        ..draft
                    }
                }));
            }
            if drafts.len() == 1 {
                let storage = storage(&[f32_src]);
                drafts.push(Draft {
                    rows: Rows::MANY,
                    ..self.plain(step, dst, &matmul::KERNEL, params, storage, matmul::grid)
                });
            }
            for draft in &mut drafts {
                draft.variant.weight = shard.shard.ty;
                draft.writes.extend((has_residual == 1).then_some(step + 1));
            }
            drafts
        };
        let shards = self.shared.weights.shards(weight).iter();
        shards.flat_map(shard_drafts).collect()
    }
}
