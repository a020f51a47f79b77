//! The rows of the embedding that the tokens name.

use super::repack::Matrix;
use super::{Access, Kernel, Uses, grid as grid_of};
use bytemuck::{Pod, Zeroable};

/// Parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the embedding; rows whose token lies elsewhere are left as they are.
    pub(crate) matrix: Matrix,
    /// Elements from a row of `dst` to the next, a multiple of 32.
    pub(crate) dst_stride: u32,
    /// Factor on the embedding.
    pub(crate) scale: f32,
    /// What names rows: [`BY_POSITION`], [`BY_NOTHING`], or else the token.
    pub(crate) named_by: u32,
    pub(crate) padding: u32,
}

/// Rows are named by position.
pub(crate) const BY_POSITION: u32 = 1;

/// Every row is the first one.
pub(crate) const BY_NOTHING: u32 = 2;

/// The kernel.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "embed",
    wgsl: include_str!("embed.wgsl"),
    bindings: &[
        ("tokens", Access::Read),
        ("weights", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_rows` rows.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(
        (params.matrix.units_per_row as usize * 4).div_ceil(64),
        n_rows,
    )
}

/// `dst[row] = weights[indices[row]] * scale`; `weights` decodes a row of weights, as wide as a row of `dst`.
pub(crate) fn twin(
    weights: &dyn Fn(usize, &mut [f32]),
    indices: &[u32],
    scale: f32,
    dst: &mut [f32],
) {
    if indices.is_empty() {
        return;
    }
    let n_cols = dst.len() / indices.len();
    for (index, dst) in indices.iter().zip(dst.chunks_exact_mut(n_cols)) {
        weights(*index as usize, dst);
        for value in dst {
            *value *= scale;
        }
    }
}
