//! The inner loops, once for each instruction set. What each computes is said here.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(test)]
mod tests;

use crate::gguf::WeightType;

/// Rows of plain numbers: activations, or heads of a cache.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) cells: RowCells<'a>,
    /// Elements from a row to the next.
    pub(super) stride: usize,
}

/// The numbers of [`Rows`].
#[derive(Clone, Copy)]
pub(super) enum RowCells<'a> {
    F32(&'a [f32]),
    /// The bits of 16-bit floats.
    F16(&'a [u16]),
}

/// The instruction set, chosen once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Simd {
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable,
}

impl Simd {
    /// The best that this machine has.
    pub(super) fn detect() -> Simd {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = avx2::Avx2::detect() {
            return Simd::Avx2(avx2);
        }
        Simd::Portable
    }

    /// The name of the instruction set.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => "avx2, fma, f16c",
            Simd::Portable => "portable",
        }
    }

    /// The values of a row's run of blocks, as [`WeightType::decode`] gives them.
    pub(super) fn decode(self, ty: WeightType, bytes: &[u8], out: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.decode(ty, bytes, out),
            Simd::Portable => portable::decode(ty, bytes, out),
        }
    }

    /// `out[j] = sum_i rows[j, i] * x[i]`: `rows` holds one row of blocks behind the other.
    pub(super) fn matvec(self, ty: WeightType, rows: &[u8], x: &[f32], out: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.matvec(ty, rows, x, out),
            Simd::Portable => portable::matvec(ty, rows, x, out),
        }
    }

    /// `out[j] = sum_i rows[j, i] * x[i]`.
    pub(super) fn dots(self, rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.dots(rows, x, out),
            Simd::Portable => portable::dots(rows, x, out),
        }
    }

    /// `out[i] += sum_j weights[j] * rows[j, i]`.
    pub(super) fn weighted_sum(self, rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.weighted_sum(rows, weights, out),
            Simd::Portable => portable::weighted_sum(rows, weights, out),
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
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.multiply(panel, n_cols, src, src_stride, dst, at),
            Simd::Portable => portable::multiply(panel, n_cols, src, src_stride, dst, at),
        }
    }
}
