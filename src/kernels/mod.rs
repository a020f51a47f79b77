//! The kernels: each one is a WGSL file and a Rust file of one name, which holds the parameters, the
//! grid and the twin (plain loops, `f64` sums) that says what the WGSL must compute.
//!
//! Binding 0 of every kernel is the batch, binding 1 its parameters (both uniform); storage buffers
//! follow in the order of [`Kernel::bindings`]. Rows of activations lie [`row_stride`] elements apart.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod embed;
pub(crate) mod f16_rows;
pub(crate) mod gated_activation;
pub(crate) mod matmul;
pub(crate) mod matmul_coop;
pub(crate) mod matvec;
pub(crate) mod matvec_int8;
pub(crate) mod quantize;
pub(crate) mod repack;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod select_outputs;
pub(crate) mod store_kv;

#[cfg(test)]
mod tests;

use crate::gguf::WeightType;
use crate::kv_cache::KvType;
use bytemuck::{Pod, Zeroable};

/// Rows of activations and of repacked weights are padded with zeros to a multiple of this.
pub(crate) const ROW_ALIGNMENT: usize = 32;

/// Elements from one row of an activation buffer on the GPU to the next.
pub(crate) fn row_stride(width: usize) -> usize {
    width.next_multiple_of(ROW_ALIGNMENT)
}

/// The batch as every kernel sees it (`common/batch.wgsl`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct BatchParams {
    /// Rows of token-wide buffers.
    pub(crate) n_rows: u32,
    /// Position of the first row.
    pub(crate) position: u32,
    /// Rows of output-wide buffers: the last ones of the batch.
    pub(crate) n_outputs: u32,
    pub(crate) padding: u32,
}

/// How a kernel uses a storage buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// A WGSL kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The name of its two files.
    pub(crate) name: &'static str,
    /// The text of the `.wgsl` file.
    pub(crate) wgsl: &'static str,
    /// Storage buffers from binding 2 on.
    pub(crate) bindings: &'static [(&'static str, Access)],
    /// Bytes of its parameters.
    pub(crate) params_bytes: usize,
    /// What of [`Variant`] its text needs.
    pub(crate) uses: Uses,
}

/// The shared texts that a kernel includes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// The decoding of a weight type (`blocks/TYPE.wgsl`).
    pub(crate) weight: bool,
    /// Of the weight types only those that are quantised, as integers.
    pub(crate) integers: bool,
    /// Loads and stores of the cache (`common/kv_TYPE.wgsl`).
    pub(crate) kv: bool,
    /// Sums over a workgroup (`common/reduce_*.wgsl`).
    pub(crate) reduce: bool,
    /// 16-bit floats.
    pub(crate) f16: bool,
    /// Cooperative matrices ([`matmul_coop::Tile::source`]).
    pub(crate) tile: bool,
}

impl Uses {
    pub(crate) const NOTHING: Uses = Uses {
        weight: false,
        integers: false,
        kv: false,
        reduce: false,
        f16: false,
        tile: false,
    };
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Type of the weights, for kernels that read a weight matrix.
    pub(crate) weight: WeightType,
    /// Type of the cache, for kernels that touch it.
    pub(crate) kv: KvType,
    /// Whether subgroup operations may be used.
    pub(crate) subgroups: bool,
    /// What a workgroup computes, for kernels that use cooperative matrices.
    pub(crate) tile: Option<matmul_coop::Tile>,
}

/// Every kernel of the crate.
#[cfg(test)]
pub(crate) const ALL: [&Kernel; 14] = [
    &add::KERNEL,
    &attention::KERNEL,
    &embed::KERNEL,
    &f16_rows::KERNEL,
    &gated_activation::KERNEL,
    &matmul::KERNEL,
    &matmul_coop::KERNEL,
    &matvec::KERNEL,
    &matvec_int8::KERNEL,
    &quantize::KERNEL,
    &rms_norm::KERNEL,
    &rope::KERNEL,
    &select_outputs::KERNEL,
    &store_kv::KERNEL,
];

impl Kernel {
    /// The whole WGSL text of a variant: shared parts first, the kernel last.
    pub(crate) fn source(&self, variant: &Variant) -> String {
        let mut source = String::new();
        if self.uses.f16 {
            source += "enable f16;\n";
        }
        let tile = variant.tile.filter(|_| self.uses.tile);
        if let Some(tile) = tile {
            source += "enable wgpu_cooperative_matrix;\n";
            source += &tile.source();
        }
        source += include_str!("common/batch.wgsl");
        if self.uses.weight {
            source += include_str!("common/matrix.wgsl");
            source += repack::decoder(variant.weight);
            if variant.weight.block_len() > 1 {
                source += include_str!("common/decode8.wgsl");
            }
        }
        if self.uses.kv {
            source += match variant.kv {
                KvType::F32 => include_str!("common/kv_f32.wgsl"),
                KvType::F16 => include_str!("common/kv_f16.wgsl"),
            };
        }
        if self.uses.reduce {
            source += if variant.subgroups {
                include_str!("common/reduce_subgroup.wgsl")
            } else {
                include_str!("common/reduce_workgroup.wgsl")
            };
        }
        source + self.wgsl
    }
}

/// A grid of `count` workgroups in x (and y where x alone cannot count them), `rows` in z.
/// The kernel's index is `y * num_workgroups.x + x`, guarded against the rounding up.
pub(crate) fn grid(count: usize, rows: usize) -> [u32; 3] {
    const MOST: usize = 65535;
    let y = count.div_ceil(MOST).max(1);
    [count.div_ceil(y) as u32, y as u32, rows as u32]
}
