//! A plan made into dispatches: for each step its pipelines, bind groups and grids, fixed at load.

mod buffers;
mod experts;
mod few;
mod fuse;
mod heads;
mod probe;
mod recurrent;
mod steps;
#[cfg(test)]
mod tests;

pub(super) use buffers::SessionBuffers;
pub(super) use probe::Probe;

use self::fuse::{Group, Part, Places, Projection};
use self::steps::Lowering;
use super::Shared;
use super::buffer::Buffer;
use super::chain;
use super::pipelines::Pipeline;
use super::select::{Choice, Rows};
use super::tune::Subject;
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kernels::{self, Kernel, Variant, matvec_heads};
use crate::kv_cache::KvLayout;
use crate::model::WeightId;
use crate::plan::{BufferId, Extent, Op, Plan, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// One dispatch of a step.
pub(super) struct Dispatch {
    /// The step at whose turn it runs.
    pub(super) step: usize,
    /// The steps whose results it writes; none where it prepares the input of its step.
    pub(super) writes: Vec<usize>,
    /// Whether it is for watched batches alone.
    pub(super) is_sentinel: bool,
    pub(super) kernel: &'static Kernel,
    /// The batches it is for, by their rows.
    pub(super) rows: Rows,
    /// The batches it is for, by the positions that their last row sees.
    pub(super) visible: RangeInclusive<usize>,
    /// Which rows of the batch it works on.
    pub(super) extent: Extent,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    /// Workgroups for a number of rows.
    pub(super) grid: Box<dyn Fn(usize) -> [u32; 3] + Send>,
}

impl Dispatch {
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>, [x, y, z]: [u32; 3]) {
        pass.set_pipeline(&self.pipeline.compiled);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// A dispatch before its parameters have a place.
struct Draft<'a> {
    step: usize,
    writes: Vec<usize>,
    is_sentinel: bool,
    rows: Rows,
    visible: RangeInclusive<usize>,
    extent: Extent,
    /// What its kernel was chosen as.
    subject: Option<Subject>,
    kernel: &'static Kernel,
    variant: Variant,
    params: Vec<u8>,
    storage: Vec<wgpu::BufferBinding<'a>>,
    grid: Box<dyn Fn(usize) -> [u32; 3] + Send>,
}

/// Where few rows of a step's result lie that only the steps of its group read: [`matvec_heads::KEPT_ROWS`] rows.
pub(super) struct Own {
    pub(super) buffer: Buffer,
    /// In bytes.
    pub(super) offset: u64,
}

/// A plan made into dispatches.
pub(super) struct Lowered {
    /// The dispatches of every step, in the plan's order.
    pub(super) steps: Vec<Vec<Dispatch>>,
    /// By step, where few rows of its result are not in the plan's buffer.
    ///
    /// A dispatch that writes a buffer which any before it has written waits for all of them, also where
    /// that was another layer's. What projections keep has buffers of its own for each layer, so that those that
    /// are not one dispatch run beside each other.
    pub(super) own: BTreeMap<usize, Own>,
    /// The first step of each run of products of one source. Where a command buffer begins with it the products
    /// run beside each other: the first use of a buffer there has nothing to wait for.
    pub(super) beside: BTreeSet<usize>,
}

/// Lowers a plan.
pub(super) fn lower(
    shared: &Shared,
    plan: &Plan,
    kv: &KvLayout,
    buffers: &SessionBuffers,
    choice: &Choice,
) -> Result<Lowered> {
    let tables = plan
        .rope_tables
        .iter()
        .map(|table| shared.rope_table(table, kv.capacity))
        .collect::<Result<Vec<_>>>()?;
    let mut lowering = Lowering {
        shared,
        plan,
        kv,
        buffers,
        own: BTreeMap::new(),
        tables: &tables,
        choice,
    };
    let parts = match choice.fuses {
        true => fuse::parts(plan, &lowering),
        false => vec![Part::Alone; plan.steps.len()],
    };
    let own = own_buffers(shared, plan, &parts)?;
    lowering.own = own.iter().map(|(&step, buffer)| (step, buffer)).collect();
    let drafts = draft(&lowering, &parts);
    let of_drafts = drafts.iter().map(|draft| (draft.kernel, draft.variant));
    // What chooses tokens behind the plan is compiled meanwhile.
    let of_chain = chain::KERNELS.map(|kernel| (kernel, choice.plain()));
    shared.context.compile_all(of_drafts.chain(of_chain))?;
    let steps = bind(shared, plan, buffers, drafts)?;
    let beside = beside(plan);
    Ok(Lowered { steps, own, beside })
}

/// The dispatches of every step, before their parameters have a place.
fn draft<'a>(lowering: &Lowering<'a>, parts: &[Part]) -> Vec<Draft<'a>> {
    let plan = lowering.plan;
    let normed = fuse::normed_in_kernels(parts);
    let mut drafts = Vec::new();
    let mut rounded = Rounded::default();
    for (index, (step, part)) in plan.steps.iter().zip(parts).enumerate() {
        drafts.extend(lowering.rounding(index, &step.op, &mut rounded, &normed));
        drafts.extend(lowering.expert_tables(index, &step.op, &mut rounded));
        if let Part::First(group, steps) = part {
            drafts.push(lowering.fused(index, group, steps));
        }
        let alone = lowering.step(index, &step.op).into_iter();
        drafts.extend(alone.filter_map(|draft| match part {
            Part::Alone => Some(draft),
            Part::First(..) | Part::Later => draft.for_many(),
        }));
        // Whatever kernel writes the result of a layer has run by the turn of its step, and none of the next
        // layer's has.
        drafts.extend(lowering.sentinel(index));
        if let Some(dst) = step.op.dst() {
            rounded.forget(dst);
            if lowering.has_int8(&step.op, part) {
                rounded.int8.insert(dst);
            }
            if lowering.f16_of_rows(&step.op).is_some() {
                rounded.f16 = Some(dst);
            }
        }
    }
    drafts
}

/// The first steps of products that have a source in common and follow each other.
fn beside(plan: &Plan) -> BTreeSet<usize> {
    let src = |step: &Step| match step.op {
        Op::MatMul { src, .. } => Some(src),
        _ => None,
    };
    let sources: Vec<_> = plan.steps.iter().map(src).collect();
    (0..sources.len())
        .filter(|&step| {
            let is_first = step == 0 || sources[step - 1] != sources[step];
            is_first && sources[step].is_some() && sources.get(step + 1) == Some(&sources[step])
        })
        .collect()
}

/// Buffers for few rows of what groups of projections keep, which no step but those of their group reads.
fn own_buffers(shared: &Shared, plan: &Plan, parts: &[Part]) -> Result<BTreeMap<usize, Own>> {
    let mut own = BTreeMap::new();
    for part in parts {
        let Part::First(Group::Heads(heads), steps) = part else {
            continue;
        };
        let kept = heads.projections.iter().flat_map(Projection::kept);
        let mut end = 0;
        let mut places = Vec::new();
        for buffer in kept {
            let writer = |step: &&usize| plan.steps[**step].op.dst() == Some(buffer);
            places.extend(
                steps
                    .iter()
                    .find(writer)
                    .map(|&step| (step, end as u64 * 4)),
            );
            end += matvec_heads::kept_len(plan.buffer(buffer).width);
        }
        let Some(&(first, _)) = places.first() else {
            continue;
        };
        let name = &plan.steps[first].name;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let context = &shared.context;
        let buffer = context.create_buffer(Purpose::Scratch, name, end as u64 * 4, usage)?;
        own.extend(places.into_iter().map(|(step, offset)| {
            let buffer = buffer.clone();
            (step, Own { buffer, offset })
        }));
    }
    Ok(own)
}

/// Buffers whose rounded form is that of their present values.
#[derive(Default)]
struct Rounded {
    /// Those with an int8 form.
    int8: BTreeSet<BufferId>,
    /// The one in `f16_rows`.
    f16: Option<BufferId>,
    /// Ids of experts that are in a table of tiles of so many rows, in batches of some rows.
    tiled: Vec<(BufferId, usize, Rows)>,
}

impl Rounded {
    fn forget(&mut self, written: BufferId) {
        self.int8.remove(&written);
        self.f16 = self.f16.filter(|buffer| *buffer != written);
        self.tiled.retain(|(ids, ..)| *ids != written);
    }
}

impl Draft<'_> {
    /// The same for batches of few rows.
    fn for_few(self, choice: &Choice) -> Self {
        Draft {
            rows: Rows::FEW,
            variant: Variant {
                constants: choice.constants(&self.params),
                ..self.variant
            },
            ..self
        }
    }

    /// The same for batches of many rows only; `None` where it is not for them.
    fn for_many(self) -> Option<Self> {
        let rows = self.rows.many()?;
        Some(Draft { rows, ..self })
    }
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
    let params_buffer =
        context.create_buffer(Purpose::Scratch, "params", params.len() as u64, usage)?;
    context.scoped("upload of parameters", || {
        context.queue.write_buffer(&params_buffer, 0, &params);
    })?;

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
        bindings.extend(draft.storage);
        let name = &plan.steps[draft.step].name;
        let label = format!("{name}: {}", draft.kernel.name);
        let bind_group = context.bind_group(&label, &pipeline, &bindings)?;
        let Draft {
            step,
            writes,
            is_sentinel,
            rows,
            visible,
            extent,
            kernel,
            grid,
            ..
        } = draft;
        steps[step].push(Dispatch {
            step,
            writes,
            is_sentinel,
            kernel,
            rows,
            visible,
            extent,
            pipeline,
            bind_group,
            grid,
        });
    }
    Ok(steps)
}

/// A whole buffer.
fn whole(buffer: &Buffer) -> wgpu::BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}

impl Places for Lowering<'_> {
    fn is_whole(&self, weight: WeightId) -> bool {
        self.shared.weights.shards(weight).len() == 1
    }

    fn are_together(&self, weights: &[WeightId]) -> bool {
        self.shared.weights.are_together(weights)
    }

    fn weight_type(&self, weight: WeightId) -> WeightType {
        self.shared.weights.get(weight).ty
    }

    fn width(&self, weight: WeightId) -> usize {
        self.shared.weights.get(weight).n_cols
    }

    fn may_normalise(&self, kernel: &Kernel, width: usize) -> bool {
        let limits = &self.shared.context.limits;
        let n_buffers = limits.max_storage_buffers_per_shader_stage as usize;
        kernels::matvec::may_normalise(kernel, width, n_buffers)
    }
}
