//! Adds two activations, as the residual connections do.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `add.wgsl`.
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
    name: "add",
    wgsl: include_str!("add.wgsl"),
    bindings: &[
        ("a", Access::Read),
        ("b", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_rows)
}

/// `dst = a + b`, each `[n_rows, width]`.
pub(crate) fn twin(a: &[f32], b: &[f32], dst: &mut [f32]) {
    for ((dst, a), b) in dst.iter_mut().zip(a).zip(b) {
        *dst = a + b;
    }
}
