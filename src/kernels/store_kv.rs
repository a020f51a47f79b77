//! Appends a batch's keys and values to a layer's cache.

use super::{Access, Kernel, Uses, row_stride};
use crate::kv_cache::KvType;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `store_kv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    /// Of keys and of values.
    pub(crate) widths: [u32; 2],
    pub(crate) strides: [u32; 2],
}

impl Params {
    /// Widths of keys and of values, multiples of 4.
    pub(crate) fn new(widths: [usize; 2]) -> Params {
        Params {
            widths: widths.map(|width| width as u32),
            strides: widths.map(|width| row_stride(width) as u32),
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
    let [keys, values] = params.widths;
    super::grid((keys.max(values) as usize).div_ceil(4 * 64), n_rows)
}

/// Rounds keys or values into the front of `dst`, the rows of the cache that are theirs.
pub(crate) fn twin(ty: KvType, src: &[f32], dst: &mut [f32]) {
    for (dst, &value) in dst.iter_mut().zip(src) {
        *dst = ty.round(value);
    }
}
