//! The projection of few rows to query, key or value heads with what follows it: RoPE, and the store
//! in the cache.

use super::repack::Matrix;
use super::rope;
use super::teams::Teams;
use super::{Access, Kernel, Uses, grid as grid_of};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `matvec_heads.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// All rows of the weights.
    pub(crate) matrix: Matrix,
    /// Elements from a row of `src` to the next, a multiple of 32.
    pub(crate) src_stride: u32,
    /// Elements from a row of `product` and `dst` to the next.
    pub(crate) dst_stride: u32,
    /// Pairs of rows of weights that a workgroup multiplies: [`super::matvec::n_pairs`].
    pub(crate) n_pairs: u32,
    /// A multiple of 4.
    pub(crate) head_dim: u32,
    /// Elements of a head that turn, a multiple of 4.
    pub(crate) n_dims: u32,
    pub(crate) pair_step: u32,
    pub(crate) pair_distance: u32,
    /// Whether `bias` is added; where it is not, any buffer may be bound for it.
    pub(crate) has_bias: u32,
    /// Whether `dst` is the product turned; where it is not, any buffer may be bound for the table, and
    /// `product` itself for `dst`.
    pub(crate) has_rope: u32,
    /// Whether the rows go to the cache; where they do not, `product` may be bound for it.
    pub(crate) has_cache: u32,
    /// Of the norm, where the variant is [`Src::Norm`](super::Src::Norm).
    pub(crate) eps: f32,
    /// Whether `normed` is written there.
    pub(crate) writes_norm: u32,
}

impl Params {
    /// Without bias, rope and cache; `width` is that of `dst`, `strides` are those of `src` and `dst`.
    pub(crate) fn new(matrix: Matrix, strides: [usize; 2], n_pairs: u32, width: usize) -> Params {
        Params {
            matrix,
            src_stride: strides[0] as u32,
            dst_stride: strides[1] as u32,
            n_pairs,
            head_dim: width as u32,
            n_dims: 0,
            pair_step: 0,
            pair_distance: 0,
            has_bias: 0,
            has_rope: 0,
            has_cache: 0,
            eps: 0.0,
            writes_norm: 0,
        }
    }

    /// The same with the rotation of a [`rope`] step.
    pub(crate) fn with_rope(self, rope: &rope::Params) -> Params {
        Params {
            head_dim: rope.head_dim,
            n_dims: rope.n_dims,
            pair_step: rope.pair_step,
            pair_distance: rope.pair_distance,
            has_rope: 1,
            ..self
        }
    }
}

/// Whether heads have the form that the kernel takes.
pub(crate) fn fits(head_dim: usize, n_dims: usize) -> bool {
    head_dim.is_multiple_of(4) && n_dims.is_multiple_of(4)
}

/// Whether teams are right for it: neighbouring columns of one word of the cache belong to one workgroup.
pub(crate) fn takes(teams: &Teams) -> bool {
    teams.n_pairs().is_multiple_of(2)
}

/// The kernel; its twin is [`super::matmul::twin`], then [`rope::twin`], then
/// [`super::store_kv::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matvec_heads",
    wgsl: include_str!("matvec_heads.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("bias", Access::Read),
        ("table", Access::Read),
        ("product", Access::ReadWrite),
        ("dst", Access::ReadWrite),
        ("cache", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matvec: true,
        kv: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(
        params.matrix.n_rows.div_ceil(2 * params.n_pairs) as usize,
        n_rows,
    )
}
