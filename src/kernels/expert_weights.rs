//! What the results of chosen experts count; the twin is [`super::experts::weights_twin`].

use super::{Access, Kernel, Uses, experts, row_stride};
use crate::plan::Gating;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `expert_weights.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_expert: u32,
    pub(crate) stride: u32,
    pub(crate) n_chosen: u32,
    pub(crate) chosen_stride: u32,
    pub(crate) is_sigmoid: u32,
    pub(crate) is_normalised: u32,
    pub(crate) scale: f32,
    pub(crate) least_sum: f32,
    /// Whether `factors` is read; where it is not, any buffer may be bound for it.
    pub(crate) has_factors: u32,
    pub(crate) padding: [u32; 3],
}

impl Params {
    pub(crate) fn new(
        [n_expert, n_chosen]: [usize; 2],
        gating: Gating,
        is_normalised: bool,
        scale: f32,
        has_factors: bool,
    ) -> Params {
        Params {
            n_expert: n_expert as u32,
            stride: row_stride(n_expert) as u32,
            n_chosen: n_chosen as u32,
            chosen_stride: row_stride(n_chosen) as u32,
            is_sigmoid: u32::from(gating == Gating::Sigmoid),
            is_normalised: is_normalised.into(),
            scale,
            least_sum: experts::LEAST_SUM,
            has_factors: has_factors.into(),
            padding: [0; 3],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_weights",
    wgsl: include_str!("expert_weights.wgsl"),
    bindings: &[
        ("logits", Access::Read),
        ("chosen", Access::Read),
        ("factors", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        reduce: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(_: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(1, n_rows)
}
