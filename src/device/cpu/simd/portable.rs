//! Plain Rust in a shape that compilers vectorise.

use super::{RowCells, Rows};
use crate::gguf::WeightType;

/// Sums that run side by side.
const LANES: usize = 8;

/// Weights that are decoded at a time: whole blocks of every type.
const CHUNK: usize = 256;

pub(super) fn decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        WeightType::F16 => {
            let (halves, _) = bytes.as_chunks::<2>();
            for (out, half) in out.iter_mut().zip(halves) {
                *out = f16_to_f32(u16::from_le_bytes(*half));
            }
        }
        _ => ty.decode(bytes, out),
    }
}

/// The value of a 16-bit float, without a branch: the exponent is moved into place by a product, which
/// is exact and takes care of subnormal numbers too.
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 {
        0x7f80_0000
    } else {
        0
    };
    let value = f32::from_bits(magnitude) * 2_f32.powi(112);
    f32::from_bits(value.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

pub(super) fn matvec(ty: WeightType, rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(ty.row_bytes(x.len()))) {
        *out = matvec_row(ty, row, x);
    }
}

fn matvec_row(ty: WeightType, bytes: &[u8], x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let mut rest = 0.0;
    let mut weights = [0.0; CHUNK];
    for (x, bytes) in x.chunks(CHUNK).zip(bytes.chunks(ty.row_bytes(CHUNK))) {
        let weights = &mut weights[..x.len()];
        decode(ty, bytes, weights);
        let (x_lanes, x_rest) = x.as_chunks::<LANES>();
        let (w_lanes, w_rest) = weights.as_chunks::<LANES>();
        for (x, w) in x_lanes.iter().zip(w_lanes) {
            for lane in 0..LANES {
                sums[lane] = multiply_add(x[lane], w[lane], sums[lane]);
            }
        }
        rest += x_rest.iter().zip(w_rest).map(|(x, w)| x * w).sum::<f32>();
    }
    sum(sums) + rest
}

pub(super) fn dots(rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => dots_of(cells, |x| x, rows.stride, x, out),
        RowCells::F16(cells) => dots_of(cells, f16_to_f32, rows.stride, x, out),
    }
}

fn dots_of<T: Copy>(
    cells: &[T],
    widen: impl Fn(T) -> f32,
    stride: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    for (j, out) in out.iter_mut().enumerate() {
        let (lanes, rest) = cells[j * stride..][..x.len()].as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (cells, x) in lanes.iter().zip(x_lanes) {
            for lane in 0..LANES {
                sums[lane] = multiply_add(widen(cells[lane]), x[lane], sums[lane]);
            }
        }
        let rest = rest.iter().zip(x_rest).map(|(&cell, x)| widen(cell) * x);
        *out = sum(sums) + rest.sum::<f32>();
    }
}

pub(super) fn weighted_sum(rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => weighted_sum_of(cells, |x| x, rows.stride, weights, out),
        RowCells::F16(cells) => weighted_sum_of(cells, f16_to_f32, rows.stride, weights, out),
    }
}

fn weighted_sum_of<T: Copy>(
    cells: &[T],
    widen: impl Fn(T) -> f32,
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    for (j, &weight) in weights.iter().enumerate() {
        for (out, &cell) in out.iter_mut().zip(&cells[j * stride..]) {
            *out = multiply_add(weight, widen(cell), *out);
        }
    }
}

pub(super) fn multiply(
    panel: &[f32],
    n_cols: usize,
    src: &[f32],
    src_stride: usize,
    dst: &mut [&mut [f32]],
    at: usize,
) {
    let n_out = panel.len() / n_cols;
    let weights = |j: usize| &panel[j * n_cols..][..n_cols];
    let n_rows = dst.len();
    let row = |row: usize| &src[row * src_stride..][..n_cols];
    for first in (0..n_rows).step_by(2) {
        if first + 1 < n_rows {
            for j in (0..n_out).step_by(2) {
                if j + 1 < n_out {
                    let sums = tile([weights(j), weights(j + 1)], [row(first), row(first + 1)]);
                    for (r, sums) in sums.iter().enumerate() {
                        dst[first + r][at + j] += sums[0];
                        dst[first + r][at + j + 1] += sums[1];
                    }
                } else {
                    let sums = tile([weights(j)], [row(first), row(first + 1)]);
                    dst[first][at + j] += sums[0][0];
                    dst[first + 1][at + j] += sums[1][0];
                }
            }
        } else {
            for j in 0..n_out {
                dst[first][at + j] += tile([weights(j)], [row(first)])[0][0];
            }
        }
    }
}

/// The dot product of each of `R` activation rows with each of `W` weight rows.
fn tile<const W: usize, const R: usize>(weights: [&[f32]; W], rows: [&[f32]; R]) -> [[f32; W]; R] {
    let n_cols = rows[0].len();
    let weights = weights.map(|weights| weights[..n_cols].as_chunks::<LANES>());
    let rows = rows.map(|row| row[..n_cols].as_chunks::<LANES>());
    let mut sums = [[[0.0; LANES]; W]; R];
    for i in 0..n_cols / LANES {
        for r in 0..R {
            for w in 0..W {
                for lane in 0..LANES {
                    let sum = &mut sums[r][w][lane];
                    *sum = multiply_add(rows[r].0[i][lane], weights[w].0[i][lane], *sum);
                }
            }
        }
    }
    let rest = |r: usize, w: usize| -> f32 {
        rows[r].1.iter().zip(weights[w].1).map(|(x, w)| x * w).sum()
    };
    std::array::from_fn(|r| std::array::from_fn(|w| sum(sums[r][w]) + rest(r, w)))
}

/// `a * b + c`, rounded once where that is a single instruction.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

fn sum(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}
