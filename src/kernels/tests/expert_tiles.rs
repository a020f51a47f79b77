//! Slots sorted by expert, and the products of many rows in tiles that each have one.

use super::{
    Random, Values, altered, first_difference, gpu, padded, run_kernel, tiles_of, unpadded,
    unwritten, unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::expert_tiles::{self, Tiling};
use crate::kernels::experts::{self, ExpertMatrix};
use crate::kernels::matmul_coop::Tile;
use crate::kernels::repack::Shard;
use crate::kernels::{
    BatchParams, Kernel, Variant, expert_matmul, expert_matmul_coop, f16_rows, row_stride,
};

/// Of products in f32: `f32::EPSILON * (sum |w x| + |bias|)`.
const PRODUCT_BOUND: f64 = 4.0;
/// An expert that no row has.
const UNCHOSEN: usize = 2;

fn batch(n_rows: usize) -> BatchParams {
    BatchParams {
        n_rows: n_rows as u32,
        position: 0,
        n_outputs: 0,
        random: 0,
    }
}

/// Which experts the rows have.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    Any,
    /// All of them one.
    Only(usize),
}

fn ids(random: &mut Random, chosen: Chosen, n_expert: usize, n_slots: usize) -> Vec<f32> {
    let mut id = |_| match chosen {
        Chosen::Only(expert) => expert,
        Chosen::Any => match random.bits() as usize % n_expert {
            UNCHOSEN => 0,
            expert => expert,
        },
    };
    (0..n_slots).map(|slot| id(slot) as f32).collect()
}

/// The table of tiles that a kernel makes.
fn table(context: &Context, kernel: &Kernel, tiling: &Tiling, ids: &[f32]) -> Vec<u32> {
    let n_rows = ids.len() / tiling.n_chosen;
    let params = tiling.params();
    let buffers = run_kernel(
        context,
        kernel,
        &Variant::PLAIN,
        batch(n_rows),
        bytemuck::bytes_of(&params),
        expert_tiles::grid(&params, n_rows),
        &[
            &padded(ids, tiling.n_chosen),
            &unwritten_words(tiling.words()),
        ],
    );
    bytemuck::pod_collect_to_vec(&buffers[1])
}

/// Compares a table with the twin's tiles; the slots of an expert may have any order.
fn judge_table(tiling: &Tiling, ids: &[f32], table: &[u32]) -> Result<(), String> {
    let want = expert_tiles::twin(tiling, ids);
    if table[0] as usize != want.len() || want.len() > tiling.max_tiles(ids.len()) {
        return Err(format!("{} tiles, expected {}", table[0], want.len()));
    }
    let order = &table[tiling.order_start()..];
    let mut of_experts = vec![Vec::new(); tiling.n_expert];
    for (index, (expert, slots)) in want.iter().enumerate() {
        let [found, first, end] = [0, 1, 2].map(|word| table[4 + 4 * index + word] as usize);
        let Some(found_slots) = order.get(first..end.min(ids.len())) else {
            return Err(format!("tile {index} has places {first}..{end}"));
        };
        if found != *expert || found_slots.len() != slots.len() {
            return Err(format!(
                "tile {index}: expert {found}, places {first}..{end}"
            ));
        }
        of_experts[*expert].extend(found_slots.iter().map(|&slot| slot as usize));
    }
    for (expert, mut found) in of_experts.into_iter().enumerate() {
        found.sort_unstable();
        let slots = want.iter().filter(|(of, _)| *of == expert);
        let expected: Vec<usize> = slots.flat_map(|(_, slots)| slots.clone()).collect();
        if found != expected {
            return Err(format!(
                "expert {expert} has {found:?}, expected {expected:?}"
            ));
        }
    }
    Ok(())
}

fn check_table(
    context: &Context,
    kernel: &Kernel,
    [n_rows, n_chosen, n_expert, tile_rows]: [usize; 4],
    chosen: Chosen,
) -> Result<(), String> {
    let tiling = Tiling {
        n_expert,
        n_chosen,
        max_slots: n_rows * n_chosen + 37,
        tile_rows,
    };
    let ids = ids(
        &mut Random::new(n_rows as u64),
        chosen,
        n_expert,
        n_rows * n_chosen,
    );
    judge_table(&tiling, &ids, &table(context, kernel, &tiling, &ids))
}

const TABLES: [[usize; 4]; 6] = [
    [1, 1, 1, 64],
    [5, 2, 7, 16],
    [67, 8, 128, 32],
    [127, 4, 32, 64],
    [513, 6, 1024, 128],
    [40, 33, 3, 16],
];

#[test]
fn tiles_of_experts_match_their_twin() {
    let Some(context) = gpu() else { return };
    for shape in TABLES {
        for chosen in [Chosen::Any, Chosen::Only(shape[2] - 1), Chosen::Only(0)] {
            check_table(context, &expert_tiles::KERNEL, shape, chosen)
                .unwrap_or_else(|e| panic!("{shape:?}, {chosen:?}: {e}"));
        }
    }
}

#[test]
fn mistakes_in_tiles_of_experts_are_seen() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("vec2(p.tile_rows, 1u)", "vec2(p.tile_rows, 2u)"),
        ("min(next.x + p.tile_rows, end)", "next.x + p.tile_rows"),
        (
            "(count + p.tile_rows - 1u) / p.tile_rows",
            "count / p.tile_rows",
        ),
        ("sums[lane] - own", "sums[lane]"),
        ("sums[max(lane, distance) - distance]", "sums[lane]"),
        ("atomicStore(&counts[expert], next.x);", ""),
        (
            "slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen",
            "slot",
        ),
        ("tiles[at] = expert;", "tiles[at] = lane;"),
        ("batch.n_rows * p.n_chosen", "batch.n_rows"),
    ] {
        let kernel = altered(&expert_tiles::KERNEL, &Variant::PLAIN, from, to);
        let is_seen = TABLES
            .into_iter()
            .any(|shape| check_table(context, &kernel, shape, Chosen::Any).is_err());
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

#[derive(Clone, Copy, Debug)]
struct Product {
    seed: u64,
    ty: WeightType,
    n_out: usize,
    n_cols: usize,
    n_rows: usize,
    chosen: Chosen,
    is_by_slot: bool,
    has_bias: bool,
    /// The first row of each shard.
    shards: &'static [usize],
}

const N_EXPERT: usize = 5;
const N_CHOSEN: usize = 3;

impl Product {
    /// By a tile of cooperative matrices, or without them.
    fn check(
        &self,
        context: &Context,
        tile: Option<Tile>,
        mistake: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let Product {
            ty,
            n_out,
            n_cols,
            n_rows,
            ..
        } = *self;
        let mut random = Random::new(self.seed);
        let n_all = N_EXPERT * n_out;
        let mut file = Vec::new();
        for row in 0..n_all {
            // What nothing has chosen is no number, where it can be none: it must not count.
            let is_chosen = row / n_out != UNCHOSEN || ty != WeightType::F32;
            let value = |_| if is_chosen { random.signed() } else { f32::NAN };
            let row: Vec<f32> = (0..n_cols).map(value).collect();
            file.extend(ty.encode(&row));
        }
        let n_slots = n_rows * N_CHOSEN;
        let n_src = if self.is_by_slot { n_slots } else { n_rows };
        let src = Values::Random.fill(&mut random, n_src * n_cols);
        let bias = Values::Random.fill(&mut random, n_all);
        let with_bias = self.has_bias.then_some(&bias[..]);
        let ids = ids(&mut random, self.chosen, N_EXPERT, n_slots);

        let row_bytes = ty.row_bytes(n_cols);
        let decode = |row: usize, out: &mut [f32]| {
            ty.decode(&file[row * row_bytes..][..row_bytes], out);
        };
        let sizes = |row: usize, out: &mut [f32]| {
            decode(row, out);
            out.iter_mut().for_each(|weight| *weight = weight.abs());
        };
        let matrix = ExpertMatrix {
            n_expert: N_EXPERT,
            n_out,
            n_cols,
        };
        let absolute = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
        let mut want = vec![0.0; n_slots * n_out];
        experts::matmul_twin(&decode, matrix, &src, &ids, with_bias, &mut want);
        let mut size = want.clone();
        let bias_size = with_bias.map(absolute);
        let bias_size = bias_size.as_deref();
        experts::matmul_twin(&sizes, matrix, &absolute(&src), &ids, bias_size, &mut size);

        let (kernel, outputs, tile_rows) = match tile {
            Some(tile) => (&expert_matmul_coop::KERNEL, tile.outputs(), tile.rows()),
            None => (
                &expert_matmul::KERNEL,
                expert_matmul::TILE,
                expert_matmul::TILE,
            ),
        };
        let variant = Variant {
            weight: ty,
            tile,
            ..Variant::PLAIN
        };
        let mistaken = mistake.map(|(from, to)| altered(kernel, &variant, from, to));
        let kernel = mistaken.as_ref().unwrap_or(kernel);
        let tiling = Tiling {
            n_expert: N_EXPERT,
            n_chosen: N_CHOSEN,
            max_slots: n_slots + 5,
            tile_rows,
        };
        let table = table(context, &expert_tiles::KERNEL, &tiling, &ids);
        let inputs = match tile {
            Some(_) => halves(context, &src, n_cols, [n_rows, n_src]),
            None => vec![padded(&src, n_cols)],
        };
        // A slot more than the batch has.
        let mut dst = unwritten(n_slots + 1, n_out);
        for (index, &first_row) in self.shards.iter().enumerate() {
            let end = self.shards.get(index + 1).copied().unwrap_or(n_all);
            let shard = Shard {
                ty,
                first_row,
                n_rows: end - first_row,
                n_cols,
            };
            let mut words = vec![0; shard.words()];
            let bytes = &file[first_row * row_bytes..end * row_bytes];
            shard.repack_rows(0..shard.n_rows, bytes, &mut Vec::new(), |offset, part| {
                words[offset..][..part.len()].copy_from_slice(part);
            });
            let params = expert_matmul::Params {
                matrix: shard.matrix(),
                src_stride: row_stride(n_cols) as u32,
                dst_stride: row_stride(n_out) as u32,
                n_out: n_out as u32,
                has_bias: self.has_bias.into(),
                slots_per_src: if self.is_by_slot { 1 } else { N_CHOSEN as u32 },
                order_start: tiling.order_start() as u32,
                padding: [0; 2],
            };
            let mut storage: Vec<&[u8]> = vec![bytemuck::cast_slice(&words)];
            storage.extend(inputs.iter().map(Vec::as_slice));
            storage.extend([
                bytemuck::cast_slice(&table),
                bytemuck::cast_slice(&bias),
                &dst,
            ]);
            let buffers = run_kernel(
                context,
                kernel,
                &variant,
                batch(n_rows),
                bytemuck::bytes_of(&params),
                expert_matmul::grid(&tiling, outputs, &params, n_slots),
                &storage,
            );
            dst = buffers.into_iter().next_back().unwrap_or_default();
        }
        let (rows, behind) = dst.split_at(n_slots * row_stride(n_out) * 4);
        if !unwritten(1, n_out).starts_with(behind) {
            return Err("a row behind the last was written".to_owned());
        }
        let got = unpadded(rows, n_out);
        let slots_per_src = n_slots / n_src;
        let bound = |i: usize| match tile {
            None => PRODUCT_BOUND * f64::from(f32::EPSILON) * f64::from(size[i]) + 1e-37,
            Some(_) => {
                let row = i / n_out / slots_per_src;
                let of_row = src[row * n_cols..][..n_cols].iter();
                let sum: f64 = of_row.map(|x| f64::from(x.abs())).sum();
                2.0_f64.powi(-10) * f64::from(size[i]) + 2.0_f64.powi(-25) * sum
            }
        };
        match first_difference(&got, &want, bound) {
            Some(difference) => Err(difference.to_string()),
            None => Ok(()),
        }
    }
}

/// Rows as 16-bit floats, and their scales.
fn halves(
    context: &Context,
    src: &[f32],
    n_cols: usize,
    [n_rows, n_src]: [usize; 2],
) -> Vec<Vec<u8>> {
    let src = padded(src, n_cols);
    let params = f16_rows::Params {
        n_slots: (n_src / n_rows) as u32,
        ..f16_rows::Params::new(n_cols, 0)
    };
    let buffers = run_kernel(
        context,
        &f16_rows::KERNEL,
        &Variant::PLAIN,
        batch(n_rows),
        bytemuck::bytes_of(&params),
        f16_rows::grid(&params, n_src),
        &[
            &src,
            &unwritten_words(src.len() / 8),
            &unwritten_words(n_src),
        ],
    );
    buffers.into_iter().skip(1).collect()
}

/// The tiles of cooperative matrices that there is room for; says so where there are none.
fn coop_tiles(context: &Context) -> Vec<Tile> {
    let Some(matrix) = context.cooperative_matrix else {
        println!("skipped: {} has no cooperative matrices", context.info.name);
        return Vec::new();
    };
    let room = context.limits.max_compute_workgroup_storage_size as usize;
    let tiles = tiles_of(matrix).into_iter();
    tiles
        .filter(|tile| tile.workgroup_bytes() <= room)
        .collect()
}

fn product(ty: WeightType, seed: u64) -> Product {
    // Rows of whole blocks; an expert's rows begin within a shard, and in another.
    let n_cols = ty.block_len().max(32) * 2 + if ty.block_len() == 1 { 5 } else { 0 };
    Product {
        seed,
        ty,
        n_out: 33,
        n_cols,
        n_rows: 47,
        chosen: Chosen::Any,
        is_by_slot: seed.is_multiple_of(2),
        has_bias: seed.is_multiple_of(3),
        shards: if seed.is_multiple_of(2) {
            &[0]
        } else {
            &[0, 40, 99]
        },
    }
}

/// One output, tails of tiles of 64, and more than one of them; rows of one expert and of all.
fn shapes() -> Vec<Product> {
    let mut shapes = Vec::new();
    for (n_out, n_rows) in [(1, 1), (64, 5), (127, 43), (129, 64), (31, 131)] {
        for chosen in [Chosen::Any, Chosen::Only(N_EXPERT - 1)] {
            shapes.push(Product {
                n_out,
                n_rows,
                chosen,
                shards: &[0],
                ..product(WeightType::Q8_0, n_out as u64 + 5)
            });
        }
    }
    shapes
}

#[test]
fn products_in_tiles_match_their_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    for (seed, ty) in (1..).zip(WeightType::ALL) {
        let case = product(ty, seed);
        case.check(context, None, None)
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    for case in shapes() {
        case.check(context, None, None)
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
}

#[test]
fn products_in_tiles_of_cooperative_matrices_match_their_twin() {
    let Some(context) = gpu() else { return };
    for (index, tile) in coop_tiles(context).into_iter().enumerate() {
        // The tiles of dense products have the same text.
        let (types, n_shapes) = match index {
            0 => (&WeightType::ALL[..], usize::MAX),
            _ => (&[WeightType::F16, WeightType::Q6_K][..], 4),
        };
        let cases = (index as u64 + 1..)
            .zip(types)
            .map(|(seed, &ty)| product(ty, seed));
        for case in cases.chain(shapes().into_iter().rev().take(n_shapes)) {
            if !case.n_cols.div_ceil(32).is_multiple_of(tile.units) {
                continue;
            }
            case.check(context, Some(tile), None)
                .unwrap_or_else(|e| panic!("{case:?} in {tile}: {e}"));
        }
    }
}

#[test]
fn mistakes_in_products_in_tiles_are_seen() {
    let Some(context) = gpu() else { return };
    let tile = coop_tiles(context).into_iter().find(|tile| tile.units == 1);
    let both = [
        ("tiles[p.order_start + place]", "place"),
        ("let expert = tiles[4u + 4u * tile];", "let expert = 0u;"),
        (
            "i32(expert * p.n_out) - i32(p.matrix.first_row)",
            "i32(expert * p.n_out)",
        ),
        ("first_weight = first;", "first_weight = max(first, 0);"),
        ("tile_expert * p.n_out + output", "output"),
    ];
    let plain = [
        ("slot_at(place) / p.slots_per_src", "slot_at(place)"),
        ("if row < 0 ||", "if row <= 0 ||"),
        ("dst[slot_at(place) *", "dst[place *"),
    ];
    let coop = [
        ("dst_rows(places) / p.slots_per_src", "dst_rows(places)"),
        (
            "(outputs < vec4(p.n_out)) &",
            "(outputs + 1u < vec4(p.n_out)) &",
        ),
        ("(rows >= vec4(0)) &", ""),
        (
            "vec4(slot_at(places.x), slot_at(places.y), slot_at(places.z)",
            "vec4(slot_at(places.x), slot_at(places.y), slot_at(places.y)",
        ),
        ("return outputs;", "return p.matrix.first_row + outputs;"),
    ];
    let mut ways = vec![(None, &plain[..])];
    ways.extend(tile.map(|tile| (Some(tile), &coop[..])));
    for (tile, own) in ways {
        for &(from, to) in both.iter().chain(own) {
            let is_seen = [3, 5, 6, 9].into_iter().any(|seed| {
                let case = product(WeightType::Q8_0, seed);
                case.check(context, tile, Some((from, to))).is_err()
            });
            assert!(is_seen, "`{from}` as `{to}`, {tile:?}");
        }
    }
}
