//! Keeps the last rows of a batch: those whose logits are wanted.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `select_outputs.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    pub(crate) fn new(width: usize) -> Params {
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "select_outputs",
    wgsl: include_str!("select_outputs.wgsl"),
    bindings: &[("src", Access::Read), ("dst", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_outputs: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_outputs)
}

/// The last rows of `src` `[n_rows, width]` into `dst` `[n_outputs, width]`.
pub(crate) fn twin(src: &[f32], dst: &mut [f32]) {
    dst.copy_from_slice(&src[src.len() - dst.len()..]);
}
