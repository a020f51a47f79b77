//! AVX2, FMA and F16C.

#![expect(
    unsafe_code,
    reason = "vector loads and stores, and calls that need these instructions"
)]

mod blocks;

use super::portable::f16_to_f32;
use super::{RowCells, Rows};
use crate::gguf::WeightType;
use blocks::{GROUP, Group, fold_groups};
use std::arch::x86_64::*;

/// Proof that this machine has the instructions.
#[derive(Clone, Copy, Debug)]
pub(in crate::device::cpu) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Avx2(()))
    }

    pub(super) fn decode(self, ty: WeightType, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), ty.row_bytes(out.len()), "bytes of the row");
        // SAFETY: `self` proves that the instructions are there.
        unsafe { decode(ty, bytes, out) }
    }

    pub(super) fn matvec(self, ty: WeightType, rows: &[u8], x: &[f32], out: &mut [f32]) {
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(ty.row_bytes(x.len()))) {
            // SAFETY: `self` proves that the instructions are there.
            *out = unsafe { matvec_row(ty, row, x) };
        }
    }

    pub(super) fn dots(self, rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { dots(rows, x, out) }
    }

    pub(super) fn weighted_sum(self, rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { weighted_sum(rows, weights, out) }
    }

    pub(super) fn multiply(
        self,
        panel: &[f32],
        n_cols: usize,
        src: &[f32],
        src_stride: usize,
        dst: &mut [&mut [f32]],
        at: usize,
    ) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { multiply(panel, n_cols, src, src_stride, dst, at) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let whole = &bytes[..ty.row_bytes(groups.len() * GROUP)];
    fold_groups(ty, whole, (), |(), i, weights| {
        store(&mut groups[i], weights)
    });
    if !rest.is_empty() {
        ty.decode(&bytes[whole.len()..], rest);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn matvec_row(ty: WeightType, bytes: &[u8], x: &[f32]) -> f32 {
    let (groups, rest) = x.as_chunks::<GROUP>();
    let whole = &bytes[..ty.row_bytes(groups.len() * GROUP)];
    let [a, b, c, d] = fold_groups(
        ty,
        whole,
        [_mm256_setzero_ps(); 4],
        |mut sums, i, weights| {
            let x = load(&groups[i]);
            for lane in 0..4 {
                sums[lane] = _mm256_fmadd_ps(weights[lane], x[lane], sums[lane]);
            }
            sums
        },
    );
    let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let sum = sum_lanes([
        sum,
        _mm256_setzero_ps(),
        _mm256_setzero_ps(),
        _mm256_setzero_ps(),
    ])[0];
    if rest.is_empty() {
        return sum;
    }
    let mut weights = [0.0; GROUP];
    let weights = &mut weights[..rest.len()];
    ty.decode(&bytes[whole.len()..], weights);
    sum + rest.iter().zip(weights).map(|(x, w)| x * *w).sum::<f32>()
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots(rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => {
            dots_of(cells, |eight| load_f32(eight), |x| x, rows.stride, x, out);
        }
        RowCells::F16(cells) => {
            dots_of(
                cells,
                |eight| load_f16(eight),
                f16_to_f32,
                rows.stride,
                x,
                out,
            );
        }
    }
}

/// Four rows at a time, so that their lanes are summed up together.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots_of<T: Copy>(
    cells: &[T],
    load: impl Fn(&[T; 8]) -> __m256,
    widen: impl Fn(T) -> f32,
    stride: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let (x_eights, x_rest) = x.as_chunks::<8>();
    for (four, out) in out.chunks_mut(4).enumerate() {
        // Rows beyond the last are computed as the last and dropped.
        let row = |j: usize| {
            let start = (4 * four + j.min(out.len() - 1)) * stride;
            cells[start..][..x.len()].as_chunks::<8>()
        };
        let rows = [row(0), row(1), row(2), row(3)];
        let mut sums = [_mm256_setzero_ps(); 4];
        for (i, x) in x_eights.iter().enumerate() {
            let x = load_f32(x);
            for j in 0..4 {
                sums[j] = _mm256_fmadd_ps(load(&rows[j].0[i]), x, sums[j]);
            }
        }
        for ((out, sum), (_, rest)) in out.iter_mut().zip(sum_lanes(sums)).zip(rows) {
            let rest = rest.iter().zip(x_rest).map(|(&cell, x)| widen(cell) * x);
            *out = sum + rest.sum::<f32>();
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sum(rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => {
            weighted_sum_of(
                cells,
                |eight| load_f32(eight),
                |x| x,
                rows.stride,
                weights,
                out,
            );
        }
        RowCells::F16(cells) => {
            weighted_sum_of(
                cells,
                |eight| load_f16(eight),
                f16_to_f32,
                rows.stride,
                weights,
                out,
            );
        }
    }
}

/// 64 columns at a time, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_sum_of<T: Copy>(
    cells: &[T],
    load: impl Fn(&[T; 8]) -> __m256 + Copy,
    widen: impl Fn(T) -> f32,
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = out.len();
    let row = |j: usize| &cells[j * stride..][..width];
    let mut at = 0;
    while at + 64 <= width {
        weighted_columns::<T, 8>(row, load, at, weights, &mut out[at..at + 64]);
        at += 64;
    }
    while at + 8 <= width {
        weighted_columns::<T, 1>(row, load, at, weights, &mut out[at..at + 8]);
        at += 8;
    }
    for (col, out) in out.iter_mut().enumerate().skip(at) {
        let products = weights
            .iter()
            .enumerate()
            .map(|(j, weight)| weight * widen(row(j)[col]));
        *out += products.sum::<f32>();
    }
}

/// `N` times eight columns from `at` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_columns<'a, T: Copy + 'a, const N: usize>(
    row: impl Fn(usize) -> &'a [T],
    load: impl Fn(&[T; 8]) -> __m256,
    at: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let mut sums = [_mm256_setzero_ps(); N];
    for (j, weight) in weights.iter().enumerate() {
        let weight = _mm256_set1_ps(*weight);
        let (eights, _) = row(j)[at..][..8 * N].as_chunks::<8>();
        for i in 0..N {
            sums[i] = _mm256_fmadd_ps(load(&eights[i]), weight, sums[i]);
        }
    }
    let (eights, _) = out.as_chunks_mut::<8>();
    for (out, sum) in eights.iter_mut().zip(sums) {
        store_f32(out, _mm256_add_ps(load_f32(out), sum));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply(
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
    for (tile_row, dst) in dst.chunks_mut(3).enumerate() {
        let first = 3 * tile_row;
        let rows = [row(first), row(first + 1), row(first + 2)];
        for j in (0..n_out).step_by(4) {
            let sums = tile(
                rows,
                [weights(j), weights(j + 1), weights(j + 2), weights(j + 3)],
            );
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

/// The dot product of each of three rows with each of four rows of weights: the sums, the weights and an
/// activation take all 16 registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile(rows: [&[f32]; 3], weights: [&[f32]; 4]) -> [[f32; 4]; 3] {
    let n_cols = rows[0].len();
    assert!(
        rows.iter().chain(&weights).all(|row| row.len() == n_cols),
        "columns"
    );
    let whole = n_cols / 8 * 8;
    let mut sums = [[_mm256_setzero_ps(); 4]; 3];
    for col in (0..whole).step_by(8) {
        // SAFETY: `col + 8` is at most `n_cols`, the length of every slice.
        let eight = |row: &[f32]| unsafe { _mm256_loadu_ps(row.as_ptr().add(col)) };
        let weights = [
            eight(weights[0]),
            eight(weights[1]),
            eight(weights[2]),
            eight(weights[3]),
        ];
        for (row, sums) in rows.iter().zip(&mut sums) {
            let x = eight(row);
            for (weight, sum) in weights.iter().zip(sums) {
                *sum = _mm256_fmadd_ps(*weight, x, *sum);
            }
        }
    }
    let mut products = [[0.0; 4]; 3];
    for ((row, sums), products) in rows.iter().zip(sums).zip(&mut products) {
        *products = sum_lanes(sums);
        for (weights, product) in weights.iter().zip(products) {
            let rest = row[whole..].iter().zip(&weights[whole..]);
            *product += rest.map(|(x, w)| x * w).sum::<f32>();
        }
    }
    products
}

/// The sum of the eight lanes of each vector.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_lanes([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let (low, high) = (
        _mm256_castps256_ps128(halves),
        _mm256_extractf128_ps::<1>(halves),
    );
    let mut out = [0.0; 4];
    // SAFETY: `out` has room for four.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(low, high)) };
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 8 floats.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f16(x: &[u16; 8]) -> __m256 {
    // SAFETY: `x` is 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_f32(out: &mut [f32; 8], x: __m256) {
    // SAFETY: `out` has room for 8 floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; GROUP]) -> Group {
    let (eights, _) = x.as_chunks::<8>();
    [
        load_f32(&eights[0]),
        load_f32(&eights[1]),
        load_f32(&eights[2]),
        load_f32(&eights[3]),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store(out: &mut [f32; GROUP], weights: Group) {
    let (eights, _) = out.as_chunks_mut::<8>();
    for (out, weights) in eights.iter_mut().zip(weights) {
        store_f32(out, weights);
    }
}
