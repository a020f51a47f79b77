//! The product of few rows of int8 activations ([`super::quantize`]) with a quantised weight matrix:
//! decoding, where the GPU multiplies small integers fast. Each row reads the weights once.

pub(crate) use super::matmul::Params;
use super::{Access, Kernel, Uses, grid as grid_of};

/// The kernel; its twin is [`super::matmul::twin`] of what [`super::quantize::twin`] makes of `src`.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matvec_int8",
    wgsl: include_str!("matvec_int8.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("quants", Access::Read),
        ("scales", Access::Read),
        ("bias", Access::Read),
        ("residual", Access::Read),
        ("product", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        integers: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    /// Rows of the weights that a workgroup multiplies, times the size of a team.
    const ROWS: u32 = 128 * 2;
    let rows = ROWS / params.matrix.team_size;
    grid_of(params.matrix.n_rows.div_ceil(rows) as usize, n_rows)
}
