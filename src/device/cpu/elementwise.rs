//! The small ops: norms, rotations, activations and sums.

use super::simd::{RowCells, Rows, Simd};
use crate::kernels::take_columns;
use crate::plan::{Activation, Function, RopePairing, RopeTable};
use rayon::prelude::*;
use std::f32::consts::PI;

/// Elements below which waking another thread costs more than it saves.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// Calls `each` with the index of every row of `dst` and the row.
pub(super) fn for_rows(dst: &mut [f32], width: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    if dst.len() < PARALLEL_ELEMENTS {
        dst.chunks_exact_mut(width)
            .enumerate()
            .for_each(|(row, dst)| each(row, dst));
    } else {
        dst.par_chunks_exact_mut(width)
            .enumerate()
            .for_each(|(row, dst)| each(row, dst));
    }
}

/// `dst = src / sqrt(mean(src^2) + eps) (* weight)` over each group of `group` elements.
pub(super) fn rms_norm(
    simd: Simd,
    group: usize,
    src: &[f32],
    weight: Option<&[f32]>,
    eps: f32,
    dst: &mut [f32],
) {
    for_rows(dst, group, |row, dst| {
        let src = &src[row * group..][..group];
        let mut squares = [0.0];
        simd.dots(
            Rows {
                cells: RowCells::F32(src),
                stride: group,
            },
            src,
            &mut squares,
        );
        let scale = 1.0 / (squares[0] / group as f32 + eps).sqrt();
        let Some(weight) = weight else {
            let each = dst.iter_mut().zip(src);
            return each.for_each(|(dst, src)| *dst = src * scale);
        };
        for ((dst, src), weight) in dst.iter_mut().zip(src).zip(weight) {
            *dst = src * scale * weight;
        }
    });
}

/// As `kernels::take_columns::twin`, of rows of `src_width` elements.
pub(super) fn take_columns(
    width: usize,
    (src, src_width): (&[f32], usize),
    (first, of_group): (usize, [usize; 2]),
    dst: &mut [f32],
) {
    for_rows(dst, width, |row, dst| {
        take_columns::twin(&src[row * src_width..][..src_width], first, of_group, dst);
    });
}

/// `dst = (src - mean) / sqrt(variance + eps) * weight (+ bias)` over each group of `group` elements.
pub(super) fn layer_norm(
    group: usize,
    src: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    eps: f32,
    dst: &mut [f32],
) {
    for_rows(dst, group, |row, dst| {
        let src = &src[row * group..][..group];
        let n = group as f32;
        let mean = sum(src, |x| x) / n;
        let variance = sum(src, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        let first = row * group % weight.len();
        let each = dst.iter_mut().zip(src).zip(&weight[first..]);
        each.for_each(|((dst, src), weight)| *dst = (src - mean) * scale * weight);
        if let Some(bias) = bias {
            let each = dst.iter_mut().zip(&bias[first..]);
            each.for_each(|(dst, bias)| *dst += bias);
        }
    });
}

/// The sum of `of` each element, in eight parts that the compiler adds side by side.
fn sum(src: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (eights, rest) = src.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for (sum, &x) in sums.iter_mut().zip(eight) {
            *sum += of(x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| of(x)).sum::<f32>()
}

/// The angles of a batch: for each row the cosines of all pairs, then their sines.
pub(super) fn rope_angles(table: &RopeTable, position: usize, angles: &mut [f32]) {
    let n_dims = table.n_dims();
    if n_dims == 0 {
        return;
    }
    for_rows(angles, n_dims, |row, angles| {
        let (cosines, sines) = angles.split_at_mut(n_dims / 2);
        let pairs = cosines.iter_mut().zip(sines);
        for ((cosine, sine), [cos, sin]) in pairs.zip(table.row(position + row)) {
            *cosine = cos;
            *sine = sin;
        }
    });
}

/// Turns each head of `src` by the angles of its row.
pub(super) fn rope(
    pairing: RopePairing,
    angles: &[f32],
    n_dims: usize,
    width: usize,
    head_dim: usize,
    src: &[f32],
    dst: &mut [f32],
) {
    for_rows(dst, width, |row, dst| {
        dst.copy_from_slice(&src[row * width..][..width]);
        let (cosines, sines) = angles[row * n_dims..][..n_dims].split_at(n_dims / 2);
        for head in dst.chunks_exact_mut(head_dim) {
            let turned = &mut head[..n_dims];
            match pairing {
                RopePairing::Adjacent => {
                    let (pairs, _) = turned.as_chunks_mut::<2>();
                    for ((pair, cos), sin) in pairs.iter_mut().zip(cosines).zip(sines) {
                        let [x, y] = *pair;
                        *pair = [x * cos - y * sin, x * sin + y * cos];
                    }
                }
                RopePairing::Halves => {
                    let (firsts, seconds) = turned.split_at_mut(n_dims / 2);
                    let pairs = firsts.iter_mut().zip(seconds);
                    for (((first, second), cos), sin) in pairs.zip(cosines).zip(sines) {
                        let (x, y) = (*first, *second);
                        *first = x * cos - y * sin;
                        *second = x * sin + y * cos;
                    }
                }
            }
        }
    });
}

/// `dst = activation(gate) * up`, rows of `width`.
pub(super) fn gated_activation(
    activation: Activation,
    width: usize,
    gate: &[f32],
    up: &[f32],
    dst: &mut [f32],
) {
    for_rows(dst, width, |row, dst| {
        let (gate, up) = (&gate[row * width..][..width], &up[row * width..][..width]);
        let each = dst.iter_mut().zip(gate).zip(up);
        match activation {
            Activation::Silu => each.for_each(|((dst, &x), up)| *dst = x * sigmoid(x) * up),
            Activation::GeluTanh => each.for_each(|((dst, &x), up)| *dst = gelu_tanh(x) * up),
            Activation::ReluSquared => each.for_each(|((dst, &x), up)| *dst = relu_squared(x) * up),
            Activation::ClampedSwiglu => {
                each.for_each(|((dst, &x), up)| *dst = clamped(x) * (up.clamp(-7.0, 7.0) + 1.0))
            }
            Activation::Identity => each.for_each(|((dst, &x), up)| *dst = x * up),
            Activation::Sigmoid => each.for_each(|((dst, &x), up)| *dst = sigmoid(x) * up),
        }
    });
}

/// `dst = function(src)`, rows of `width`.
pub(super) fn map(function: Function, width: usize, src: &[f32], dst: &mut [f32]) {
    for_rows(dst, width, |row, dst| {
        let each = dst.iter_mut().zip(&src[row * width..][..width]);
        match function {
            Function::Scale(factor) => each.for_each(|(dst, x)| *dst = x * factor),
            Function::SoftCap(cap) => each.for_each(|(dst, &x)| *dst = soft_cap(x, cap)),
            Function::Sigmoid => each.for_each(|(dst, &x)| *dst = sigmoid(x)),
            Function::Activation(activation) => {
                each.for_each(|(dst, &x)| *dst = activate(activation, x));
            }
        }
    });
}

/// Of one element.
pub(super) fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::ReluSquared => relu_squared(x),
        Activation::ClampedSwiglu => clamped(x),
        Activation::Identity => x,
        Activation::Sigmoid => sigmoid(x),
    }
}

/// With `1 + tanh(u) = 2 * sigmoid(2 * u)`.
fn gelu_tanh(x: f32) -> f32 {
    let u = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
    x * sigmoid(2.0 * u)
}

/// `g * sigmoid(1.702 * g)` of `g = min(x, 7)`.
fn clamped(x: f32) -> f32 {
    let x = if x > 7.0 { 7.0 } else { x };
    x * sigmoid(1.702 * x)
}

/// What is not a number stays so: `max` would make zero of it.
fn relu_squared(x: f32) -> f32 {
    let positive = if x < 0.0 { 0.0 } else { x };
    positive * positive
}

/// `cap * tanh(x / cap)`; what is not finite stays as it is.
pub(super) fn soft_cap(x: f32, cap: f32) -> f32 {
    if x.is_finite() {
        cap * (x / cap).tanh()
    } else {
        x
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `dst = a + b`, rows of `width`.
pub(super) fn add(width: usize, a: &[f32], b: &[f32], dst: &mut [f32]) {
    for_rows(dst, width, |row, dst| {
        let (a, b) = (&a[row * width..][..width], &b[row * width..][..width]);
        for ((dst, a), b) in dst.iter_mut().zip(a).zip(b) {
            *dst = a + b;
        }
    });
}
