//! Mixtures of experts. Which experts a row has is found by the reference's own twin: that is little work.

use super::elementwise::for_rows;
use super::matmul::{PANEL_ROWS, TASKS_PER_THREAD, multiply};
use super::simd::Simd;
use super::weights::CpuWeights;
use crate::kernels::experts::expert;
use crate::model::WeightId;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The matrices of all experts, `[n_expert * n_out, n_cols]`.
pub(super) struct Matrices<'a> {
    pub(super) weights: &'a CpuWeights,
    pub(super) id: WeightId,
    /// `[n_expert * n_out]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) n_expert: usize,
}

/// Some rows of an expert, and what they are multiplied with.
struct Task<'a> {
    first_row: usize,
    slots: Vec<usize>,
    dst: Vec<&'a mut [f32]>,
}

impl Matrices<'_> {
    /// The products of `src`, `[n_rows, n_cols]` or `[n_rows, n_chosen, n_cols]`, with the matrices of the experts
    /// `chosen` `[n_rows, n_chosen]`: `dst` is `[n_rows, n_chosen, n_out]`. Weights of others are not read.
    pub(super) fn multiply(&self, simd: Simd, src: &[f32], chosen: &[f32], dst: &mut [f32]) {
        let weight = self.weights.get(self.id);
        let (n_out, n_cols) = (weight.n_rows / self.n_expert, weight.n_cols);
        let slots_per_src = (chosen.len() * n_cols / src.len().max(1)).max(1);
        let mut by_expert: BTreeMap<usize, (Vec<usize>, Vec<&mut [f32]>)> = BTreeMap::new();
        for (slot, (dst, &id)) in dst.chunks_exact_mut(n_out).zip(chosen).enumerate() {
            let (slots, rows) = by_expert.entry(expert(id, self.n_expert)).or_default();
            slots.push(slot);
            rows.push(dst);
        }
        let n_tasks = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(by_expert.len());
        let outputs_per_task = n_out.div_ceil(n_tasks).next_multiple_of(PANEL_ROWS);
        let mut tasks = Vec::new();
        for (expert, (slots, rows)) in by_expert {
            let first = tasks.len();
            for output in (0..n_out).step_by(outputs_per_task) {
                tasks.push(Task {
                    first_row: expert * n_out + output,
                    slots: slots.clone(),
                    dst: Vec::with_capacity(rows.len()),
                });
            }
            for row in rows {
                let parts = row.chunks_mut(outputs_per_task);
                tasks[first..]
                    .iter_mut()
                    .zip(parts)
                    .for_each(|(task, part)| task.dst.push(part));
            }
        }
        let row = |slot: usize| &src[slot / slots_per_src * n_cols..][..n_cols];
        tasks.into_par_iter().for_each(|task| {
            let Task {
                first_row,
                slots,
                mut dst,
            } = task;
            if let ([slot], [dst]) = (&slots[..], &mut dst[..]) {
                let rows = self.weights.rows(self.id, first_row..first_row + dst.len());
                simd.matvec(weight.ty, &rows, row(*slot), dst);
                if let Some(bias) = self.bias {
                    let each = dst.iter_mut().zip(&bias[first_row..]);
                    each.for_each(|(dst, bias)| *dst += bias);
                }
                return;
            }
            let src: Vec<f32> = slots.iter().flat_map(|&slot| row(slot)).copied().collect();
            multiply(
                simd,
                self.weights,
                self.id,
                first_row,
                self.bias,
                &src,
                &mut dst,
            );
        });
    }
}

/// `dst[row] = sum_s weights[row, s] * src[row, s]`, with `n_slots` rows of `width` elements a row.
pub(super) fn weighted_sum(
    n_slots: usize,
    width: usize,
    src: &[f32],
    weights: &[f32],
    dst: &mut [f32],
) {
    for_rows(dst, width, |row, dst| {
        dst.fill(0.0);
        for slot in row * n_slots..(row + 1) * n_slots {
            let terms = dst.iter_mut().zip(&src[slot * width..]);
            terms.for_each(|(dst, x)| *dst += weights[slot] * x);
        }
    });
}
