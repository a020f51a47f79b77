//! Both products of a gated feed-forward block with few rows, its non-linearity, and the result as int8
//! for the product behind it.

use super::repack::Matrix;
use super::teams::Teams;
use super::{Access, Kernel, Uses, gated_activation, grid as grid_of};
use crate::plan::Activation;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `matvec_gated.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The gate's weights, all rows.
    pub(crate) matrix: Matrix,
    /// The planes of the weights of `up` in the same binding.
    pub(crate) up_planes: [u32; 4],
    /// Elements from a row of `src` to the next, a multiple of 32.
    pub(crate) src_stride: u32,
    /// Elements from a row of `gate`, `up` and `dst` to the next.
    pub(crate) dst_stride: u32,
    /// Pairs of rows of weights that a workgroup multiplies: [`N_OUTPUTS`].
    pub(crate) n_pairs: u32,
    pub(crate) activation: u32,
    /// Whether `int8` is written; where it is not, any buffer may be bound for it.
    pub(crate) has_int8: u32,
    /// Of the norm, where the variant is [`Src::Norm`](super::Src::Norm).
    pub(crate) eps: f32,
    /// Whether `normed` is written there.
    pub(crate) writes_norm: u32,
    pub(crate) padding: u32,
}

/// Outputs of a workgroup: a unit of int8.
const N_OUTPUTS: u32 = 32;

impl Params {
    /// Without int8; `strides` are those of `src` and `dst`.
    pub(crate) fn new(
        gate: Matrix,
        up: Matrix,
        strides: [usize; 2],
        activation: Activation,
    ) -> Params {
        Params {
            matrix: Matrix {
                team_size: gate.team_size.min(MOST_MEMBERS),
                ..gate
            },
            up_planes: up.planes,
            src_stride: strides[0] as u32,
            dst_stride: strides[1] as u32,
            n_pairs: N_OUTPUTS,
            activation: gated_activation::number(activation),
            has_int8: 0,
            eps: 0.0,
            writes_norm: 0,
            padding: 0,
        }
    }
}

/// The kernel; its twin is [`super::matmul::twin`], twice, then [`gated_activation::twin`], then
/// [`super::quantize::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matvec_gated",
    wgsl: include_str!("matvec_gated.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("gate", Access::ReadWrite),
        ("up", Access::ReadWrite),
        ("dst", Access::ReadWrite),
        ("int8", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matvec: true,
        activation: true,
        quantize: true,
        ..Uses::NOTHING
    },
};

/// Of a team: larger ones have more sums than there is room for.
const MOST_MEMBERS: u32 = 32;

/// The teams for `n_out` rows that are chosen without measuring, near to `size`: wide workgroups where there are few
/// of them for a large GPU.
pub(crate) fn teams(n_out: usize, size: u32) -> Teams {
    const FEW_WORKGROUPS: usize = 264;
    /// Smaller ones would leave some without rows.
    const FEWEST_MEMBERS: u32 = 16;
    let is_wide = n_out.div_ceil(N_OUTPUTS as usize) <= FEW_WORKGROUPS;
    Teams {
        size: size.clamp(FEWEST_MEMBERS, MOST_MEMBERS),
        workgroup: if is_wide { 256 } else { 128 },
        pairs: 2,
    }
}

/// Whether there is room for the sums of teams, and none of them is without rows.
pub(crate) fn takes(teams: &Teams) -> bool {
    teams.size <= MOST_MEMBERS && teams.n_pairs() <= N_OUTPUTS
}

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(params.matrix.n_rows.div_ceil(N_OUTPUTS) as usize, n_rows)
}
