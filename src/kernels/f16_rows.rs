//! Rows of activations as 16-bit floats, each divided by a power of two of its own so that none
//! overflows: what cooperative matrices take in.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `f16_rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) stride: u32,
    /// 0: a row for each token of the batch, 1: a row for each output.
    pub(crate) extent: u32,
    /// Rows for each token.
    pub(crate) n_slots: u32,
    pub(crate) padding: u32,
}

impl Params {
    /// Rows of `width` elements.
    pub(crate) fn new(width: usize, extent: u32) -> Params {
        Params {
            stride: row_stride(width) as u32,
            extent,
            n_slots: 1,
            padding: 0,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "f16_rows",
    wgsl: include_str!("f16_rows.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("halves", Access::ReadWrite),
        ("scales", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        reduce: true,
        f16_rows: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(_: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(1, n_rows)
}

/// What the WGSL must compute: `src` and `dst` are `[n_rows, width]`, `scales` is `[n_rows]`.
#[cfg(test)]
pub(crate) fn twin(src: &[f32], width: usize, dst: &mut [half::f16], scales: &mut [f32]) {
    let rows = src.chunks_exact(width).zip(dst.chunks_exact_mut(width));
    for ((src, dst), scale) in rows.zip(scales) {
        let largest = src.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let exponent = (largest.to_bits() >> 23) as i32 - 127 - 14;
        *scale = 2.0_f32.powi(exponent.max(-126));
        for (dst, &x) in dst.iter_mut().zip(src) {
            *dst = half::f16::from_f64(f64::from(x) / f64::from(*scale));
        }
    }
}
