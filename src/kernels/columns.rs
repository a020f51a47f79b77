//! A part of each row.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `columns.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) src_stride: u32,
    pub(crate) first: u32,
}

impl Params {
    /// `[from, width]` are elements of a row of `src` and of `dst`.
    pub(crate) fn new([from, width]: [usize; 2], first: usize) -> Params {
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            src_stride: row_stride(from) as u32,
            first: first as u32,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "columns",
    wgsl: include_str!("columns.wgsl"),
    bindings: &[("src", Access::Read), ("dst", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(64), n_rows)
}

/// `dst[row] = src[row, first..first + width]`: `src` is `[n_rows, from]`, `dst` `[n_rows, width]`.
pub(crate) fn twin(src: &[f32], [from, width]: [usize; 2], first: usize, dst: &mut [f32]) {
    for (dst, src) in dst.chunks_exact_mut(width).zip(src.chunks_exact(from)) {
        dst.copy_from_slice(&src[first..first + width]);
    }
}
