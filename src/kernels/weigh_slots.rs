//! Rows times the weights of their slots; the twin is [`super::experts::weigh_twin`].

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `weigh_slots.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) n_slots: u32,
    pub(crate) weights_stride: u32,
}

impl Params {
    pub(crate) fn new(width: usize, n_slots: usize) -> Params {
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            n_slots: n_slots as u32,
            weights_stride: row_stride(n_slots) as u32,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "weigh_slots",
    wgsl: include_str!("weigh_slots.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weights", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

/// The grid for `n_slots` rows of `dst`.
pub(crate) fn grid(params: &Params, n_slots: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_slots)
}
