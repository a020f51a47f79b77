//! Every kernel against its twin, on whatever adapter there is, and through naga for every backend.

mod attention;
mod attention_coop;
mod attention_few;
mod both_ways;
mod columns;
mod elementwise;
mod expert_gated;
mod expert_tiles;
mod experts;
mod few_rows;
mod heads;
mod layer_norm;
mod map;
mod matrix;
mod quantize;
mod recurrent;
mod sample;
mod sentinel;
mod translate;
mod warnings;
mod written;

use super::attention_coop::Tile as AttentionTile;
use super::attention_few::Heads;
use super::matmul_coop::{CooperativeMatrix, Tile};
use super::quantize::{UNIT, quantize_unit, row_words};
use super::{Kernel, ROW_ALIGNMENT, Src, Uses, Variant, head_matvec, row_stride};
use crate::gguf::WeightType;
use crate::kv_cache::KvType;
use std::fmt::{self, Debug};

pub(crate) use crate::device::wgpu::testing::{gpu, run_kernel};

/// Fills outputs before a kernel runs: not a number, so that an element it forgets is a failure.
const SENTINEL: u32 = 0x7FC0_DEAD;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Uniform in -1..1.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What the inputs of a case are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Values {
    Zero,
    /// Up to 1e-4: an epsilon matters.
    Tiny,
    /// Up to 4.
    Random,
    /// Up to 1e6: 16-bit floats would overflow.
    Huge,
}

impl Values {
    pub(crate) const ALL: [Values; 4] = [Values::Zero, Values::Tiny, Values::Random, Values::Huge];

    /// The largest magnitude.
    pub(crate) fn scale(self) -> f32 {
        match self {
            Values::Zero => 0.0,
            Values::Tiny => 1e-4,
            Values::Random => 4.0,
            Values::Huge => 1e6,
        }
    }

    pub(crate) fn fill(self, random: &mut Random, count: usize) -> Vec<f32> {
        (0..count).map(|_| random.signed() * self.scale()).collect()
    }
}

/// Every variant that a kernel's text distinguishes, on a device with subgroups or without.
pub(crate) fn variants(kernel: &Kernel, subgroups: bool) -> Vec<Variant> {
    let any = Variant::PLAIN;
    let mut variants = vec![any];
    if kernel.uses.weight {
        let of_type = |weight| Variant { weight, ..any };
        variants = WeightType::ALL.into_iter().map(of_type).collect();
    }
    if kernel.uses.matvec {
        let quantised = variants.iter().filter(|v| v.weight.is_quantised());
        let of_experts = ["expert_gated", "expert_matvec"];
        // Kernels with a residual, and those of experts, have none of what a norm needs; that of heads takes floats.
        let sources = match kernel.name {
            name if name == head_matvec::KERNEL.name => Vec::new(),
            name if kernel.uses.output || of_experts.contains(&name) => vec![Src::Int8],
            _ => vec![Src::Int8, Src::Norm],
        };
        let of = |&v: &Variant| {
            sources
                .iter()
                .map(move |&src| Variant { src, ..v })
                .collect::<Vec<_>>()
        };
        let rounded: Vec<_> = quantised.flat_map(of).collect();
        variants.extend(rounded);
    }
    if kernel.uses.matvec {
        let each = |v: Variant| {
            [(64, 2), (128, 1), (256, 2)].map(|(workgroup, int8_pairs)| Variant {
                workgroup,
                int8_pairs,
                ..v
            })
        };
        variants = variants.into_iter().flat_map(each).collect();
    }
    if kernel.uses.tile {
        let with_each = |v| tiles().map(move |tile| Variant { tile, ..v });
        variants = variants.into_iter().flat_map(with_each).collect();
    }
    if kernel.uses.heads {
        // Whoever reads no cache merges, a head at a time.
        let heads = || heads().filter(|heads| kernel.uses.kv || heads.n_heads == 1);
        let with_each = |v| {
            heads().map(move |heads| Variant {
                heads: Some(heads),
                ..v
            })
        };
        variants = variants.into_iter().flat_map(with_each).collect();
    }
    if kernel.uses.attention_tile {
        let with = |attention_tile| Variant {
            attention_tile: Some(attention_tile),
            ..any
        };
        variants = attention_tiles().map(with).collect();
    }
    if kernel.uses.kv {
        let both = |v| [KvType::F32, KvType::F16].map(|kv| Variant { kv, ..v });
        variants = variants.into_iter().flat_map(both).collect();
    }
    if subgroups {
        let with = variants.iter().filter(|v| kernel.reduces(v));
        let with: Vec<_> = with.map(|&v| Variant { subgroups, ..v }).collect();
        variants.extend(with);
    }
    variants
}

/// Of the narrowest and the widest heads, of common ones, and where some invocations are left over.
fn heads() -> impl Iterator<Item = Heads> {
    [8, 24, 32, 64, 80, 128, 256, 512]
        .into_iter()
        .flat_map(|head_dim| {
            let shape = |group_size| attention::shape(group_size, 1, head_dim, 0);
            let shared = [1, 2, 3, 4].map(|group_size| Heads::shared(&shape(group_size)));
            let others = [Heads::whole(&shape(3)), Heads::merge(&shape(1))];
            shared.into_iter().chain(others)
        })
}

/// The cooperative matrices of NVIDIA, of Apple and of lavapipe.
fn matrices() -> impl Iterator<Item = CooperativeMatrix> {
    let matrices = [(16, 32, true), (8, 32, false), (8, 8, true)];
    matrices
        .into_iter()
        .map(|(size, subgroup_size, from_vectors)| CooperativeMatrix {
            size,
            subgroup_size,
            from_vectors,
        })
}

/// The tiles of such matrices, for rows of an odd and of an even number of units.
pub(crate) fn tiles_of(matrix: CooperativeMatrix) -> Vec<Tile> {
    let mut tiles = Tile::all(matrix, 1);
    let even = Tile::all(matrix, 2);
    tiles.extend(even.into_iter().filter(|tile| tile.units == 2));
    tiles
}

fn tiles() -> impl Iterator<Item = Option<Tile>> {
    matrices().flat_map(|matrix| tiles_of(matrix).into_iter().map(Some))
}

fn attention_tiles() -> impl Iterator<Item = AttentionTile> {
    matrices().flat_map(|matrix| {
        let shapes =
            [64, 80, 128, 256].map(|head_dim| [KvType::F32, KvType::F16].map(|kv| (head_dim, kv)));
        let tile = move |(head_dim, kv)| AttentionTile::new(matrix, kv, head_dim, usize::MAX);
        shapes.into_iter().flatten().filter_map(tile)
    })
}

/// Rows of `width` elements as the GPU holds them: `row_stride` apart, padded with zeros.
pub(crate) fn padded(dense: &[f32], width: usize) -> Vec<u8> {
    let mut rows = Vec::new();
    for row in dense.chunks_exact(width) {
        rows.extend_from_slice(bytemuck::cast_slice(row));
        rows.resize(rows.len() + (row_stride(width) - width) * 4, 0);
    }
    rows
}

/// Rows of `width` elements as int8, as `common/quantize.wgsl` lays them out.
pub(crate) fn int8_rows(dense: &[f32], width: usize) -> Vec<u8> {
    let mut rows = Vec::new();
    for row in dense.chunks_exact(width) {
        let end = rows.len() + row_words(width) * 4;
        let mut scales: Vec<f32> = Vec::new();
        for unit in row.chunks(UNIT) {
            let unit = quantize_unit(unit);
            let sum: i32 = unit.q.into_iter().map(i32::from).sum();
            rows.extend_from_slice(bytemuck::cast_slice(&unit.q));
            scales.extend([unit.scale, unit.scale * sum as f32]);
        }
        rows.extend_from_slice(bytemuck::cast_slice(&scales));
        rows.resize(end, 0);
    }
    rows
}

/// The kernel with one piece of its text, or of what it includes, replaced: a mistake on purpose.
pub(crate) fn altered(kernel: &Kernel, variant: &Variant, from: &str, to: &str) -> Kernel {
    let Kernel {
        name,
        bindings,
        params_bytes,
        uses,
        ..
    } = *kernel;
    let text = kernel.source(variant);
    assert_eq!(text.matches(from).count(), 1, "`{from}` in {name}");
    Kernel {
        // Pipelines are kept by name.
        name: String::leak(format!("{name} with `{to}` for `{from}`, {variant:?}")),
        wgsl: String::leak(text.replace(from, to)),
        bindings,
        params_bytes,
        uses: Uses {
            is_whole: true,
            ..uses
        },
    }
}

/// An output of `n_rows` rows of `width` elements that nothing has written yet.
pub(crate) fn unwritten(n_rows: usize, width: usize) -> Vec<u8> {
    unwritten_words(n_rows * row_stride(width))
}

/// `count` 32-bit words that nothing has written yet.
pub(crate) fn unwritten_words(count: usize) -> Vec<u8> {
    bytemuck::pod_collect_to_vec(&vec![SENTINEL; count])
}

/// The rows of a buffer of the GPU without their padding, which must be zero or never written.
pub(crate) fn unpadded(bytes: &[u8], width: usize) -> Vec<f32> {
    let elements: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
    let mut dense = Vec::new();
    for row in elements.chunks_exact(row_stride(width)) {
        let (row, padding) = row.split_at(width);
        let clean = |x: &f32| *x == 0.0 || x.to_bits() == SENTINEL;
        assert!(
            padding.iter().all(clean),
            "the padding of a row was written: {padding:?}"
        );
        dense.extend_from_slice(row);
    }
    dense
}

/// Where two results differ by more than the bound.
#[derive(Debug)]
struct Difference {
    index: usize,
    got: f32,
    want: f32,
    bound: f64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            index,
            got,
            want,
            bound,
        } = self;
        write!(
            f,
            "element {index} is {got:e}, expected {want:e}, bound {bound:e}"
        )
    }
}

fn first_difference(got: &[f32], want: &[f32], bound: impl Fn(usize) -> f64) -> Option<Difference> {
    (0..got.len().max(want.len())).find_map(|index| {
        let value = |of: &[f32]| of.get(index).copied().unwrap_or(f32::NAN);
        let (got, want, bound) = (value(got), value(want), bound(index));
        let error = (f64::from(got) - f64::from(want)).abs();
        #[expect(
            clippy::neg_cmp_op_on_partial_ord,
            reason = "not a number is a difference"
        )]
        let differs = !(error <= bound);
        differs.then_some(Difference {
            index,
            got,
            want,
            bound,
        })
    })
}

/// Fails where an element of `got` is further from `want` than `bound` allows at its index.
pub(crate) fn assert_close(
    what: &str,
    seed: u64,
    shape: &dyn Debug,
    got: &[f32],
    want: &[f32],
    bound: impl Fn(usize) -> f64,
) {
    if let Some(difference) = first_difference(got, want, bound) {
        panic!("`{what}`, seed {seed}, {shape:?}: {difference}");
    }
}

#[test]
fn comparison_refuses_what_is_beyond_the_bound_not_a_number_or_missing() {
    let refuses = |got: &[f32], want: &[f32]| first_difference(got, want, |_| 0.5).map(|d| d.index);
    assert_eq!(refuses(&[1.0, 2.0], &[1.5, 1.5]), None);
    assert_eq!(refuses(&[1.0, 2.0], &[1.0, 2.6]), Some(1));
    assert_eq!(refuses(&[f32::NAN], &[0.0]), Some(0));
    assert_eq!(refuses(&[0.0], &[f32::NAN]), Some(0));
    assert_eq!(refuses(&[f32::INFINITY], &[f32::INFINITY]), Some(0));
    assert_eq!(refuses(&[1.0], &[1.0, 2.0]), Some(1));
    assert_eq!(refuses(&[1.0, 2.0], &[1.0]), Some(1));
    assert_eq!(refuses(&[f32::from_bits(SENTINEL)], &[0.0]), Some(0));
}

#[test]
#[should_panic(expected = "`add`, seed 7, [2, 3]: element 1 is 2e0, expected 3e0, bound 1e-1")]
fn a_failed_comparison_names_seed_shape_index_values_and_bound() {
    assert_close("add", 7, &[2, 3], &[1.0, 2.0], &[1.0, 3.0], |_| 0.1);
}

#[test]
#[should_panic(expected = "the padding of a row was written")]
fn unpadding_refuses_a_written_padding() {
    let mut rows = padded(&[1.0; 3], 3);
    rows[ROW_ALIGNMENT * 4 - 1] = 1;
    unpadded(&rows, 3);
}

#[test]
fn grid_covers_any_count_within_the_limit_of_a_dimension() {
    for count in [1, 2, 65535, 65536, 65537, 1_000_003] {
        let [x, y, z] = super::grid(count, 3);
        assert!(x <= 65535 && y <= 65535 && z == 3, "{count}");
        assert!(
            (x * y) as usize >= count && ((x - 1) * y) as usize <= count,
            "{count}"
        );
    }
}
