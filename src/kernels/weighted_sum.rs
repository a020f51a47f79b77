//! The sum of rows by weights; the twin is [`super::experts::sum_twin`].

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `weighted_sum.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) n_slots: u32,
    /// 0 where there are no weights.
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

    /// The same without weights: all count one, and any buffer may be bound for them.
    pub(crate) fn unweighted(self) -> Params {
        Params {
            weights_stride: 0,
            ..self
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "weighted_sum",
    wgsl: include_str!("weighted_sum.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weights", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_rows)
}
