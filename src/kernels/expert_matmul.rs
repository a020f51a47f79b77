//! The products of many rows with the matrices of their experts; the twin is [`super::experts::matmul_twin`].

use super::expert_tiles::Tiling;
use super::repack::Matrix;
use super::{Access, Kernel, Uses, grid as grid_of};
use bytemuck::{Pod, Zeroable};

/// Parameters of this kernel and of [`super::expert_matmul_coop`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the weights: rows of some experts, or a part of one.
    pub(crate) matrix: Matrix,
    pub(crate) src_stride: u32,
    pub(crate) dst_stride: u32,
    pub(crate) n_out: u32,
    pub(crate) has_bias: u32,
    /// As in [`super::expert_matvec::Params`].
    pub(crate) slots_per_src: u32,
    /// [`Tiling::order_start`].
    pub(crate) order_start: u32,
    pub(crate) padding: [u32; 2],
}

/// Outputs and the most rows of a tile: those of [`super::matmul`].
pub(crate) const TILE: usize = super::matmul::TILE;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_matmul",
    wgsl: include_str!("expert_matmul.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("tiles", Access::Read),
        ("bias", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matmul: true,
        expert_tiles: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_slots` rows of `dst`, by tiles of so many outputs.
pub(crate) fn grid(tiling: &Tiling, outputs: usize, params: &Params, n_slots: usize) -> [u32; 3] {
    grid_of(
        (params.n_out as usize).div_ceil(outputs),
        tiling.max_tiles(n_slots),
    )
}
