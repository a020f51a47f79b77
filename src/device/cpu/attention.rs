//! Causal attention over the cache.

use super::cache::LayerCache;
use super::elementwise::soft_cap;
use super::simd::Simd;
use crate::kernels::attention::alibi_slope;
use crate::kv_cache::{chunk_start, first_visible};
use rayon::prelude::*;

/// Keys whose scores are computed together.
const BLOCK_KEYS: usize = 128;

/// What attends to what.
pub(super) struct Attention<'a> {
    pub(super) n_head: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) chunk: Option<usize>,
    pub(super) soft_cap: Option<f32>,
    pub(super) alibi: bool,
    /// A score without a value for each head.
    pub(super) sinks: Option<&'a [f32]>,
    /// Of the first row.
    pub(super) position: usize,
}

/// Softmax-weighted values `[n_rows, n_head, value_dim]` for queries `q` `[n_rows, n_head, query_dim]`.
pub(super) fn attention(
    simd: Simd,
    attention: &Attention<'_>,
    cache: &LayerCache,
    q: &[f32],
    dst: &mut [f32],
) {
    let query_dim = cache.shape.query_dim();
    dst.par_chunks_exact_mut(cache.shape.value_dim)
        .enumerate()
        .for_each(|(index, dst)| {
            let q = &q[index * query_dim..][..query_dim];
            one_head(simd, attention, cache, index, q, dst);
        });
}

/// One head of one row. The softmax runs over blocks of keys: where a block has a new highest score,
/// what was summed up so far is scaled down to it (arXiv:1805.02867, section 3).
fn one_head(
    simd: Simd,
    attention: &Attention<'_>,
    cache: &LayerCache,
    index: usize,
    q: &[f32],
    dst: &mut [f32],
) {
    let (row, head) = (index / attention.n_head, index % attention.n_head);
    let head_kv = head / (attention.n_head / cache.shape.n_head_kv);
    let last = attention.position + row;
    let first = first_visible(last, attention.window).max(chunk_start(last, attention.chunk));
    let shape = cache.shape;
    let (q, rest) = q.split_at(shape.head_dim);

    let slope = match attention.alibi {
        true => alibi_slope(head, attention.n_head) as f32,
        false => 0.0,
    };
    let (mut highest, mut total) = (f32::NEG_INFINITY, 0.0);
    let mut weights = [0.0; BLOCK_KEYS];
    let mut of_values = [0.0; BLOCK_KEYS];
    dst.fill(0.0);
    for block in (first..=last).step_by(BLOCK_KEYS) {
        let weights = &mut weights[..BLOCK_KEYS.min(last + 1 - block)];
        let n = weights.len();
        let cells = |width: usize, dim: usize| {
            let start = block * width + head_kv * dim;
            start..start + (n - 1) * width + dim
        };
        let keys = cells(shape.key_width(), shape.head_dim);
        let values = cells(shape.value_width(), shape.value_dim);
        simd.dots(cache.keys.rows(keys, shape.key_width()), q, weights);
        if shape.values_end_keys {
            let rows = cache.values.rows(values.clone(), shape.value_width());
            simd.dots(rows, rest, &mut of_values[..n]);
            let each = weights.iter_mut().zip(&of_values);
            each.for_each(|(weight, of_value)| *weight += of_value);
        }

        for (key, weight) in (block..).zip(weights.iter_mut()) {
            *weight *= attention.scale;
            if let Some(cap) = attention.soft_cap {
                *weight = soft_cap(*weight, cap);
            }
            *weight -= slope * (last - key) as f32;
        }
        let block_highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if block_highest > highest {
            let shrink = (highest - block_highest).exp();
            total *= shrink;
            dst.iter_mut().for_each(|sum| *sum *= shrink);
            highest = block_highest;
        }
        for weight in weights.iter_mut() {
            *weight = (*weight - highest).exp();
            total += *weight;
        }
        let rows = cache.values.rows(values, shape.value_width());
        simd.weighted_sum(rows, weights, dst);
    }
    let mut shrink = 1.0;
    if let Some(sinks) = attention.sinks {
        let most = highest.max(sinks[head]);
        shrink = (highest - most).exp();
        total = total * shrink + (sinks[head] - most).exp();
    }
    dst.iter_mut().for_each(|sum| *sum = *sum * shrink / total);
}
