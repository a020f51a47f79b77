//! A plan made into dispatches: for each step its pipelines, bind groups and grids, fixed at load.

use super::Shared;
use super::context::Context;
use super::pipelines::Pipeline;
use super::select::{Choice, FEW_ROWS, Rows};
use super::weights::WeightShard;
use crate::error::Result;
use crate::kernels::{self, BatchParams, Kernel, Variant, row_stride};
use crate::kv_cache::KvLayout;
use crate::model::WeightId;
use crate::plan::{BufferId, Extent, Op, Plan, Step};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One dispatch of a step.
pub(super) struct Dispatch {
    /// The batches it is for.
    pub(super) rows: Rows,
    /// Which rows of the batch it works on.
    pub(super) extent: Extent,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    /// Workgroups for a number of rows.
    pub(super) grid: Box<dyn Fn(usize) -> [u32; 3] + Send>,
}

/// The buffers of one session.
pub(super) struct SessionBuffers {
    /// [`BatchParams`].
    pub(super) batch: wgpu::Buffer,
    /// `[max_rows] u32`.
    pub(super) tokens: wgpu::Buffer,
    /// By [`BufferId`]: `[rows, row_stride(width)] f32`.
    pub(super) activations: Vec<wgpu::Buffer>,
    /// By [`BufferId`], for the inputs of products on int8 activations: quants and scales of
    /// [`FEW_ROWS`] rows (`kernels/quantize.wgsl`).
    quantised: Vec<Option<[wgpu::Buffer; 2]>>,
    /// Keys and values of each layer.
    pub(super) caches: Vec<[wgpu::Buffer; 2]>,
    /// The source of a product as `f16_rows` gives it, and its scales: room for any of the plan's.
    f16_rows: Option<[wgpu::Buffer; 2]>,
}

impl SessionBuffers {
    pub(super) fn new(
        context: &Context,
        plan: &Plan,
        kv: &KvLayout,
        choice: &Choice,
    ) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        let create = |label: &str, bytes: u64, usage: Usage| {
            if usage.contains(Usage::STORAGE) && bytes > context.max_binding_bytes() {
                let limit = context.max_binding_bytes();
                let what = format!("buffer `{label}` (one binding has at most {limit} bytes)");
                return Err(context.out_of_memory(what, bytes));
            }
            context.create_buffer(label, bytes, usage)
        };
        let storage = Usage::STORAGE | Usage::COPY_SRC;
        let activation = |(index, buffer): (usize, &crate::plan::Buffer)| {
            let rows = plan.max_rows_of(BufferId(index));
            create(
                &buffer.name,
                (rows * row_stride(buffer.width) * 4) as u64,
                storage,
            )
        };
        let cache = |layer: usize| -> Result<[wgpu::Buffer; 2]> {
            let bytes = kv.layer_bytes(layer);
            Ok([
                create(&format!("blk.{layer}.keys"), bytes, storage)?,
                create(&format!("blk.{layer}.values"), bytes, storage)?,
            ])
        };
        let quantised = |index: usize| -> Result<Option<[wgpu::Buffer; 2]>> {
            let is_input = |step: &Step| matches!(step.op, Op::MatMul { src, int8_rows: 1.., .. } if src.0 == index);
            if !plan.steps.iter().any(is_input) {
                return Ok(None);
            }
            let buffer = &plan.buffers[index];
            let n = FEW_ROWS * row_stride(buffer.width);
            Ok(Some([
                create(&format!("{} int8", buffer.name), n as u64, storage)?,
                create(&format!("{} scales", buffer.name), n as u64 / 4, storage)?,
            ]))
        };
        let f16_rows = || -> Result<[wgpu::Buffer; 2]> {
            let halves = |step: &Step| match step.op {
                Op::MatMul { src, .. } => {
                    plan.max_rows_of(src) * row_stride(plan.buffer(src).width)
                }
                _ => 0,
            };
            let halves = plan.steps.iter().map(halves).max().unwrap_or(0);
            Ok([
                create("f16_rows", halves as u64 * 2, Usage::STORAGE)?,
                create("f16_rows scales", plan.max_rows as u64 * 4, Usage::STORAGE)?,
            ])
        };
        let batch_bytes = size_of::<BatchParams>() as u64;
        Ok(SessionBuffers {
            batch: create("batch", batch_bytes, Usage::UNIFORM | Usage::COPY_DST)?,
            tokens: create(
                "tokens",
                plan.max_rows as u64 * 4,
                Usage::STORAGE | Usage::COPY_DST,
            )?,
            activations: plan
                .buffers
                .iter()
                .enumerate()
                .map(activation)
                .collect::<Result<Vec<_>>>()?,
            quantised: (0..plan.buffers.len())
                .map(quantised)
                .collect::<Result<Vec<_>>>()?,
            caches: (0..kv.layers.len())
                .map(cache)
                .collect::<Result<Vec<_>>>()?,
            f16_rows: choice.matrix.map(|_| f16_rows()).transpose()?,
        })
    }

    fn activation(&self, id: BufferId) -> &wgpu::Buffer {
        &self.activations[id.0]
    }
}

/// A dispatch before its parameters have a place.
struct Draft<'a> {
    step: usize,
    rows: Rows,
    extent: Extent,
    kernel: &'static Kernel,
    variant: Variant,
    params: Vec<u8>,
    storage: Vec<&'a wgpu::Buffer>,
    grid: Box<dyn Fn(usize) -> [u32; 3] + Send>,
}

/// The dispatches of every step, in the plan's order.
pub(super) fn lower(
    shared: &Shared,
    plan: &Plan,
    kv: &KvLayout,
    buffers: &SessionBuffers,
    choice: &Choice,
) -> Result<Vec<Vec<Dispatch>>> {
    let tables = plan
        .rope_tables
        .iter()
        .map(|table| shared.rope_table(table, kv.capacity))
        .collect::<Result<Vec<_>>>()?;
    let lowering = Lowering {
        shared,
        plan,
        kv,
        buffers,
        tables: &tables,
        choice,
    };
    let mut drafts = Vec::new();
    // Buffers whose int8 form is that of their present values, and the one in `f16_rows`.
    let mut quantised = BTreeSet::new();
    let mut in_f16 = None;
    for (index, step) in plan.steps.iter().enumerate() {
        if let Op::MatMul {
            src,
            weight,
            int8_rows,
            ..
        } = step.op
        {
            if int8_rows > 0 && quantised.insert(src) {
                drafts.extend(lowering.quantize(index, src));
            }
            let ty = shared.weights.get(weight).ty;
            if choice.is_cooperative(ty) && in_f16.replace(src) != Some(src) {
                drafts.extend(lowering.f16_rows(index, src));
            }
        }
        drafts.extend(lowering.step(index, &step.op));
        if let Some(dst) = step.op.dst() {
            quantised.remove(&dst);
            in_f16 = in_f16.filter(|src| *src != dst);
        }
    }
    bind(shared, plan, buffers, drafts)
}

/// Puts the parameters of all dispatches into one buffer and binds each to its own.
fn bind(
    shared: &Shared,
    plan: &Plan,
    buffers: &SessionBuffers,
    drafts: Vec<Draft<'_>>,
) -> Result<Vec<Vec<Dispatch>>> {
    let context = &shared.context;
    let alignment = context.limits.min_uniform_buffer_offset_alignment as usize;
    let mut params = Vec::new();
    let mut offsets = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        params.resize(params.len().next_multiple_of(alignment), 0);
        offsets.push(params.len() as u64);
        params.extend_from_slice(&draft.params);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params_buffer = context.create_buffer("params", params.len() as u64, usage)?;
    context.scoped("upload of parameters", || {
        context.queue.write_buffer(&params_buffer, 0, &params);
    })?;

    let whole = |buffer| wgpu::BufferBinding {
        buffer,
        offset: 0,
        size: None,
    };
    let mut steps: Vec<Vec<Dispatch>> = plan.steps.iter().map(|_| Vec::new()).collect();
    for (draft, offset) in drafts.into_iter().zip(offsets) {
        let pipeline = context.pipeline(draft.kernel, &draft.variant)?;
        let mut bindings = vec![
            whole(&buffers.batch),
            wgpu::BufferBinding {
                buffer: &params_buffer,
                offset,
                size: std::num::NonZeroU64::new(draft.params.len() as u64),
            },
        ];
        bindings.extend(draft.storage.into_iter().map(whole));
        let name = &plan.steps[draft.step].name;
        let bind_group = context.bind_group(name, &pipeline, &bindings)?;
        let Draft {
            step,
            rows,
            extent,
            grid,
            ..
        } = draft;
        steps[step].push(Dispatch {
            rows,
            extent,
            pipeline,
            bind_group,
            grid,
        });
    }
    Ok(steps)
}

struct Lowering<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    kv: &'a KvLayout,
    buffers: &'a SessionBuffers,
    tables: &'a [wgpu::Buffer],
    choice: &'a Choice,
}

impl<'a> Lowering<'a> {
    fn width(&self, id: BufferId) -> usize {
        self.plan.buffer(id).width
    }

    fn step(&self, index: usize, op: &Op) -> Vec<Draft<'a>> {
        let of = |id: BufferId| self.buffers.activation(id);
        let vector = |id: WeightId| self.shared.weights.vector(id);
        match *op {
            Op::Embed { weight, scale, dst } => self.embed(index, weight, scale, dst),
            Op::MatMul { .. } => self.matmul(index, op),
            Op::RmsNorm {
                src,
                weight,
                eps,
                dst,
            } => {
                use kernels::rms_norm::{KERNEL, Params, grid};
                let group = self.shared.weights.get(weight).n_cols;
                let params = Params::new(self.width(dst), group, eps);
                let storage = vec![of(src), vector(weight), of(dst)];
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
                let storage = vec![of(src), &self.tables[table.0], of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::StoreKv { k, v, layer } => {
                use kernels::store_kv::{KERNEL, Params, grid};
                let [keys, values] = &self.buffers.caches[layer];
                let params = Params::new(self.width(k));
                vec![self.plain(
                    index,
                    k,
                    &KERNEL,
                    params,
                    vec![of(k), of(v), keys, values],
                    grid,
                )]
            }
            Op::Attention {
                q,
                layer,
                n_head,
                scale,
                window,
                dst,
            } => {
                use kernels::attention::{KERNEL, Params, Shape, grid};
                let cache = self.kv.layers[layer];
                let params = Params::new(&Shape {
                    n_head,
                    n_head_kv: cache.n_head_kv,
                    head_dim: cache.head_dim,
                    position: 0,
                    scale,
                    window,
                });
                let [keys, values] = &self.buffers.caches[layer];
                let storage = vec![of(q), keys, values, of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
            Op::GatedActivation {
                gate,
                up,
                activation,
                dst,
            } => {
                use kernels::gated_activation::{KERNEL, Params, grid};
                let params = Params::new(self.width(dst), activation);
                let storage = vec![of(gate), of(up), of(dst)];
                vec![self.plain(index, dst, &KERNEL, params, storage, grid)]
            }
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

    /// A dispatch for any batch of a kernel without a weight matrix; its rows are those of `rows_like`.
    fn plain<P: bytemuck::Pod + Send>(
        &self,
        step: usize,
        rows_like: BufferId,
        kernel: &'static Kernel,
        params: P,
        storage: Vec<&'a wgpu::Buffer>,
        grid: fn(&P, usize) -> [u32; 3],
    ) -> Draft<'a> {
        Draft {
            step,
            rows: Rows::ANY,
            extent: self.plan.buffer(rows_like).extent,
            kernel,
            variant: self.choice.plain(),
            params: bytemuck::bytes_of(&params).to_vec(),
            storage,
            grid: Box::new(move |n_rows| grid(&params, n_rows)),
        }
    }

    fn embed(&self, step: usize, weight: WeightId, scale: f32, dst: BufferId) -> Vec<Draft<'a>> {
        use kernels::embed::{KERNEL, Params, grid};
        let shards = self.shared.weights.shards(weight).iter();
        shards
            .map(|shard| {
                let params = Params {
                    matrix: shard.shard.matrix(),
                    dst_stride: row_stride(self.width(dst)) as u32,
                    scale,
                    padding: [0; 2],
                };
                let activation = self.buffers.activation(dst);
                let storage = vec![&self.buffers.tokens, &shard.buffer, activation];
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
    fn residual_of(&self, product: usize) -> Option<(BufferId, BufferId)> {
        let steps = &self.plan.steps;
        match (&steps.get(product)?.op, &steps.get(product + 1)?.op) {
            (&Op::MatMul { src, dst, .. }, &Op::Add { a, b, dst: sum }) if sum != src => {
                let residual = if a == dst { b } else { a };
                ([a, b].contains(&dst) && residual != dst).then_some((residual, sum))
            }
            _ => None,
        }
    }

    /// The int8 form of a buffer, for batches of few rows.
    fn quantize(&self, step: usize, src: BufferId) -> Option<Draft<'a>> {
        use kernels::quantize::{KERNEL, Params, grid};
        let [quants, scales] = self.buffers.quantised[src.0].as_ref()?;
        let params = Params::new(self.width(src));
        let storage = vec![self.buffers.activation(src), quants, scales];
        let draft = self.plain(step, src, &KERNEL, params, storage, grid);
        Some(Draft {
            rows: Rows::FEW,
            ..draft
        })
    }

    /// The rows of a buffer as 16-bit floats, for batches of many rows.
    fn f16_rows(&self, step: usize, src: BufferId) -> Option<Draft<'a>> {
        use kernels::f16_rows::{KERNEL, Params, grid};
        let [halves, scales] = self.buffers.f16_rows.as_ref()?;
        let extent = u32::from(self.plan.buffer(src).extent == Extent::Outputs);
        let params = Params::new(self.width(src), extent);
        let storage = vec![self.buffers.activation(src), halves, scales];
        let draft = self.plain(step, src, &KERNEL, params, storage, grid);
        Some(Draft {
            rows: Rows::MANY,
            ..draft
        })
    }

    fn matmul(&self, step: usize, op: &Op) -> Vec<Draft<'a>> {
        use kernels::{matmul, matmul_coop, matvec, matvec_int8};
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
            let params = matmul::Params {
                matrix: shard.shard.matrix(),
                src_stride: row_stride(self.width(src)) as u32,
                dst_stride: row_stride(self.width(dst)) as u32,
                extent: u32::from(extent == Extent::Outputs),
                has_bias: u32::from(bias.is_some()),
                has_residual: u32::from(residual.is_some()),
                padding: [0; 3],
            };
            // Where there is no bias or residual its binding is not read.
            let weights = &shard.buffer;
            let bias = bias.map_or(weights, |bias| self.shared.weights.vector(bias));
            let [f32_src, product] = [src, dst].map(|id| self.buffers.activation(id));
            let (residual, sum) = residual.map_or((weights, product), |(residual, sum)| {
                (
                    self.buffers.activation(residual),
                    self.buffers.activation(sum),
                )
            });
            let storage = |src: &[&'a wgpu::Buffer]| {
                let mut storage = vec![weights];
                storage.extend_from_slice(src);
                storage.extend([bias, residual, product, sum]);
                storage
            };
            let plain = |kernel, src: &[&'a wgpu::Buffer], grid| {
                self.plain(step, dst, kernel, params, storage(src), grid)
            };
            let few = match &self.buffers.quantised[src.0] {
                Some([quants, scales]) if int8_rows > 0 => {
                    plain(&matvec_int8::KERNEL, &[quants, scales], matvec_int8::grid)
                }
                _ => plain(&matvec::KERNEL, &[f32_src], matvec::grid),
            };
            let mut drafts = vec![Draft {
                rows: Rows::FEW,
                ..few
            }];
            if let Some([halves, scales]) = &self.buffers.f16_rows {
                let tiles = self.choice.tiles(shard.shard.ty, shard.shard.n_rows);
                drafts.extend(tiles.into_iter().map(|(rows, tile)| {
                    let draft = plain(&matmul_coop::KERNEL, &[halves, scales], matmul::grid);
                    Draft {
                        rows,
                        variant: Variant {
                            tile: Some(tile),
                            ..draft.variant
                        },
                        grid: Box::new(move |n_rows| matmul_coop::grid(tile, &params, n_rows)),
                        ..draft
                    }
                }));
            }
            if drafts.len() == 1 {
                drafts.push(Draft {
                    rows: Rows::MANY,
                    ..plain(&matmul::KERNEL, &[f32_src], matmul::grid)
                });
            }
            for draft in &mut drafts {
                draft.variant.weight = shard.shard.ty;
            }
            drafts
        };
        let shards = self.shared.weights.shards(weight).iter();
        shards.flat_map(shard_drafts).collect()
    }
}
