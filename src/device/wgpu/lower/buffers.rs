//! The buffers of one session.

use super::super::buffer::Buffer;
use super::super::context::Context;
use super::super::select::{Choice, FEW_ROWS};
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::kernels::attention::Shape;
use crate::kernels::attention_few::{self, Heads};
use crate::kernels::expert_tiles::Tiling;
use crate::kernels::sentinel::Slot;
use crate::kernels::{BatchParams, quantize, row_stride};
use crate::kv_cache::KvLayout;
use crate::plan::{BufferId, Op, Plan, State, Step};
use std::collections::BTreeMap;

/// The buffers of one session.
pub(in crate::device::wgpu) struct SessionBuffers {
    /// [`BatchParams`].
    pub(in crate::device::wgpu) batch: Buffer,
    /// `[max_rows] u32`.
    pub(in crate::device::wgpu) tokens: Buffer,
    /// By [`BufferId`]: `[rows, row_stride(width)] f32`.
    pub(in crate::device::wgpu) activations: Vec<Buffer>,
    /// By [`BufferId`], for the inputs of products on int8 activations: the rows of int8 of [`FEW_ROWS`] tokens
    /// (`kernels/common/quantize.wgsl`).
    int8: Vec<Option<Buffer>>,
    /// What attention of few rows makes of splits of the keys: room for any of the plan's.
    pub(in crate::device::wgpu) partials: Option<Buffer>,
    /// Keys and values of each layer.
    pub(in crate::device::wgpu) caches: Vec<[Buffer; 2]>,
    /// By [`StateId`](crate::plan::StateId): `[len] f32`.
    pub(in crate::device::wgpu) states: Vec<Buffer>,
    /// The source of a product as `f16_rows` gives it, and its scales: room for any of the plan's.
    pub(in crate::device::wgpu) f16_rows: Option<[Buffer; 2]>,
    /// The tables of `expert_tiles`, by the rows of a tile: room for any of the plan's.
    expert_tiles: BTreeMap<usize, Buffer>,
    /// `[n_layers]` [`Slot`]s, what sentinels have seen of the result of each layer.
    pub(in crate::device::wgpu) sentinels: Buffer,
}

impl SessionBuffers {
    pub(in crate::device::wgpu) fn new(
        context: &Context,
        plan: &Plan,
        kv: &KvLayout,
        choice: &Choice,
    ) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        let create_for = |purpose: Purpose, label: &str, bytes: u64, usage: Usage| {
            if usage.contains(Usage::STORAGE) && bytes > context.max_binding_bytes() {
                let limit = context.max_binding_bytes();
                let what = format!("buffer `{label}` (one binding has at most {limit} bytes)");
                return Err(context.out_of_memory(what, bytes));
            }
            context.create_buffer(purpose, label, bytes, usage)
        };
        let create = |label: &str, bytes: u64, usage: Usage| {
            create_for(Purpose::Scratch, label, bytes, usage)
        };
        // Diagnostics write what they give.
        let storage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let activation = |(index, buffer): (usize, &crate::plan::Buffer)| {
            let rows = plan.max_rows_of(BufferId(index));
            // The last unit of a head may end behind the last row (`head_matvec`).
            let of_heads = |step: &Step| match step.op {
                Op::HeadMatMul { src, .. } => src == BufferId(index),
                _ => false,
            };
            let more = if plan.steps.iter().any(of_heads) {
                32
            } else {
                0
            };
            let len = rows * row_stride(buffer.width) + more;
            create(&buffer.name, len as u64 * 4, storage)
        };
        let cache = |layer: usize| -> Result<[Buffer; 2]> {
            // A layer without attention keeps none.
            let create = |name: &str, bytes: u64| {
                let label = format!("blk.{layer}.{name}");
                create_for(Purpose::Cache, &label, bytes.max(4), storage)
            };
            let [keys, values] = kv.layer_bytes(layer);
            Ok([create("keys", keys)?, create("values", values)?])
        };
        let state = |state: &State| {
            let label = format!("{} state", state.name);
            create_for(Purpose::Cache, &label, state.len as u64 * 4, storage)
        };
        let int8 = |index: usize| -> Result<Option<Buffer>> {
            let is_input = |step: &Step| matches!(step.op, Op::MatMul { src, int8_rows: 1.., .. } | Op::ExpertMatMul { src, int8_rows: 1.., .. } if src.0 == index);
            if !plan.steps.iter().any(is_input) {
                return Ok(None);
            }
            let buffer = &plan.buffers[index];
            let n_rows = FEW_ROWS * buffer.extent.n_slots();
            let bytes = n_rows * quantize::row_words(buffer.width) * 4;
            let label = format!("{} int8", buffer.name);
            create(&label, bytes as u64, storage).map(Some)
        };
        let f16_rows = || -> Result<[Buffer; 2]> {
            let src = |step: &Step| match step.op {
                Op::MatMul { src, .. } | Op::ExpertMatMul { src, .. } => Some(src),
                _ => None,
            };
            let rows = |src| plan.max_rows_of(src);
            let halves = |src| rows(src) * row_stride(plan.buffer(src).width);
            let sources = || plan.steps.iter().filter_map(src);
            let halves = sources().map(halves).max().unwrap_or(0);
            let n_rows = sources().map(rows).max().unwrap_or(0).max(plan.max_rows);
            Ok([
                create("f16_rows", halves as u64 * 2, Usage::STORAGE)?,
                create("f16_rows scales", n_rows as u64 * 4, Usage::STORAGE)?,
            ])
        };
        let mut table_words: BTreeMap<usize, usize> = BTreeMap::new();
        for step in &plan.steps {
            for tile_rows in choice.expert_tile_rows() {
                if let Some(tiling) = tiling(plan, &step.op, tile_rows) {
                    let most = table_words.entry(tile_rows).or_default();
                    *most = tiling.words().max(*most);
                }
            }
        }
        let expert_tiles = table_words.into_iter().map(|(tile_rows, words)| {
            let table = create("tiles of experts", words as u64 * 4, Usage::STORAGE)?;
            Ok((tile_rows, table))
        });
        let partials = plan.steps.iter().filter_map(|step| match step.op {
            Op::Attention { .. } => attention_shape(kv, &step.op).filter(attention_few::fits),
            _ => None,
        });
        let partials = partials.map(|shape| {
            let splits = choice.splits(&shape).n;
            let params = attention_few::Params::new(&shape, splits, false);
            attention_few::partials_len(&params, Heads::shared(&shape), FEW_ROWS)
        });
        let partials = partials
            .max()
            .map(|floats| create("attention splits", floats as u64 * 4, Usage::STORAGE));
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
            int8: (0..plan.buffers.len())
                .map(int8)
                .collect::<Result<Vec<_>>>()?,
            partials: partials.transpose()?,
            caches: (0..kv.layers.len())
                .map(cache)
                .collect::<Result<Vec<_>>>()?,
            states: plan.states.iter().map(state).collect::<Result<Vec<_>>>()?,
            f16_rows: choice.matrix.map(|_| f16_rows()).transpose()?,
            expert_tiles: expert_tiles.collect::<Result<_>>()?,
            sentinels: create(
                "sentinels",
                (plan.layer_outputs.len() * size_of::<Slot>()) as u64,
                storage,
            )?,
        })
    }

    pub(in crate::device::wgpu) fn activation(&self, id: BufferId) -> &Buffer {
        &self.activations[id.0]
    }

    /// The table of tiles of so many rows.
    pub(super) fn expert_tiles(&self, tile_rows: usize) -> Option<&Buffer> {
        self.expert_tiles.get(&tile_rows)
    }

    /// The int8 form of a buffer, where a product takes it.
    pub(in crate::device::wgpu) fn int8(&self, id: BufferId) -> Option<&Buffer> {
        self.int8[id.0].as_ref()
    }
}

/// How the slots of a product with experts are cut into tiles of so many rows.
pub(super) fn tiling(plan: &Plan, op: &Op, tile_rows: usize) -> Option<Tiling> {
    match *op {
        Op::ExpertMatMul {
            chosen,
            n_expert,
            dst,
            ..
        } => Some(Tiling {
            n_expert,
            n_chosen: plan.buffer(chosen).width,
            max_slots: plan.max_rows_of(dst),
            tile_rows,
        }),
        _ => None,
    }
}

/// What attends to what in a step of attention.
pub(super) fn attention_shape(kv: &KvLayout, op: &Op) -> Option<Shape> {
    Shape::of(op, kv, 0, 0)
}
