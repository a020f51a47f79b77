//! Attention of each query head over a layer's cache.

use super::{Access, Kernel, Uses, map, row_stride};
use crate::kv_cache::{KvLayer, KvLayout, chunk_start, first_visible};
use crate::plan::Op;
use bytemuck::{Pod, Zeroable};
use std::ops::{Range, RangeInclusive};

/// The `Params` of `attention.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_head: u32,
    pub(crate) n_head_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) stride: u32,
    pub(crate) scale: f32,
    pub(crate) window: u32,
    /// 0 for none.
    pub(crate) soft_cap: f32,
    /// Of [`ALIBI`], [`SINKS`], [`VALUES_END_KEYS`] and [`BOTH_WAYS`] those that hold.
    pub(crate) of_heads: u32,
    pub(crate) value_dim: u32,
    pub(crate) dst_stride: u32,
    /// 0 for none.
    pub(crate) chunk: u32,
    pub(crate) padding: u32,
}

/// Distance lowers scores.
const ALIBI: u32 = 1;

/// Each head has a score without a value.
const SINKS: u32 = 2;

/// A value is the rest of its key.
const VALUES_END_KEYS: u32 = 4;
/// Queries see keys behind their own too.
const BOTH_WAYS: u32 = 8;

/// What attends to what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) n_head: usize,
    /// A divisor of `n_head`.
    pub(crate) n_head_kv: usize,
    /// Elements of a key, but for those that its value is; for the kernel a multiple of 4, at most
    /// [`MAX_HEAD_DIM`](crate::kv_cache::MAX_HEAD_DIM).
    pub(crate) head_dim: usize,
    /// Likewise of a value.
    pub(crate) value_dim: usize,
    /// Whether a value is the rest of its key.
    pub(crate) values_end_keys: bool,
    /// Of the first row; the kernel has it from the batch.
    pub(crate) position: usize,
    /// Of the batch; likewise.
    pub(crate) n_rows: usize,
    /// Whether queries see no key behind their own; where not, they see those of the whole batch.
    pub(crate) causal: bool,
    /// Multiplies the dot products.
    pub(crate) scale: f32,
    /// Key `j` is visible to query `i` where `0 <= i - j < window`.
    pub(crate) window: Option<usize>,
    /// Key `j` is visible to query `i` where it is no earlier than the last multiple of this up to `i`.
    pub(crate) chunk: Option<usize>,
    /// On scaled dot products.
    pub(crate) soft_cap: Option<f32>,
    /// Whether distance lowers scores.
    pub(crate) alibi: bool,
    /// Whether each head has a score without a value.
    pub(crate) has_sinks: bool,
}

impl Shape {
    /// Of a step of attention over the cache of its layer; `None` for another step.
    pub(crate) fn of(op: &Op, kv: &KvLayout, position: usize, n_rows: usize) -> Option<Shape> {
        let Op::Attention {
            layer,
            n_head,
            scale,
            causal,
            window,
            chunk,
            soft_cap,
            alibi,
            sinks,
            ..
        } = *op
        else {
            return None;
        };
        let cache = kv.layers.get(layer)?;
        Some(Shape {
            n_head,
            n_head_kv: cache.n_head_kv,
            head_dim: cache.head_dim,
            value_dim: cache.value_dim,
            values_end_keys: cache.values_end_keys,
            position,
            n_rows,
            causal,
            scale,
            window,
            // One that holds all positions hides none.
            chunk: chunk.filter(|&chunk| chunk < kv.capacity),
            soft_cap,
            alibi,
            has_sinks: sinks.is_some(),
        })
    }

    /// Elements of a query head.
    pub(crate) fn query_dim(&self) -> usize {
        self.cache().query_dim()
    }

    fn cache(&self) -> KvLayer {
        KvLayer {
            n_head_kv: self.n_head_kv,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            values_end_keys: self.values_end_keys,
        }
    }

    /// Whether keys and values are apart and of one length, and no chunks hide any: what the kernels of few rows and
    /// of cooperative matrices take.
    pub(crate) fn is_plain(&self) -> bool {
        self.cache() == KvLayer::separate(self.n_head_kv, self.head_dim) && self.chunk.is_none()
    }

    /// The window as kernels have it, which no cache fills where there is none.
    pub(crate) fn window_or_max(&self) -> u32 {
        let window = self.window.and_then(|window| u32::try_from(window).ok());
        window.unwrap_or(u32::MAX)
    }
}

impl Params {
    pub(crate) fn new(shape: &Shape) -> Params {
        Params {
            n_head: shape.n_head as u32,
            n_head_kv: shape.n_head_kv as u32,
            head_dim: shape.head_dim as u32,
            stride: row_stride(shape.n_head * shape.query_dim()) as u32,
            scale: shape.scale,
            window: shape.window_or_max(),
            soft_cap: shape.soft_cap.unwrap_or(0.0),
            of_heads: ALIBI * u32::from(shape.alibi)
                + SINKS * u32::from(shape.has_sinks)
                + VALUES_END_KEYS * u32::from(shape.values_end_keys)
                + BOTH_WAYS * u32::from(!shape.causal),
            value_dim: shape.value_dim as u32,
            dst_stride: row_stride(shape.n_head * shape.value_dim) as u32,
            chunk: shape
                .chunk
                .and_then(|chunk| u32::try_from(chunk).ok())
                .unwrap_or(0),
            padding: 0,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention",
    wgsl: include_str!("attention.wgsl"),
    bindings: &[
        ("q", Access::Read),
        ("keys", Access::Read),
        ("values", Access::Read),
        ("sinks", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        kv: true,
        reduce: true,
        soft_cap: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(params.n_head as usize, n_rows)
}

/// Softmax-weighted values `[n_rows, n_head, value_dim]` for queries `q` `[n_rows, n_head, query_dim]` over `keys`
/// `[capacity, n_head_kv, head_dim]` and `values` `[capacity, n_head_kv, value_dim]`, where each head may have a score without a value, `sinks` `[n_head]`.
pub(crate) fn twin(
    shape: &Shape,
    sinks: Option<&[f32]>,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    dst: &mut [f32],
) {
    let Shape {
        n_head, value_dim, ..
    } = *shape;
    for (index, (q, dst)) in q
        .chunks_exact(shape.query_dim())
        .zip(dst.chunks_exact_mut(value_dim))
        .enumerate()
    {
        let (row, head) = (index / n_head, index % n_head);
        let (visible, weights, highest) = exponentials(shape, row, head, q, [keys, values]);
        let of_sink = sinks.map_or(0.0, |sinks| (f64::from(sinks[head]) - highest).exp());
        let total = weights.iter().sum::<f64>() + of_sink;
        let mut sums = vec![0.0; value_dim];
        for (key, weight) in visible.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&values[shape.at(key, head, value_dim)]) {
                *sum += weight * f64::from(value);
            }
        }
        for (dst, sum) in dst.iter_mut().zip(sums) {
            *dst = (sum / total) as f32;
        }
    }
}

/// What each query head of row `row` gives to each position: `q` is `[n_head, query_dim]`, keys and values
/// `[n_keys, n_head_kv, head_dim or value_dim]` and `dst` `[n_head, n_positions]`, zero where nothing is visible. Values
/// are read where they end keys. What a sink takes is in no position's share.
pub(crate) fn weights(
    shape: &Shape,
    sinks: Option<&[f32]>,
    row: usize,
    q: &[f32],
    cache: [&[f32]; 2],
    dst: &mut [f32],
) {
    dst.fill(0.0);
    let n_positions = dst.len() / shape.n_head;
    for (head, (q, dst)) in q
        .chunks_exact(shape.query_dim())
        .zip(dst.chunks_exact_mut(n_positions))
        .enumerate()
    {
        let (visible, weights, highest) = exponentials(shape, row, head, q, cache);
        let of_sink = sinks.map_or(0.0, |sinks| (f64::from(sinks[head]) - highest).exp());
        let total = weights.iter().sum::<f64>() + of_sink;
        for (key, weight) in visible.zip(weights) {
            dst[key] = (weight / total) as f32;
        }
    }
}

impl Shape {
    /// The elements of a position's key, or value, of `dim` elements that a query head reads.
    fn at(&self, position: usize, head: usize, dim: usize) -> Range<usize> {
        let head_kv = head / (self.n_head / self.n_head_kv);
        let start = (position * self.n_head_kv + head_kv) * dim;
        start..start + dim
    }
}

/// The positions that a query head sees, the numerators of their softmax, and the score whose numerator is 1.
fn exponentials(
    shape: &Shape,
    row: usize,
    head: usize,
    q: &[f32],
    [keys, values]: [&[f32]; 2],
) -> (RangeInclusive<usize>, Vec<f64>, f64) {
    let position = shape.position + row;
    let last = match shape.causal {
        true => position,
        false => shape.position + shape.n_rows.saturating_sub(1),
    };
    let first = first_visible(position, shape.window).max(chunk_start(position, shape.chunk));
    let visible = first..=last;
    // Without values behind keys the rest of a query is empty.
    let (q, rest) = q.split_at(shape.head_dim);
    let mut weights: Vec<f64> = visible
        .clone()
        .map(|key| {
            let mut product = dot(q, &keys[shape.at(key, head, shape.head_dim)]);
            if shape.values_end_keys {
                product += dot(rest, &values[shape.at(key, head, shape.value_dim)]);
            }
            let score = f64::from(shape.scale) * product;
            let capped = shape
                .soft_cap
                .map_or(score, |cap| map::soft_cap(score, cap));
            match shape.alibi {
                true => capped - alibi_slope(head, shape.n_head) * (position - key) as f64,
                false => capped,
            }
        })
        .collect();
    let highest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for weight in &mut weights {
        *weight = (*weight - highest).exp();
    }
    (visible, weights, highest)
}

/// What each position of distance costs a head's scores (arXiv:2108.12409, section 3, and its authors' code for
/// counts of heads that are no power of two).
pub(crate) fn alibi_slope(head: usize, n_head: usize) -> f64 {
    let n = 1_usize << n_head.max(1).ilog2();
    let exponent = match head < n {
        true => -8.0 * (head + 1) as f64,
        false => -4.0 * (2 * (head - n) + 1) as f64,
    };
    (exponent / n as f64).exp2()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}
