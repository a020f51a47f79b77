//! Attention deep in the context by cooperative matrices, with its merging.

use super::attention::{Case, Inputs, encode_cache, shape};
use super::elementwise::decode_cache;
use super::{
    Random, Values, first_difference, gpu, padded, run_kernel, unpadded, unwritten, unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::kernels::attention::Shape;
use crate::kernels::attention_deep::{self, Tile};
use crate::kernels::attention_few::{Heads, Params, partials_len};
use crate::kernels::matmul_coop::CooperativeMatrix;
use crate::kernels::{BatchParams, Kernel, Variant, attention_merge};
use crate::kv_cache::KvType;

/// Bytes of workgroup memory that many adapters have, and of the least: other tiles.
const ROOMS: [usize; 2] = [49152, 16384];

/// The tiles of a shape, matrices loaded in every way that the adapter has; says so where there are none.
fn tiles(context: &Context, shape: &Shape) -> Vec<Tile> {
    let Some(matrix) = context.cooperative_matrix else {
        println!("skipped: {} has no cooperative matrices", context.info.name);
        return Vec::new();
    };
    let most = context.limits.max_compute_workgroup_storage_size as usize;
    let ways = [true, false].map(|from_vectors| CooperativeMatrix {
        from_vectors,
        ..matrix
    });
    let mut tiles = Vec::new();
    for way in ways {
        if !matrix.from_vectors && way.from_vectors {
            continue;
        }
        for room in ROOMS {
            let tile = Tile::new(way, shape, room.min(most));
            tiles.extend(tile.filter(|tile| !tiles.contains(tile)));
        }
    }
    // Software takes seconds to compile each tile.
    tiles.truncate(if shape.head_dim > 64 { 1 } else { 4 });
    tiles
}

struct Outputs {
    dst: Vec<f32>,
    /// Nothing was written behind the partials.
    is_clean: bool,
}

fn run(
    context: &Context,
    kernel: &Kernel,
    tile: Tile,
    case: &Case,
    inputs: &Inputs,
    n_splits: usize,
) -> Outputs {
    let Case { shape, n_rows, .. } = case;
    let width = shape.n_head * shape.head_dim;
    let batch = BatchParams {
        n_rows: *n_rows as u32,
        position: shape.position as u32,
        n_outputs: 0,
        random: 0,
    };
    let params = Params::new(shape, n_splits, false);
    let n_partials = partials_len(&params, Heads::merge(shape), *n_rows);
    let spare = n_partials / n_rows / shape.n_head; // of a head that there is not
    let variant = Variant {
        deep_tile: Some(tile),
        ..Variant::PLAIN
    };
    let buffers = run_kernel(
        context,
        kernel,
        &variant,
        batch,
        bytemuck::bytes_of(&params),
        attention_deep::grid(tile, &params, *n_rows),
        &[
            &padded(&inputs.q, width),
            &inputs.caches[0],
            &inputs.caches[1],
            &unwritten_words(n_partials + spare),
        ],
    );
    let (partials, behind) = buffers[3].split_at(n_partials * 4);
    let is_clean = behind == unwritten_words(spare);
    let variant = Variant {
        heads: Some(Heads::merge(shape)),
        ..Variant::PLAIN
    };
    let buffers = run_kernel(
        context,
        &attention_merge::KERNEL,
        &variant,
        batch,
        bytemuck::bytes_of(&params),
        attention_merge::grid(&params, *n_rows),
        &[partials, &unwritten(*n_rows, width), &unwritten_words(4)],
    );
    Outputs {
        dst: unpadded(&buffers[1], width),
        is_clean,
    }
}

/// Of the header, as a share of the largest value.
const BOUND: f64 = 4e-6;

/// The largest error as a share of the largest value, or what is wrong.
fn judge(
    context: &Context,
    kernel: &Kernel,
    tile: Tile,
    case: &Case,
    n_splits: usize,
) -> Result<f64, String> {
    let inputs = case.inputs(KvType::F16);
    let got = run(context, kernel, tile, case, &inputs, n_splits);
    if !got.is_clean {
        return Err("a head behind the last was written".to_owned());
    }
    let largest = f64::from(case.values.scale());
    match first_difference(&got.dst, &inputs.want, |_| BOUND * largest) {
        Some(difference) => Err(difference.to_string()),
        None => {
            let pairs = got.dst.iter().zip(&inputs.want);
            let errors = pairs.map(|(got, want)| f64::from((got - want).abs()));
            let most = errors.fold(0.0, f64::max);
            Ok(if most > 0.0 { most / largest } else { 0.0 })
        }
    }
}

fn check(cases: &[Case], n_splits: &[usize]) {
    let Some(context) = gpu() else { return };
    let mut worst = 0.0_f64;
    for case in cases {
        for tile in tiles(context, &case.shape) {
            for &n_splits in n_splits {
                match judge(context, &attention_deep::KERNEL, tile, case, n_splits) {
                    Ok(error) => worst = worst.max(error),
                    Err(fault) => panic!("{case:?}, {tile:?}, {n_splits} splits: {fault}"),
                }
            }
        }
    }
    println!("largest error {worst:.1e} of the largest value");
}

fn case(seed: u64, shape: Shape, n_rows: usize) -> Case {
    Case {
        seed,
        shape,
        n_rows,
        scores: 1.0,
        values: Values::Random,
    }
}

#[test]
fn attention_deep_matches_its_twin_for_any_heads() {
    let heads = [
        (2, 1, 64),
        (9, 3, 64),
        (32, 8, 128),
        (14, 2, 64),
        (8, 1, 80),
        (17, 1, 16),
        (4, 2, 24),
        (8, 4, 256),
    ];
    for (seed, (n_head, n_head_kv, head_dim)) in (61..).zip(heads) {
        let shape = |position| shape(n_head, n_head_kv, head_dim, position);
        check(
            &[case(seed, shape(130), 1), case(seed, shape(199), 4)],
            &[3],
        );
    }
}

#[test]
fn attention_deep_matches_its_twin_at_the_ends_of_tiles_and_splits() {
    for position in [0, 1, 15, 31, 32, 63, 64, 127, 128, 1000, 1567] {
        let cases = [1, 2, 3, 4].map(|n_rows| case(71, shape(6, 2, 16, position), n_rows));
        check(&cases, &[2, 5, 33]);
    }
}

#[test]
fn attention_deep_matches_its_twin_for_any_number_of_splits() {
    let case = case(72, shape(4, 1, 32, 2811), 2);
    check(&[case], &[1, 2, 3, 16, 33, 64, 200]);
}

#[test]
fn attention_deep_sees_the_window_alone() {
    let cases = [1, 2, 31, 32, 33, 64, 100, 512, usize::MAX].map(|window| {
        [(1, 0), (4, 70), (2, 300)].map(|(n_rows, position)| {
            let shape = Shape {
                window: Some(window),
                ..shape(4, 2, 32, position)
            };
            case(73, shape, n_rows)
        })
    });
    check(&cases.concat(), &[2, 5]);
}

#[test]
fn attention_deep_caps_scores() {
    for soft_cap in [0.5, 5.0] {
        let shape = Shape {
            soft_cap: Some(soft_cap),
            ..shape(4, 2, 32, 200)
        };
        let case = Case {
            scores: 3.0,
            ..case(74, shape, 3)
        };
        check(&[case], &[4]);
    }
}

#[test]
fn attention_deep_matches_its_twin_for_zero_values_and_equal_scores() {
    let shape = shape(4, 2, 64, 300);
    let equal = Case {
        scores: 0.0,
        ..case(75, shape, 3)
    };
    let zero = Case {
        values: Values::Zero,
        ..case(76, shape, 3)
    };
    check(&[equal, zero], &[4]);
}

/// Scores that rise and fall by more than a weight of 16 bits holds, so that sums are rescaled.
fn steep(head_dim: usize, height: f32, query: f32) -> (Case, Inputs) {
    let case = case(
        77,
        Shape {
            scale: 1.0,
            ..shape(2, 1, head_dim, 700)
        },
        2,
    );
    let mut inputs = case.inputs(KvType::F16);
    let keys: Vec<f32> = (0..inputs.decoded[0].len())
        .map(|i| height * (550.0 - ((i / head_dim) as f32 - 550.0).abs()))
        .collect();
    inputs.caches[0] = encode_cache(KvType::F16, &keys);
    inputs.decoded[0] = decode_cache(KvType::F16, &inputs.caches[0]);
    inputs.q.fill(query);
    let [keys, values] = &inputs.decoded;
    crate::kernels::attention::twin(&case.shape, None, &inputs.q, keys, values, &mut inputs.want);
    (case, inputs)
}

#[test]
fn attention_deep_of_huge_scores_takes_the_highest() {
    let Some(context) = gpu() else { return };
    let heights = [0.25, 80.0].into_iter();
    let narrow = heights.flat_map(|height| [1.0, 1e6, 1e15].map(|query| (16, height, query)));
    // Whose sums are rescaled in several parts.
    let wide = [(256, 0.25, 1.0)];
    for (head_dim, height, query) in narrow.chain(wide) {
        let (case, inputs) = steep(head_dim, height, query);
        for tile in tiles(context, &case.shape) {
            for n_splits in [1, 2, 6] {
                let kernel = &attention_deep::KERNEL;
                let got = run(context, kernel, tile, &case, &inputs, n_splits);
                // Neighbouring scores differ by 4 or more: the weights of all but the highest are small.
                let wrong = first_difference(&got.dst, &inputs.want, |_| 4.0 * BOUND);
                let what = (head_dim, height, query, n_splits);
                assert!(wrong.is_none(), "{tile:?}, {what:?}: {wrong:?}");
            }
        }
    }
}

#[test]
fn attention_deep_has_workgroups_for_a_large_gpu() {
    let matrix = CooperativeMatrix {
        size: 16,
        subgroup_size: 32,
        from_vectors: true,
    };
    let grid_of = |n_head, n_head_kv, n_rows| {
        let shape = shape(n_head, n_head_kv, 128, 0);
        let tile = Tile::new(matrix, &shape, ROOMS[0]).unwrap();
        let n_splits = attention_deep::splits(tile, &shape);
        attention_deep::grid(tile, &Params::new(&shape, n_splits, false), n_rows)
    };
    assert_eq!(grid_of(32, 8, 1), [8, 33, 1]);
    assert_eq!(grid_of(32, 8, 2), [8, 33, 1]);
    assert_eq!(grid_of(32, 8, 4), [8, 33, 2]);
    assert_eq!(grid_of(32, 2, 1), [2, 64, 2]);
    assert_eq!(grid_of(9, 3, 3), [3, 64, 2]);
    assert_eq!(grid_of(256, 128, 1), [128, 3, 1]);
}

#[test]
fn attention_deep_with_a_mistake_is_noticed() {
    let Some(context) = gpu() else { return };
    let mistakes = [
        ("< vec4(n_visible)", "<= vec4(n_visible)"),
        (
            "let row_end = batch.position + row / group_size + 1u",
            "let row_end = place.end",
        ),
        (
            "let start = first_end - min(p.window, first_end) +",
            "let start = 0u +",
        ),
        ("place.end - 1u)", "place.end)"),
        (
            "let stride = p.n_splits * TILE_KEYS",
            "let stride = TILE_KEYS",
        ),
        ("total *= decay;", ""),
        ("rescale_all(place);", ""),
        ("row < place.n_rows {", "true {"),
        (
            "row % place.group_size;\n    return row / place.group_size * (p.stride",
            "0u;\n    return row / place.group_size * (p.stride",
        ),
        (
            "let lower = mat2x4(first, second) - upper",
            "let lower = mat2x4<f32>()",
        ),
        ("let lower = four - upper;", "let lower = vec4<f32>();"),
        ("partials[quad] = stage4(at) +", "partials[quad] ="),
        ("let weight = row_sum(total)", "let weight = total"),
        ("= vec4(base, weight", "= vec4(0.0, weight"),
    ];
    let (steep_case, steep_inputs) = steep(16, 0.25, 1.0);
    let in_window = Case {
        shape: Shape {
            window: Some(90),
            ..shape(6, 2, 16, 270)
        },
        ..case(78, shape(6, 2, 16, 270), 3)
    };
    let plain = case(79, shape(6, 2, 16, 500), 4);
    let Some(&tile) = tiles(context, &plain.shape).first() else {
        return;
    };
    let noticed = |kernel: &Kernel| {
        let of_steep = || {
            let got = run(context, kernel, tile, &steep_case, &steep_inputs, 2);
            first_difference(&got.dst, &steep_inputs.want, |_| 4.0 * BOUND).is_some()
        };
        let cases = [in_window, plain];
        let is_wrong = |case: &Case| judge(context, kernel, tile, case, 3).is_err();
        cases.iter().any(is_wrong) || of_steep()
    };
    assert!(!noticed(&attention_deep::KERNEL));
    for (right, wrong) in mistakes {
        let text = attention_deep::KERNEL.wgsl;
        assert_eq!(text.matches(right).count(), 1, "`{right}`");
        // Pipelines are found again by the name.
        let kernel = Kernel {
            name: String::leak(format!("attention_deep with `{wrong}` for `{right}`")),
            wgsl: String::leak(text.replace(right, wrong)),
            ..attention_deep::KERNEL
        };
        assert!(noticed(&kernel), "`{right}` became `{wrong}`");
    }
}

#[test]
fn attention_deep_of_random_depths_matches_its_twin() {
    let mut random = Random::new(80);
    let cases: Vec<Case> = (0..6)
        .map(|seed| {
            let below = |random: &mut Random, n: u64| (random.bits() % n) as usize;
            let n_head_kv = 1 + below(&mut random, 3);
            let n_head = n_head_kv * (2 + below(&mut random, 7));
            let position = below(&mut random, 3000);
            let n_rows = 1 + below(&mut random, 4);
            case(81 + seed, shape(n_head, n_head_kv, 32, position), n_rows)
        })
        .collect();
    check(&cases, &[7, 33]);
}
