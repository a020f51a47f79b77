//! The product of few rows with a weight matrix: decoding. Each row reads the weights once.

pub(crate) use super::matmul::Params;
use super::{Access, Kernel, Uses, grid as grid_of};

/// The kernel; its twin is [`super::matmul::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matvec",
    wgsl: include_str!("matvec.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("bias", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        kv: false,
        reduce: false,
    },
};

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    let n_outputs = if params.matrix.units_per_row >= 64 {
        4
    } else {
        16
    };
    grid_of(params.matrix.n_rows.div_ceil(n_outputs) as usize, n_rows)
}
