//! The sentinels of one session: which batches they watch, and what their slots say afterwards.

use super::context::Context;
use crate::device::sentinel::{Sentinels, Watch, check_slot};
use crate::error::Result;
use crate::kernels::sentinel::Slot;
use crate::plan::Plan;
use std::mem;
use std::ops::Range;

/// What is watched, and what of it was not read yet.
pub(super) struct SlotReader {
    watch: Watch,
    /// The positions of watched batches that nobody has read the slots of: batches of a prompt before the one
    /// that has logits.
    unread: Range<usize>,
}

impl SlotReader {
    pub(super) fn new(sentinels: Sentinels) -> SlotReader {
        SlotReader {
            watch: Watch::new(sentinels),
            unread: 0..0,
        }
    }

    /// Whether a token at `position` would be watched if it came next.
    pub(super) fn would_take(&self, position: usize) -> bool {
        self.watch.would_take(position, 1)
    }

    /// Whether the batch that is submitted next is watched; its `slots` are made ready.
    pub(super) fn takes(
        &mut self,
        context: &Context,
        slots: &wgpu::Buffer,
        position: usize,
        n_rows: usize,
    ) -> Result<bool> {
        if !self.watch.takes(position, n_rows) {
            return Ok(false);
        }
        if self.unread.is_empty() || self.unread.end != position {
            self.unread = position..position;
            context.scoped("clearing of sentinels", || {
                let zeros = vec![0; slots.size() as usize];
                context.queue.write_buffer(slots, 0, &zeros);
            })?;
        }
        self.unread.end = position + n_rows;
        Ok(true)
    }

    /// The rows that the slots have seen once the last batch has run; they count as read.
    pub(super) fn take_rows(&mut self) -> usize {
        mem::take(&mut self.unread).len()
    }
}

/// What the slots of `n_rows` rows say, from the first layer on.
///
/// # Errors
/// [`WrongResult`](crate::Error::WrongResult) naming the first layer at fault.
pub(super) fn check_slots(plan: &Plan, slots: &[u8], n_rows: usize) -> Result<()> {
    let slots: Vec<Slot> = bytemuck::pod_collect_to_vec(slots);
    let mut layers = plan.layer_outputs.iter().zip(&slots);
    layers.try_for_each(|(&step, slot)| check_slot(&plan.steps[step].name, slot, n_rows))
}
