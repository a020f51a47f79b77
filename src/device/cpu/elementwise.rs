//! The small ops: norms, rotations, activations and sums.

use super::simd::{RowCells, Rows, Simd};
use crate::plan::{Activation, RopePairing, RopeTable};
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

/// `dst = src / sqrt(mean(src^2) + eps) * weight` over each group of `weight.len()` elements.
pub(super) fn rms_norm(simd: Simd, src: &[f32], weight: &[f32], eps: f32, dst: &mut [f32]) {
    let group = weight.len();
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
        for ((dst, src), weight) in dst.iter_mut().zip(src).zip(weight) {
            *dst = src * scale * weight;
        }
    });
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
            // 1 + tanh(u) = 2 * sigmoid(2 * u)
            Activation::GeluTanh => each.for_each(|((dst, &x), up)| {
                let u = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
                *dst = x * sigmoid(2.0 * u) * up;
            }),
        }
    });
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
