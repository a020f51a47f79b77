//! The kernels: each one is a WGSL file and a Rust file of one name, which holds the parameters, the
//! grid and the twin (plain loops, `f64` sums) that says what the WGSL must compute.
//!
//! Binding 0 of every kernel is the batch, binding 1 its parameters (both uniform); storage buffers
//! follow in the order of [`Kernel::bindings`]. Rows of activations lie [`row_stride`] elements apart.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod attention_coop;
pub(crate) mod attention_few;
pub(crate) mod attention_merge;
pub(crate) mod causal_conv;
pub(crate) mod choose_experts;
mod constants;
pub(crate) mod delta_rule;
pub(crate) mod embed;
pub(crate) mod expert_gated;
pub(crate) mod expert_matmul;
pub(crate) mod expert_matmul_coop;
pub(crate) mod expert_matvec;
pub(crate) mod expert_tiles;
pub(crate) mod expert_weights;
pub(crate) mod experts;
pub(crate) mod f16_rows;
pub(crate) mod gated_activation;
pub(crate) mod group_norm;
pub(crate) mod head_matvec;
pub(crate) mod layer_norm;
pub(crate) mod logit_maxima;
pub(crate) mod map;
pub(crate) mod matmul;
pub(crate) mod matmul_coop;
pub(crate) mod matvec;
pub(crate) mod matvec_gated;
pub(crate) mod matvec_heads;
pub(crate) mod quantize;
pub(crate) mod repack;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod select_outputs;
pub(crate) mod sentinel;
pub(crate) mod state_scan;
pub(crate) mod store_kv;
pub(crate) mod take_columns;
pub(crate) mod teams;
pub(crate) mod weigh_slots;
pub(crate) mod weighted_sum;

#[cfg(test)]
mod tests;

pub(crate) use constants::Constants;

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
    /// For the choice of the next token.
    pub(crate) random: u32,
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
    /// Storage buffers from binding 2 on, but for those of [`Src::Norm`].
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
    /// The product with few rows of activations (`common/matvec.wgsl`, `common/src_TYPE.wgsl`).
    pub(crate) matvec: bool,
    /// Loads and stores of the cache (`common/kv_TYPE.wgsl`).
    pub(crate) kv: bool,
    /// Sums over a workgroup (`common/reduce_*.wgsl`).
    pub(crate) reduce: bool,
    /// Floats as integers of the same order (`common/ordered.wgsl`).
    pub(crate) ordered: bool,
    /// 16-bit floats.
    pub(crate) f16: bool,
    /// The product by cooperative matrices ([`matmul_coop::Tile::source`], `common/matmul_coop.wgsl`).
    pub(crate) tile: bool,
    /// Sums of attention in slices ([`attention_few::Heads::source`], `common/slices.wgsl`).
    pub(crate) heads: bool,
    /// What becomes of products: bias and residual (`common/output.wgsl`).
    pub(crate) output: bool,
    /// The product with many rows in registers (`common/matmul.wgsl`).
    pub(crate) matmul: bool,
    /// Tiles of rows that each have one expert (`common/expert_tiles.wgsl`).
    pub(crate) expert_tiles: bool,
    /// The non-linearities (`common/activation.wgsl`).
    pub(crate) activation: bool,
    /// Soft caps (`common/soft_cap.wgsl`).
    pub(crate) soft_cap: bool,
    /// Rows of states (`common/recurrence.wgsl`).
    pub(crate) recurrence: bool,
    /// Rounding to int8 (`common/quantize.wgsl`).
    pub(crate) quantize: bool,
    /// Rounding to 16-bit floats (`common/f16_rows.wgsl`).
    pub(crate) f16_rows: bool,
    /// Cooperative matrices and the cache as their factors ([`attention_coop::Tile::source`]).
    pub(crate) attention_tile: bool,
    /// Nothing: the text has all of them in it.
    #[cfg(test)]
    pub(crate) is_whole: bool,
}

impl Uses {
    pub(crate) const NOTHING: Uses = Uses {
        weight: false,
        matvec: false,
        kv: false,
        reduce: false,
        ordered: false,
        f16: false,
        tile: false,
        heads: false,
        output: false,
        matmul: false,
        expert_tiles: false,
        activation: false,
        soft_cap: false,
        recurrence: false,
        quantize: false,
        f16_rows: false,
        attention_tile: false,
        #[cfg(test)]
        is_whole: false,
    };
}

/// What the activations are that a product with few rows takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Src {
    F32,
    /// Rounded to int8; the weights are quantised.
    Int8,
    /// What an RMS norm makes of f32, rounded to int8 (`common/src_norm.wgsl`); the weights are quantised.
    Norm,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Type of the weights, for kernels that read a weight matrix.
    pub(crate) weight: WeightType,
    /// What few rows of activations are, for products with them.
    pub(crate) src: Src,
    /// Type of the cache, for kernels that touch it.
    pub(crate) kv: KvType,
    /// Whether subgroup operations may be used.
    pub(crate) subgroups: bool,
    /// What a workgroup computes, for kernels that use cooperative matrices.
    pub(crate) tile: Option<matmul_coop::Tile>,
    /// What a workgroup has of the heads, for attention of few rows.
    pub(crate) heads: Option<attention_few::Heads>,
    /// What a workgroup computes of attention by cooperative matrices.
    pub(crate) attention_tile: Option<attention_coop::Tile>,
    /// Invocations of workgroups of [`Uses::matvec`].
    pub(crate) workgroup: u32,
    /// [`teams::Teams::pairs`], where it is not F32 that is multiplied.
    pub(crate) int8_pairs: u32,
    /// The parameters, where they are part of the text and not read from the uniform: the first loads of
    /// a kernel then wait for nothing.
    pub(crate) constants: Option<Constants>,
}

impl Variant {
    /// That of a kernel which uses none of this.
    pub(crate) const PLAIN: Variant = Variant {
        weight: WeightType::F32,
        src: Src::F32,
        kv: KvType::F32,
        subgroups: false,
        tile: None,
        heads: None,
        attention_tile: None,
        workgroup: 128,
        int8_pairs: 1,
        constants: None,
    };
}

/// Every kernel of the crate.
#[cfg(test)]
pub(crate) const ALL: [&Kernel; 38] = [
    &add::KERNEL,
    &attention::KERNEL,
    &attention_coop::KERNEL,
    &attention_few::KERNEL,
    &attention_merge::KERNEL,
    &causal_conv::KERNEL,
    &choose_experts::KERNEL,
    &delta_rule::KERNEL,
    &embed::KERNEL,
    &expert_gated::KERNEL,
    &expert_matmul::KERNEL,
    &expert_matmul_coop::KERNEL,
    &expert_matvec::KERNEL,
    &expert_tiles::KERNEL,
    &expert_weights::KERNEL,
    &f16_rows::KERNEL,
    &gated_activation::KERNEL,
    &group_norm::KERNEL,
    &head_matvec::KERNEL,
    &layer_norm::KERNEL,
    &logit_maxima::KERNEL,
    &map::KERNEL,
    &matmul::KERNEL,
    &matmul_coop::KERNEL,
    &matvec::KERNEL,
    &matvec_gated::KERNEL,
    &matvec_heads::KERNEL,
    &quantize::KERNEL,
    &rms_norm::KERNEL,
    &rope::KERNEL,
    &sample::KERNEL,
    &select_outputs::KERNEL,
    &sentinel::KERNEL,
    &state_scan::KERNEL,
    &store_kv::KERNEL,
    &take_columns::KERNEL,
    &weigh_slots::KERNEL,
    &weighted_sum::KERNEL,
];

impl Kernel {
    /// The storage buffers of a variant, from binding 2 on.
    pub(crate) fn bindings(&self, variant: &Variant) -> Vec<(&'static str, Access)> {
        let mut bindings = self.bindings.to_vec();
        if self.uses.matvec && variant.src == Src::Norm {
            bindings.extend([("norm_weight", Access::Read), ("normed", Access::ReadWrite)]);
        }
        bindings
    }

    /// Whether a variant's text has sums over a workgroup.
    pub(crate) fn reduces(&self, variant: &Variant) -> bool {
        self.uses.reduce || self.uses.matvec && variant.src == Src::Norm
    }

    /// The whole WGSL text of a variant: shared parts first, the kernel last.
    pub(crate) fn source(&self, variant: &Variant) -> String {
        #[cfg(test)]
        if self.uses.is_whole {
            return self.wgsl.to_owned();
        }
        let is_quantised = variant.weight.is_quantised();
        let mut source = String::new();
        if self.uses.f16 {
            source += "enable f16;\n";
        }
        let tile = variant.tile.filter(|_| self.uses.tile);
        let attention_tile = variant.attention_tile.filter(|_| self.uses.attention_tile);
        if tile.is_some() || attention_tile.is_some() {
            source += "enable wgpu_cooperative_matrix;\n";
        }
        source += &tile.map(|tile| tile.source()).unwrap_or_default();
        source += &attention_tile.map(|tile| tile.source()).unwrap_or_default();
        source += include_str!("common/batch.wgsl");
        if self.uses.weight {
            source += include_str!("common/matrix.wgsl");
            source += repack::decoder(variant.weight);
            if is_quantised {
                source += match repack::has_two_offsets(variant.weight) {
                    true => include_str!("common/offset_halves.wgsl"),
                    false => include_str!("common/offset.wgsl"),
                };
                source += include_str!("common/decode8.wgsl");
            }
            if self.uses.tile {
                source += include_str!("common/f16.wgsl");
                source += if is_quantised && !repack::has_codebook(variant.weight) {
                    include_str!("common/decode8_f16.wgsl")
                } else {
                    include_str!("common/decode8_f16_float.wgsl")
                };
            }
        }
        let rounds = self.uses.matvec && variant.src == Src::Norm;
        if self.uses.quantize || self.uses.f16_rows || rounds {
            source += include_str!("common/largest.wgsl");
        }
        if self.uses.quantize || rounds {
            source += include_str!("common/int8.wgsl");
        }
        if self.uses.matvec {
            source += &format!("const WORKGROUP = {}u;\n", variant.workgroup);
            if variant.src != Src::F32 {
                source += &format!("const INT8_PAIRS = {}u;\n", variant.int8_pairs);
            }
            source += include_str!("common/matvec.wgsl");
            source += match variant.src {
                Src::F32 => include_str!("common/src_f32.wgsl"),
                Src::Int8 => include_str!("common/src_int8.wgsl"),
                Src::Norm => include_str!("common/src_norm.wgsl"),
            };
            source += match variant.src {
                Src::F32 if is_quantised => include_str!("common/multiply_units.wgsl"),
                Src::F32 => include_str!("common/multiply_eights.wgsl"),
                Src::Int8 | Src::Norm => include_str!("common/dot_int8.wgsl"),
            };
            if variant.src != Src::F32 {
                source += match repack::has_two_offsets(variant.weight) {
                    true => include_str!("common/offset_halves_int8.wgsl"),
                    false => include_str!("common/offset_int8.wgsl"),
                };
            }
            if variant.src == Src::Norm {
                let first = 2 + self.bindings.len();
                source += &format!(
                    "@group(0) @binding({first}) var<storage, read> norm_weight: array<vec4<f32>>; // [src_stride]\n\
                     @group(0) @binding({}) var<storage, read_write> normed: array<vec4<f32>>; // [n_rows, src_stride]\n",
                    first + 1
                );
            }
        }
        if self.uses.kv {
            source += match variant.kv {
                KvType::F32 => include_str!("common/kv_f32.wgsl"),
                KvType::F16 => include_str!("common/kv_f16.wgsl"),
            };
        }
        if self.reduces(variant) {
            source += if variant.subgroups {
                include_str!("common/reduce_subgroup.wgsl")
            } else {
                include_str!("common/reduce_workgroup.wgsl")
            };
        }
        if self.uses.output {
            source += include_str!("common/output.wgsl");
        }
        if self.uses.matmul {
            source += include_str!("common/matmul.wgsl");
        }
        if self.uses.tile {
            source += include_str!("common/matmul_coop.wgsl");
        }
        if self.uses.expert_tiles {
            source += include_str!("common/expert_tiles.wgsl");
        }
        if self.uses.activation {
            source += include_str!("common/activation.wgsl");
        }
        if self.uses.soft_cap {
            source += include_str!("common/soft_cap.wgsl");
        }
        if self.uses.recurrence {
            source += include_str!("common/recurrence.wgsl");
        }
        if self.uses.quantize {
            source += include_str!("common/quantize.wgsl");
        }
        if self.uses.f16_rows {
            source += include_str!("common/f16_rows.wgsl");
        }
        if self.uses.ordered {
            source += include_str!("common/ordered.wgsl");
        }
        if let Some(heads) = variant.heads.filter(|_| self.uses.heads) {
            source += &heads.source();
            source += include_str!("common/slices.wgsl");
        }
        match &variant.constants {
            Some(constants) => source + &constants.put_into(self.wgsl),
            None => source + self.wgsl,
        }
    }
}

/// A grid of `count` workgroups in x (and y where x alone cannot count them), `rows` in z.
/// The kernel's index is `y * num_workgroups.x + x`, guarded against the rounding up.
pub(crate) fn grid(count: usize, rows: usize) -> [u32; 3] {
    const MOST: usize = 65535;
    let y = count.div_ceil(MOST).max(1);
    [count.div_ceil(y) as u32, y as u32, rows as u32]
}
