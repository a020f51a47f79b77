//! Both products of a gated feed-forward block with the experts of few rows, its non-linearity, and the result as
//! int8 for the product behind it.

use super::repack::{Matrix, team_size};
use super::teams::Teams;
use super::{Access, Kernel, Uses, gated_activation, grid as grid_of};
use crate::plan::Activation;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `expert_gated.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The gate's weights, all rows of all experts.
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
    /// Whether biases are added; where they are not, any buffer may be bound for them.
    pub(crate) has_bias: u32,
    /// Elements in front of the bias of `up` in the binding of both.
    pub(crate) up_bias: u32,
    pub(crate) n_out: u32,
    pub(crate) n_expert: u32,
    pub(crate) n_chosen: u32,
    pub(crate) chosen_stride: u32,
    /// As in [`super::expert_matvec::Params`].
    pub(crate) slots_per_src: u32,
}

/// Outputs of a workgroup: a unit of int8.
const N_OUTPUTS: u32 = 32;

impl Params {
    /// Of experts of `n_out` rows each, `n_chosen` a token, without int8 and biases; `strides` are those of `src`,
    /// `dst` and the ids.
    pub(crate) fn new(
        [gate, up]: [Matrix; 2],
        strides: [usize; 3],
        activation: Activation,
        [n_out, n_chosen]: [usize; 2],
    ) -> Params {
        /// As in [`super::matvec_gated`].
        const TEAM_SIZES: [u32; 2] = [16, 32];
        let [fewest, most] = TEAM_SIZES;
        let [src_stride, dst_stride, chosen_stride] = strides.map(|stride| stride as u32);
        let team_size = team_size(n_out * n_chosen, gate.units_per_row as usize);
        Params {
            matrix: Matrix {
                team_size: team_size.clamp(fewest, most),
                ..gate
            },
            up_planes: up.planes,
            src_stride,
            dst_stride,
            n_pairs: N_OUTPUTS,
            activation: gated_activation::number(activation),
            has_int8: 0,
            has_bias: 0,
            up_bias: 0,
            n_out: n_out as u32,
            n_expert: gate.n_rows / n_out as u32,
            n_chosen: n_chosen as u32,
            chosen_stride,
            slots_per_src: n_chosen as u32,
        }
    }
}

/// The kernel; its twin is [`super::experts::matmul_twin`], twice, then [`gated_activation::twin`], then
/// [`super::quantize::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_gated",
    wgsl: include_str!("expert_gated.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("ids", Access::Read),
        ("bias", Access::Read),
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

/// The teams that it has: workgroups are wide where those of [`super::matvec_gated`] would be, for one token.
pub(crate) fn teams(params: &Params) -> Teams {
    const FEW_WORKGROUPS: u32 = 264;
    let is_wide = params.n_out.div_ceil(N_OUTPUTS) * params.n_chosen <= FEW_WORKGROUPS;
    Teams {
        size: params.matrix.team_size,
        workgroup: if is_wide { 256 } else { 128 },
        pairs: 2,
    }
}

/// The grid for `n_slots` rows of `dst`.
pub(crate) fn grid(params: &Params, n_slots: usize) -> [u32; 3] {
    grid_of(params.n_out.div_ceil(N_OUTPUTS) as usize, n_slots)
}
