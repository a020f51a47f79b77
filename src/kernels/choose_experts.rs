//! The experts of each token; the twin is [`super::experts::choose_twin`].

use super::{Access, Kernel, Uses, row_stride};
use crate::plan::{ExpertGroups, Gating};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `choose_experts.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_expert: u32,
    pub(crate) stride: u32,
    pub(crate) n_chosen: u32,
    pub(crate) dst_stride: u32,
    pub(crate) is_sigmoid: u32,
    pub(crate) has_bias: u32,
    pub(crate) n_group: u32,
    pub(crate) n_used: u32,
}

impl Params {
    pub(crate) fn new(
        [n_expert, n_chosen]: [usize; 2],
        gating: Gating,
        has_bias: bool,
        groups: Option<ExpertGroups>,
    ) -> Params {
        let count = |of: fn(&ExpertGroups) -> usize| groups.as_ref().map_or(1, of) as u32;
        Params {
            n_expert: n_expert as u32,
            stride: row_stride(n_expert) as u32,
            n_chosen: n_chosen as u32,
            dst_stride: row_stride(n_chosen) as u32,
            is_sigmoid: u32::from(gating == Gating::Sigmoid),
            has_bias: has_bias.into(),
            n_group: count(|groups| groups.n_group),
            n_used: count(|groups| groups.n_used),
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "choose_experts",
    wgsl: include_str!("choose_experts.wgsl"),
    bindings: &[
        ("logits", Access::Read),
        ("bias", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(_: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(1, n_rows)
}
