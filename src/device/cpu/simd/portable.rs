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
    let (n_out, n_rows) = (panel.len() / n_cols, dst.len());
    // What lies beyond the last row or output is computed as the last and dropped.
    let row = |row: usize| &src[row.min(n_rows - 1) * src_stride..][..n_cols];
    let weights = |j: usize| &panel[j.min(n_out - 1) * n_cols..][..n_cols];
    for (tile_row, dst) in dst.chunks_mut(2).enumerate() {
        let rows = [row(2 * tile_row), row(2 * tile_row + 1)];
        for j in (0..n_out).step_by(2) {
            let sums = tile(rows, [weights(j), weights(j + 1)]);
            for (dst, sums) in dst.iter_mut().zip(sums) {
                let outputs = &mut dst[at..at + n_out][j..];
                outputs
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(output, sum)| *output += sum);
            }
        }
    }
}

/// The dot product of each of two rows with each of two rows of weights.
fn tile(rows: [&[f32]; 2], weights: [&[f32]; 2]) -> [[f32; 2]; 2] {
    let [(x0, x0_rest), (x1, x1_rest)] = rows.map(|row| row.as_chunks::<LANES>());
    let [(w0, w0_rest), (w1, w1_rest)] = weights.map(|row| row.as_chunks::<LANES>());
    let mut sums = [[[0.0; LANES]; 2]; 2];
    for (((x0, x1), w0), w1) in x0.iter().zip(x1).zip(w0).zip(w1) {
        for lane in 0..LANES {
            sums[0][0][lane] = multiply_add(x0[lane], w0[lane], sums[0][0][lane]);
            sums[0][1][lane] = multiply_add(x0[lane], w1[lane], sums[0][1][lane]);
            sums[1][0][lane] = multiply_add(x1[lane], w0[lane], sums[1][0][lane]);
            sums[1][1][lane] = multiply_add(x1[lane], w1[lane], sums[1][1][lane]);
        }
    }
    let rest = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
    [
        [
            sum(sums[0][0]) + rest(x0_rest, w0_rest),
            sum(sums[0][1]) + rest(x0_rest, w1_rest),
        ],
        [
            sum(sums[1][0]) + rest(x1_rest, w0_rest),
            sum(sums[1][1]) + rest(x1_rest, w1_rest),
        ],
    ]
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
