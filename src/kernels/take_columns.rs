//! Some columns of each group of a row.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `take_columns.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) src_stride: u32,
    pub(crate) dst_stride: u32,
    pub(crate) first: u32,
    pub(crate) length: u32,
    pub(crate) period: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// Of rows of some width to rows of another.
    pub(crate) fn new(
        [src_width, width]: [usize; 2],
        first: usize,
        [length, period]: [usize; 2],
    ) -> Params {
        Params {
            width: width as u32,
            src_stride: row_stride(src_width) as u32,
            dst_stride: row_stride(width) as u32,
            first: first as u32,
            length: length as u32,
            period: period as u32,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "take_columns",
    wgsl: include_str!("take_columns.wgsl"),
    bindings: &[("src", Access::Read), ("dst", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(64), n_rows)
}

/// `dst[row, g * length + i] = src[row, g * period + first + i]` for `i < length`: rows of whole groups.
pub(crate) fn twin(src: &[f32], first: usize, [length, period]: [usize; 2], dst: &mut [f32]) {
    for (dst, src) in dst.chunks_exact_mut(length).zip(src.chunks_exact(period)) {
        dst.copy_from_slice(&src[first..][..length]);
    }
}
