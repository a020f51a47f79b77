//! The inner loops, once for each instruction set. What each computes is said here.

mod portable;

use crate::gguf::WeightType;

/// The instruction set, chosen once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Simd {
    Portable,
}

impl Simd {
    /// The best that this machine has.
    pub(super) fn detect() -> Simd {
        Simd::Portable
    }

    /// The name of the instruction set.
    pub(super) fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
        }
    }

    /// The values of a row's run of blocks, as [`WeightType::decode`] gives them.
    pub(super) fn decode(self, ty: WeightType, bytes: &[u8], out: &mut [f32]) {
        match self {
            Simd::Portable => portable::decode(ty, bytes, out),
        }
    }

    /// `out[j] = sum_i rows[j, i] * x[i]`, with `row_stride` bytes from a row to the next.
    pub(super) fn matvec(
        self,
        ty: WeightType,
        rows: &[u8],
        row_stride: usize,
        x: &[f32],
        out: &mut [f32],
    ) {
        match self {
            Simd::Portable => portable::matvec(ty, rows, row_stride, x, out),
        }
    }

    /// `out[i] += sum_j weights[j] * rows[j, i]`, with `row_stride` bytes from a row to the next.
    pub(super) fn weighted_sum(
        self,
        ty: WeightType,
        rows: &[u8],
        row_stride: usize,
        weights: &[f32],
        out: &mut [f32],
    ) {
        match self {
            Simd::Portable => portable::weighted_sum(ty, rows, row_stride, weights, out),
        }
    }

    /// `dst[row][at + j] += sum_i panel[j, i] * src[row, i]` for each row of `dst`: `panel` is
    /// `[n_out, n_cols]`, rows of `src` are `src_stride` elements apart. The order of each sum does
    /// not depend on what else is computed with it.
    pub(super) fn multiply(
        self,
        panel: &[f32],
        n_cols: usize,
        src: &[f32],
        src_stride: usize,
        dst: &mut [&mut [f32]],
        at: usize,
    ) {
        match self {
            Simd::Portable => portable::multiply(panel, n_cols, src, src_stride, dst, at),
        }
    }
}
