//! The products of rows with the matrices of their experts; the twin is [`super::experts::matmul_twin`].

use super::repack::Matrix;
use super::{Access, Kernel, Uses};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `expert_matvec.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the weights: rows of some experts, or a part of one.
    pub(crate) matrix: Matrix,
    pub(crate) src_stride: u32,
    pub(crate) dst_stride: u32,
    /// [`super::matvec::n_pairs`].
    pub(crate) n_pairs: u32,
    pub(crate) has_bias: u32,
    pub(crate) n_out: u32,
    pub(crate) n_expert: u32,
    pub(crate) n_chosen: u32,
    pub(crate) chosen_stride: u32,
    /// 1 where each slot has a row of `src`, else the slots of a row.
    pub(crate) slots_per_src: u32,
    pub(crate) padding: [u32; 3],
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_matvec",
    wgsl: include_str!("expert_matvec.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("ids", Access::Read),
        ("bias", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matvec: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_slots` rows of `dst`.
pub(crate) fn grid(params: &Params, n_slots: usize) -> [u32; 3] {
    super::grid(params.n_out.div_ceil(2 * params.n_pairs) as usize, n_slots)
}
