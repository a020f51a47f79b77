//! The product of few rows with a weight matrix: decoding. Each row reads the weights once.
//!
//! [`super::matvec_heads`] and [`super::matvec_gated`] compute it too, and more of the plan behind it:
//! the three share `common/matvec.wgsl`.

use super::repack::Matrix;
use super::{Access, Kernel, Src, Uses, Variant, grid as grid_of};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `matvec.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the weights; it gives columns `first_row..first_row + n_rows` of `dst`.
    pub(crate) matrix: Matrix,
    /// Elements from a row of `src` to the next, a multiple of 32.
    pub(crate) src_stride: u32,
    /// Elements from a row of `dst` to the next.
    pub(crate) dst_stride: u32,
    /// Pairs of rows of weights that a workgroup multiplies: [`n_pairs`].
    pub(crate) n_pairs: u32,
    /// Whether `bias` is added; where it is not, any buffer may be bound for it.
    pub(crate) has_bias: u32,
    /// As in [`super::matmul::Params`].
    pub(crate) has_residual: u32,
    pub(crate) padding: [u32; 3],
}

/// The kernel; its twin is [`super::matmul::twin`], where `src` is int8 of what
/// [`super::quantize::twin`] makes of it.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matvec",
    wgsl: include_str!("matvec.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("bias", Access::Read),
        ("residual", Access::Read),
        ("product", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matvec: true,
        output: true,
        ..Uses::NOTHING
    },
};

/// Pairs of rows of weights that the teams of a workgroup of 128 multiply at a time, all together.
pub(crate) fn n_pairs(team_size: u32, src: Src) -> u32 {
    const WORKGROUP: u32 = 128;
    let team_pairs = if src == Src::F32 { 2 } else { 1 };
    WORKGROUP / team_size * team_pairs
}

/// Whether a kernel takes rows of a width as [`Src::Norm`], on an adapter with so many storage buffers for a
/// shader.
pub(crate) fn may_normalise(kernel: &Kernel, width: usize, n_buffers: usize) -> bool {
    /// Of `common/src_norm.wgsl`.
    const MOST_ELEMENTS: usize = 2048;
    let variant = Variant {
        src: Src::Norm,
        ..Variant::PLAIN
    };
    let has_buffers = kernel.bindings(&variant).len() <= n_buffers;
    width <= MOST_ELEMENTS && width.is_multiple_of(32) && has_buffers
}

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(
        params.matrix.n_rows.div_ceil(2 * params.n_pairs) as usize,
        n_rows,
    )
}
