//! Single dispatches of a plan, to be measured: the ones that sessions run, on the model's own weights.

use super::buffers::{SessionBuffers, attention_shape};
use super::fuse::{self, Part};
use super::steps::Lowering;
use super::{Dispatch, Draft, Own, bind, draft, own_buffers};
use crate::device::wgpu::Shared;
use crate::device::wgpu::buffer::Buffer;
use crate::device::wgpu::select::Choice;
use crate::device::wgpu::tune::Subject;
use crate::error::Result;
use crate::kernels::BatchParams;
use crate::kernels::attention::Shape;
use crate::kernels::attention_few::Splits;
use crate::kv_cache::KvLayout;
use crate::plan::{Extent, Plan};
use std::collections::BTreeMap;

/// A plan with room to run it, but for the tokens' choice.
pub(in crate::device::wgpu) struct Probe<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    kv: &'a KvLayout,
    buffers: SessionBuffers,
    tables: Vec<Buffer>,
    parts: Vec<Part>,
    own: BTreeMap<usize, Own>,
}

impl<'a> Probe<'a> {
    /// Room for whatever is chosen: `choice` is the one that takes most.
    pub(in crate::device::wgpu) fn new(
        shared: &'a Shared,
        plan: &'a Plan,
        kv: &'a KvLayout,
        choice: &Choice,
    ) -> Result<Self> {
        let tables = plan.rope_tables.iter();
        let tables = tables.map(|table| shared.rope_table(table, kv.capacity));
        let mut probe = Probe {
            shared,
            plan,
            kv,
            buffers: SessionBuffers::new(&shared.context, plan, kv, choice)?,
            tables: tables.collect::<Result<Vec<_>>>()?,
            parts: vec![Part::Alone; plan.steps.len()],
            own: BTreeMap::new(),
        };
        if choice.fuses {
            probe.parts = fuse::parts(plan, &probe.lowering(choice));
        }
        probe.own = own_buffers(shared, plan, &probe.parts)?;
        probe.fill()?;
        Ok(probe)
    }

    /// Activations of few rows that are no zeros: 16-bit floats between 0 and 2, whatever reads them.
    fn fill(&self) -> Result<()> {
        const WORDS: usize = 1 << 14;
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state & 0x3BFF_3BFF
        };
        let words: Vec<u32> = (0..WORDS).map(|_| next()).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let context = &self.shared.context;
        context.scoped("activations to measure with", || {
            for buffer in &self.buffers.activations {
                let bytes = &bytes[..bytes.len().min(buffer.size() as usize)];
                context.queue.write_buffer(buffer, 0, bytes);
            }
        })
    }

    fn lowering<'b>(&'b self, choice: &'b Choice) -> Lowering<'b> {
        Lowering {
            shared: self.shared,
            plan: self.plan,
            kv: self.kv,
            buffers: &self.buffers,
            own: self.own.iter().map(|(&step, own)| (step, own)).collect(),
            tables: &self.tables,
            choice,
        }
    }

    fn drafts<'b>(&'b self, choice: &'b Choice) -> impl Iterator<Item = Draft<'b>> + use<'b> {
        let drafts = draft(&self.lowering(choice), &self.parts).into_iter();
        drafts.filter(|draft| !draft.is_sentinel)
    }

    /// What splits a step of attention that is a subject has by rule.
    pub(in crate::device::wgpu) fn splits_by_rule(&self, subject: &Subject) -> Option<Splits> {
        let shapes = self.plan.steps.iter();
        let mut shapes = shapes.filter_map(|step| attention_shape(self.kv, &step.op));
        let is_subject = |shape: &Shape| Subject::Attention(shape.into(), self.kv.ty) == *subject;
        shapes.find(is_subject).map(|shape| Splits::rule(&shape))
    }

    /// What the kernels of the plan were chosen as, once for each that was. Products with the rows of logits, of which
    /// there are few, are none of many rows.
    pub(in crate::device::wgpu) fn subjects(&self, choice: &Choice) -> Vec<Subject> {
        let is_wanted = |draft: &Draft<'_>| {
            let is_of_many = matches!(draft.subject, Some(Subject::ManyRows(_)));
            !is_of_many || draft.extent == Extent::Tokens
        };
        let drafts = self.drafts(choice).filter(is_wanted);
        drafts.filter_map(|draft| draft.subject).collect()
    }

    /// Compiles what some choices are for a subject, on all cores.
    pub(in crate::device::wgpu) fn compile(
        &self,
        choices: &[Choice],
        subject: &Subject,
    ) -> Result<()> {
        let of_choice = |choice| {
            let drafts = self.drafts(choice);
            let drafts = drafts.filter(|draft| draft.subject.as_ref() == Some(subject));
            drafts.map(|draft| (draft.kernel, draft.variant))
        };
        let wanted = choices.iter().flat_map(of_choice);
        self.shared.context.compile_all(wanted)
    }

    /// At most `most` dispatches of a subject by a choice; all of the plan without one.
    pub(in crate::device::wgpu) fn dispatches(
        &self,
        choice: &Choice,
        subject: Option<&Subject>,
        most: usize,
    ) -> Result<Vec<Dispatch>> {
        let is_wanted = |draft: &Draft<'_>| subject.is_none() || draft.subject.as_ref() == subject;
        let drafts: Vec<_> = self.drafts(choice).filter(is_wanted).take(most).collect();
        if subject.is_none() {
            let variants = drafts.iter().map(|draft| (draft.kernel, draft.variant));
            self.shared.context.compile_all(variants)?;
        }
        let steps = bind(self.shared, self.plan, &self.buffers, drafts)?;
        Ok(steps.into_iter().flatten().collect())
    }

    /// Has the dispatches run as those of a batch.
    pub(in crate::device::wgpu) fn set_batch(&self, n_rows: usize, position: usize) -> Result<()> {
        let batch = BatchParams {
            n_rows: n_rows as u32,
            position: position as u32,
            n_outputs: n_rows.min(self.plan.max_outputs) as u32,
            random: 0,
        };
        let context = &self.shared.context;
        context.scoped("upload of a batch", || {
            let bytes = bytemuck::bytes_of(&batch);
            context.queue.write_buffer(&self.buffers.batch, 0, bytes);
        })
    }
}
