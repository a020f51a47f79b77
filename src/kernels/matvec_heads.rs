//! The projections of few rows to query, key and value heads with what follows them: RoPE, and the store
//! in the cache.

use super::repack::Matrix;
use super::teams::Teams;
use super::{Access, Kernel, Uses, grid as grid_of, rope, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `matvec_heads.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The rows of all projections, with the planes of the first.
    pub(crate) matrix: Matrix,
    pub(crate) second_planes: [u32; 4],
    pub(crate) third_planes: [u32; 4],
    /// Of a projection: its rows, what it has, the words of the weights' binding before its bias, and the
    /// elements of `kept` before its own. All are 0 where there is none.
    pub(crate) first: [u32; 4],
    pub(crate) second: [u32; 4],
    pub(crate) third: [u32; 4],
    /// Elements from a row of `src` to the next, a multiple of 32.
    pub(crate) src_stride: u32,
    /// Pairs of rows of weights that a workgroup multiplies, all of one projection: [`Teams::n_pairs`].
    pub(crate) n_pairs: u32,
    /// A multiple of 4.
    pub(crate) head_dim: u32,
    /// Elements of a head that turn, a multiple of 4.
    pub(crate) n_dims: u32,
    pub(crate) pair_step: u32,
    pub(crate) pair_distance: u32,
    /// Of the norm, where the variant is [`Src::Norm`].
    pub(crate) eps: f32,
    /// Whether `normed` is written there.
    pub(crate) writes_norm: u32,
}

/// Projections that one dispatch can compute.
pub(crate) const MOST_PROJECTIONS: usize = 3;

/// Rows that `kept` has of each result, and so the most that a batch has.
pub(crate) const KEPT_ROWS: usize = 4;

/// One of the projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Projection {
    /// All its rows, with the planes in the binding that all weights share.
    pub(crate) matrix: Matrix,
    /// The word of that binding where its bias begins.
    pub(crate) bias_at: Option<u32>,
    /// Whether the product turns.
    pub(crate) has_rope: bool,
    /// Whether the rows go to the cache.
    pub(crate) has_cache: bool,
    /// The element of `kept` where its results begin that are not the last.
    pub(crate) kept_at: u32,
}

impl Projection {
    /// Without anything behind the product.
    pub(crate) fn new(matrix: Matrix) -> Projection {
        Projection {
            matrix,
            bias_at: None,
            has_rope: false,
            has_cache: false,
            kept_at: 0,
        }
    }

    fn words(&self) -> [u32; 4] {
        let has = [self.bias_at.is_some(), self.has_rope, self.has_cache];
        let flags = has
            .into_iter()
            .zip(0..)
            .map(|(has, bit)| u32::from(has) << bit);
        let bias_at = self.bias_at.unwrap_or(0);
        [self.matrix.n_rows, flags.sum(), bias_at, self.kept_at]
    }
}

/// Elements of `kept` that one result takes with rows of `width` elements.
pub(crate) fn kept_len(width: usize) -> usize {
    KEPT_ROWS * row_stride(width)
}

impl Params {
    /// Without turning; of one projection to [`MOST_PROJECTIONS`], whose workgroups have the same teams.
    pub(crate) fn new(projections: &[Projection], teams: &Teams, src_stride: usize) -> Params {
        let of = |index: usize| projections.get(index);
        let planes = |index| of(index).map_or([0; 4], |of| of.matrix.planes);
        let words = |index| of(index).map_or([0; 4], Projection::words);
        let n_rows = projections.iter().map(|of| of.matrix.n_rows).sum();
        let units_per_row = of(0).map_or(0, |of| of.matrix.units_per_row);
        Params {
            matrix: Matrix {
                n_rows,
                first_row: 0,
                units_per_row,
                team_size: teams.size,
                planes: planes(0),
            },
            second_planes: planes(1),
            third_planes: planes(2),
            first: words(0),
            second: words(1),
            third: words(2),
            src_stride: src_stride as u32,
            n_pairs: teams.n_pairs(),
            head_dim: 4,
            n_dims: 0,
            pair_step: 0,
            pair_distance: 0,
            eps: 0.0,
            writes_norm: 0,
        }
    }

    /// The same with the rotation of a [`rope`] step, for those projections that turn.
    pub(crate) fn with_rope(self, rope: &rope::Params) -> Params {
        Params {
            head_dim: rope.head_dim,
            n_dims: rope.n_dims,
            pair_step: rope.pair_step,
            pair_distance: rope.pair_distance,
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
        ("table", Access::Read),
        ("kept", Access::ReadWrite),
        ("firsts", Access::ReadWrite),
        ("seconds", Access::ReadWrite),
        ("thirds", Access::ReadWrite),
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
    let of_each = [params.first, params.second, params.third];
    let workgroups = of_each.map(|of| of[0].div_ceil(2 * params.n_pairs));
    grid_of(workgroups.iter().sum::<u32>() as usize, n_rows)
}
