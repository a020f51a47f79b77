//! Products of activations with weight matrices, decode and prefill.

use super::simd::Simd;
use super::weights::CpuWeights;
use crate::model::WeightId;
use rayon::prelude::*;

/// Weight rows that are decoded together for many activation rows.
pub(super) const PANEL_ROWS: usize = 8;

/// Columns of a panel: whole blocks of every weight type, and a panel and its activations fit in the
/// first-level cache.
const PANEL_COLS: usize = 1024;

/// Tasks for each thread, so that a thread that is held up does not hold up the others.
pub(super) const TASKS_PER_THREAD: usize = 4;

/// Weights below which waking another thread costs more than it saves.
const PARALLEL_WEIGHTS: usize = 1 << 15;

/// `dst[row, j] = sum_i src[row, i] * weight[j, i] (+ bias[j])`: `src` is `[n_rows, n_cols]`, `dst`
/// `[n_rows, n_out]`.
pub(super) fn matmul(
    simd: Simd,
    weights: &CpuWeights,
    id: WeightId,
    bias: Option<&[f32]>,
    src: &[f32],
    dst: &mut [f32],
) {
    let weight = weights.get(id);
    let (n_out, n_cols) = (weight.n_rows, weight.n_cols);
    let n_rows = src.len() / n_cols;
    let n_tasks = match n_rows * n_out * n_cols {
        0..PARALLEL_WEIGHTS => 1,
        _ => TASKS_PER_THREAD * rayon::current_num_threads(),
    };
    let outputs_per_task = n_out.div_ceil(n_tasks).next_multiple_of(PANEL_ROWS);
    if n_rows == 1 {
        dst.par_chunks_mut(outputs_per_task)
            .enumerate()
            .for_each(|(task, dst)| {
                let first = task * outputs_per_task;
                let rows = weights.rows(id, first..first + dst.len());
                simd.matvec(weight.ty, &rows, src, dst);
                if let Some(bias) = bias {
                    dst.iter_mut()
                        .zip(&bias[first..])
                        .for_each(|(dst, bias)| *dst += bias);
                }
            });
        return;
    }
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(n_out.div_ceil(outputs_per_task), || {
        Vec::with_capacity(n_rows)
    });
    for row in dst.chunks_exact_mut(n_out) {
        for (task, outputs) in tasks.iter_mut().zip(row.chunks_mut(outputs_per_task)) {
            task.push(outputs);
        }
    }
    tasks
        .into_par_iter()
        .enumerate()
        .for_each(|(task, mut dst)| {
            let first = task * outputs_per_task;
            multiply(simd, weights, id, first, bias, src, &mut dst);
        });
}

/// The outputs from `first` on, as many as each row of `dst` has room for.
pub(super) fn multiply(
    simd: Simd,
    weights: &CpuWeights,
    id: WeightId,
    first: usize,
    bias: Option<&[f32]>,
    src: &[f32],
    dst: &mut [&mut [f32]],
) {
    let weight = weights.get(id);
    let n_cols = weight.n_cols;
    let n_out = dst.first().map_or(0, |row| row.len());
    for row in dst.iter_mut() {
        match bias {
            Some(bias) => row.copy_from_slice(&bias[first..first + n_out]),
            None => row.fill(0.0),
        }
    }
    let row_bytes = weight.ty.row_bytes(n_cols);
    let mut panel = [0.0; PANEL_ROWS * PANEL_COLS];
    for output in (0..n_out).step_by(PANEL_ROWS) {
        let n_panel = PANEL_ROWS.min(n_out - output);
        let rows = weights.rows(id, first + output..first + output + n_panel);
        for col in (0..n_cols).step_by(PANEL_COLS) {
            let width = PANEL_COLS.min(n_cols - col);
            let (at, len) = (weight.ty.row_bytes(col), weight.ty.row_bytes(width));
            let panel = &mut panel[..n_panel * width];
            for (row, panel) in rows
                .chunks_exact(row_bytes)
                .zip(panel.chunks_exact_mut(width))
            {
                simd.decode(weight.ty, &row[at..at + len], panel);
            }
            simd.multiply(panel, width, &src[col..], n_cols, dst, output);
        }
    }
}
