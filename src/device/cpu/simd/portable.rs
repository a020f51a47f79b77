//! Plain Rust in a shape that compilers vectorise.

use super::{RowCells, Rows};
use crate::gguf::WeightType;

/// Sums that run side by side.
const LANES: usize = 16;

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
    let mut weights = [0.0; CHUNK];
    let chunks = x.chunks(CHUNK).zip(bytes.chunks(ty.row_bytes(CHUNK)));
    let products = chunks.map(|(x, bytes)| {
        let weights = &mut weights[..x.len()];
        decode(ty, bytes, weights);
        dot(weights, |weight| weight, x)
    });
    products.sum()
}

pub(super) fn dots(rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
    for (j, out) in out.iter_mut().enumerate() {
        let cells = j * rows.stride..j * rows.stride + x.len();
        *out = match rows.cells {
            RowCells::F32(all) => dot(&all[cells], |cell| cell, x),
            RowCells::F16(all) => dot(&all[cells], f16_to_f32, x),
        };
    }
}

/// One product at a time: compilers do not vectorise tiles of several along the right dimension.
fn dot<T: Copy>(cells: &[T], widen: impl Fn(T) -> f32, x: &[f32]) -> f32 {
    let (cell_lanes, cell_rest) = cells.as_chunks::<LANES>();
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (cells, x) in cell_lanes.iter().zip(x_lanes) {
        for ((sum, &cell), x) in sums.iter_mut().zip(cells).zip(x) {
            *sum = multiply_add(widen(cell), *x, *sum);
        }
    }
    let rest: f32 = cell_rest
        .iter()
        .zip(x_rest)
        .map(|(&cell, x)| widen(cell) * x)
        .sum();
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0] + rest
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
    for (row, dst) in dst.iter_mut().enumerate() {
        let src = &src[row * src_stride..][..n_cols];
        for (output, weights) in dst[at..].iter_mut().zip(panel.chunks_exact(n_cols)) {
            *output += dot(weights, |weight| weight, src);
        }
    }
}

/// `a * b + c`, rounded once where that is a single instruction.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}
