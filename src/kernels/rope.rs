//! Rotary position embedding of queries and keys.

use super::{Access, Kernel, Uses, row_stride};
use crate::plan::{RopePairing, RopeTable};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `rope.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_head: u32,
    pub(crate) head_dim: u32,
    pub(crate) n_dims: u32,
    pub(crate) stride: u32,
    pub(crate) pair_step: u32,
    pub(crate) pair_distance: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// Rows of `width` elements in heads of `head_dim` (even).
    pub(crate) fn new(width: usize, head_dim: usize, table: &RopeTable) -> Params {
        let (pair_step, pair_distance) = match table.pairing {
            RopePairing::Adjacent => (2, 1),
            RopePairing::Halves => (1, table.n_dims() as u32 / 2),
        };
        Params {
            n_head: (width / head_dim) as u32,
            head_dim: head_dim as u32,
            n_dims: table.n_dims() as u32,
            stride: row_stride(width) as u32,
            pair_step,
            pair_distance,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "rope",
    wgsl: include_str!("rope.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("table", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    let pairs = (params.n_head * params.head_dim / 2) as usize;
    super::grid(pairs.div_ceil(64), n_rows)
}

/// Turns each head of `src` `[n_rows, n_head, head_dim]` by its row's position, the first row at
/// `position`.
pub(crate) fn twin(
    table: &RopeTable,
    position: usize,
    width: usize,
    head_dim: usize,
    src: &[f32],
    dst: &mut [f32],
) {
    dst.copy_from_slice(src);
    for (row, dst) in dst.chunks_exact_mut(width).enumerate() {
        let angles: Vec<[f32; 2]> = table.row(position + row).collect();
        for head in dst.chunks_exact_mut(head_dim) {
            for (i, &[cos, sin]) in angles.iter().enumerate() {
                let (first, second) = match table.pairing {
                    RopePairing::Adjacent => (2 * i, 2 * i + 1),
                    RopePairing::Halves => (i, i + angles.len()),
                };
                let (x, y) = (f64::from(head[first]), f64::from(head[second]));
                let (cos, sin) = (f64::from(cos), f64::from(sin));
                head[first] = (x * cos - y * sin) as f32;
                head[second] = (x * sin + y * cos) as f32;
            }
        }
    }
}
