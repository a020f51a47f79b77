//! Appends a batch's keys and values to a layer's cache.

use super::{Access, Kernel, Uses, row_stride};
use crate::kv_cache::KvType;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `store_kv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// `width = n_head_kv * head_dim` (a multiple of 4).
    pub(crate) fn new(width: usize) -> Params {
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "store_kv",
    wgsl: include_str!("store_kv.wgsl"),
    bindings: &[
        ("k", Access::Read),
        ("v", Access::Read),
        ("keys", Access::ReadWrite),
        ("values", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        kv: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_rows)
}

/// Rounds keys or values into the front of `dst`, the rows of the cache that are theirs.
pub(crate) fn twin(ty: KvType, src: &[f32], dst: &mut [f32]) {
    for (dst, &value) in dst.iter_mut().zip(src) {
        *dst = ty.round(value);
    }
}
