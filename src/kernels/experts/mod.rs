//! Mixtures of experts: twins of what chooses experts and adds up their results.

use crate::plan::{ExpertGroups, Gating};

/// The least that the sum of the chosen scores counts as: the smallest normal 16-bit float.
pub(crate) const LEAST_SUM: f32 = 1.0 / 16384.0;

/// The scores of a row of logits.
pub(crate) fn scores(gating: Gating, logits: &[f32]) -> Vec<f64> {
    let logits = logits.iter().copied().map(f64::from);
    match gating {
        Gating::Sigmoid => logits.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Gating::Softmax => {
            let highest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
            let numerators: Vec<f64> = logits.map(|x| (x - highest).exp()).collect();
            let total: f64 = numerators.iter().sum();
            numerators.into_iter().map(|x| x / total).collect()
        }
    }
}

/// The indices of the `n` largest of `values`, largest first; of equal ones the first.
fn largest(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(n);
    order
}

/// The ids `[n_rows, n_chosen]` of the experts of each row of `logits` `[n_rows, n_expert]`.
///
/// Without bias and groups logits have the order of their scores, and that order rounds nothing.
pub(crate) fn choose_twin(
    gating: Gating,
    logits: &[f32],
    n_expert: usize,
    bias: Option<&[f32]>,
    groups: Option<ExpertGroups>,
    n_chosen: usize,
    dst: &mut [f32],
) {
    let rows = logits.chunks_exact(n_expert);
    for (logits, dst) in rows.zip(dst.chunks_exact_mut(n_chosen)) {
        let mut values: Vec<f32> = match bias {
            None if groups.is_none() => logits.to_vec(),
            bias => {
                let scores = scores(gating, logits).into_iter().enumerate();
                let added = |expert: usize| bias.map_or(0.0, |bias| bias[expert]);
                let biased = scores.map(|(expert, score)| score as f32 + added(expert));
                biased.collect()
            }
        };
        if let Some(ExpertGroups { n_group, n_used }) = groups {
            let size = n_expert / n_group;
            let worth = |group: &[f32]| {
                let best = largest(group, 2).into_iter().map(|index| group[index]);
                best.sum::<f32>()
            };
            let worths: Vec<f32> = values.chunks_exact(size).map(worth).collect();
            for group in largest(&worths, n_group).into_iter().skip(n_used) {
                values[group * size..][..size].fill(f32::NEG_INFINITY);
            }
        }
        for (dst, expert) in dst.iter_mut().zip(largest(&values, n_chosen)) {
            *dst = expert as f32;
        }
    }
}

/// The weights `[n_rows, n_chosen]` of the chosen experts; `factors` are `[n_expert]`.
pub(crate) fn weights_twin(
    gating: Gating,
    logits: &[f32],
    n_expert: usize,
    chosen: &[f32],
    (normalised, scale, factors): (bool, f32, Option<&[f32]>),
    dst: &mut [f32],
) {
    let n_rows = logits.len() / n_expert;
    let n_chosen = dst.len().checked_div(n_rows).unwrap_or(0).max(1);
    let rows = logits
        .chunks_exact(n_expert)
        .zip(chosen.chunks_exact(n_chosen));
    for ((logits, chosen), dst) in rows.zip(dst.chunks_exact_mut(n_chosen)) {
        let scores = scores(gating, logits);
        let of = |id: f32| scores[expert(id, n_expert)];
        let sum: f64 = chosen.iter().map(|&id| of(id)).sum();
        let divisor = match normalised {
            true => sum.max(f64::from(LEAST_SUM)),
            false => 1.0,
        };
        for (dst, &id) in dst.iter_mut().zip(chosen) {
            let factor = factors.map_or(1.0, |factors| f64::from(factors[expert(id, n_expert)]));
            *dst = (of(id) / divisor * f64::from(scale) * factor) as f32;
        }
    }
}

/// The expert of an id, which exists whatever the id is.
pub(crate) fn expert(id: f32, n_expert: usize) -> usize {
    (id as usize).min(n_expert.saturating_sub(1))
}

/// What [`Op::ExpertMatMul`](crate::plan::Op::ExpertMatMul) multiplies.
#[derive(Clone, Copy)]
pub(crate) struct ExpertMatrix {
    pub(crate) n_expert: usize,
    pub(crate) n_out: usize,
    pub(crate) n_cols: usize,
}

/// The products of `src`, `[n_rows, n_cols]` or `[n_rows, n_chosen, n_cols]`, with the matrices of the chosen
/// experts: `dst` is `[n_rows, n_chosen, n_out]`. `weights` decodes a row of all experts' matrices.
pub(crate) fn matmul_twin(
    weights: &(dyn Fn(usize, &mut [f32]) + Sync),
    matrix: ExpertMatrix,
    src: &[f32],
    chosen: &[f32],
    bias: Option<&[f32]>,
    dst: &mut [f32],
) {
    let ExpertMatrix {
        n_expert,
        n_out,
        n_cols,
    } = matrix;
    let slots_per_src = (chosen.len() * n_cols / src.len().max(1)).max(1);
    let slots = dst.chunks_exact_mut(n_out).zip(chosen);
    for (slot, (dst, &id)) in slots.enumerate() {
        let first = expert(id, n_expert) * n_out;
        let src = &src[slot / slots_per_src * n_cols..][..n_cols];
        let of_expert = |row: usize, out: &mut [f32]| weights(first + row, out);
        let bias = bias.map(|bias| &bias[first..][..n_out]);
        super::matmul::twin(&of_expert, n_cols, src, bias, dst);
    }
}

/// `dst[row, s] = weights[row, s] * src[row]`, with rows of `width` elements.
pub(crate) fn weigh_twin(width: usize, src: &[f32], weights: &[f32], dst: &mut [f32]) {
    let n_slots = (weights.len() * width)
        .checked_div(src.len())
        .unwrap_or(0)
        .max(1);
    for (slot, (dst, weight)) in dst.chunks_exact_mut(width).zip(weights).enumerate() {
        let src = &src[slot / n_slots * width..][..width];
        dst.iter_mut()
            .zip(src)
            .for_each(|(dst, x)| *dst = weight * x);
    }
}

/// `dst[row] = sum_s weights[row, s] * src[row, s]`, with `n_slots` rows of `width` elements a row.
pub(crate) fn sum_twin(
    n_slots: usize,
    width: usize,
    src: &[f32],
    weights: &[f32],
    dst: &mut [f32],
) {
    let rows = src
        .chunks_exact(n_slots * width)
        .zip(weights.chunks_exact(n_slots));
    for ((src, weights), dst) in rows.zip(dst.chunks_exact_mut(width)) {
        for (column, dst) in dst.iter_mut().enumerate() {
            let terms = weights.iter().enumerate();
            let product =
                |(slot, &w): (usize, &f32)| f64::from(w) * f64::from(src[slot * width + column]);
            *dst = terms.map(product).sum::<f64>() as f32;
        }
    }
}
