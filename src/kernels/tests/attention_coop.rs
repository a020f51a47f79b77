//! Attention by cooperative matrices, within the bound that rounding to 16 bits explains.

use super::attention::{Case, Inputs, encode_cache, shape, sinks};
use super::elementwise::decode_cache;
use super::{Values, first_difference, gpu, padded, run_kernel, unwritten, variants};
use crate::device::DeviceKind;
use crate::device::wgpu::context::Context;
use crate::kernels::attention::{self, Shape};
use crate::kernels::attention_coop::{self, Tile};
use crate::kernels::matmul_coop::CooperativeMatrix;
use crate::kernels::{BatchParams, Kernel, Variant, row_stride};
use crate::kv_cache::KvType;

const KV_TYPES: [KvType; 2] = [KvType::F32, KvType::F16];

/// The tiles for heads of a width, matrices loaded in every way that the adapter has; says so where
/// there are none.
fn tiles(context: &Context, kv: KvType, head_dim: usize) -> Vec<Tile> {
    let Some(matrix) = context.cooperative_matrix else {
        println!("skipped: {} has no cooperative matrices", context.info.name);
        return Vec::new();
    };
    let room = context.limits.max_compute_workgroup_storage_size as usize;
    let ways = [true, false].map(|from_vectors| CooperativeMatrix {
        from_vectors,
        ..matrix
    });
    // Software takes seconds to compile each tile.
    let is_wide = head_dim > 64;
    ways.into_iter()
        .filter(|way| matrix.from_vectors || !way.from_vectors)
        .take(if is_wide { 1 } else { 2 })
        .filter_map(|matrix| Tile::new(matrix, kv, head_dim, room))
        .collect()
}

/// `dst`, `[n_rows + 1, n_head * head_dim]`: the last row is nobody's.
fn run(context: &Context, kernel: &Kernel, tile: Tile, case: &Case, inputs: &Inputs) -> Vec<f32> {
    let Case { shape, n_rows, .. } = case;
    let width = shape.n_head * shape.head_dim;
    let variant = Variant {
        attention_tile: Some(tile),
        ..variants(&attention::KERNEL, false)[0]
    };
    let params = attention_coop::Params::new(shape);
    let batch = BatchParams {
        n_rows: *n_rows as u32,
        position: shape.position as u32,
        n_outputs: 0,
        random: 0,
    };
    let [keys, values] = &inputs.caches;
    let dst = run_kernel(
        context,
        kernel,
        &variant,
        batch,
        bytemuck::bytes_of(&params),
        attention_coop::grid(tile, &params, *n_rows),
        &[
            &padded(&inputs.q, width),
            keys,
            values,
            &unwritten(n_rows + 1, width),
            &padded(&sinks(shape.n_head), shape.n_head),
        ],
    );
    let dst: Vec<f32> = bytemuck::pod_collect_to_vec(&dst[3]);
    let rows = dst.chunks_exact(row_stride(width));
    rows.flat_map(|row| &row[..width]).copied().collect()
}

/// What each element may be wrong by, as the kernel's header has it.
fn bounds(case: &Case, inputs: &Inputs) -> Vec<f64> {
    let Shape {
        n_head,
        n_head_kv,
        head_dim,
        position,
        scale,
        window,
        ..
    } = case.shape;
    let [keys, values] = &inputs.decoded;
    let bound = |(index, q): (usize, &[f32])| {
        let (row, head) = (index / n_head, index % n_head);
        let end = match case.shape.causal {
            true => position + row + 1,
            false => position + case.n_rows,
        };
        let visible = end - window.unwrap_or(end).min(end)..end;
        let at = |key: usize| (key * n_head_kv + head / (n_head / n_head_kv)) * head_dim;
        let magnitudes = |key: usize| {
            let terms = q.iter().zip(&keys[at(key)..at(key) + head_dim]);
            terms.map(|(&q, &k)| f64::from(q * k).abs()).sum::<f64>()
        };
        let of_scores = visible.clone().map(magnitudes).fold(0.0, f64::max) * f64::from(scale);
        let of_values = visible.flat_map(|key| &values[at(key)..at(key) + head_dim]);
        let largest = of_values.fold(0.0_f32, |most, x| most.max(x.abs()));
        vec![BOUND * (1.0 + of_scores) * f64::from(largest); head_dim]
    };
    let queries = inputs.q.chunks_exact(head_dim);
    queries.enumerate().flat_map(bound).collect()
}

/// Of the header.
const BOUND: f64 = 1.0 / 512.0;
/// Where scores are exact, or small: values are up to 4.
const NEAR: f64 = 5e-3;

/// The largest share of its bound that an error takes, or what is wrong.
fn judge(case: &Case, inputs: &Inputs, got: &[f32]) -> Result<f64, String> {
    let (got, behind) = got.split_at(inputs.want.len());
    if behind.iter().any(|x| x.to_bits() != super::SENTINEL) {
        return Err("a row behind the last one was written".to_owned());
    }
    let bounds = bounds(case, inputs);
    if let Some(difference) = first_difference(got, &inputs.want, |i| bounds[i]) {
        return Err(difference.to_string());
    }
    let share = |((got, want), bound): ((&f32, &f32), f64)| {
        let error = f64::from((got - want).abs());
        if error > 0.0 { error / bound } else { 0.0 }
    };
    let errors = got.iter().zip(&inputs.want).zip(bounds);
    Ok(errors.map(share).fold(0.0, f64::max))
}

fn check(cases: &[Case]) {
    let Some(context) = gpu() else { return };
    let mut worst = 0.0_f64;
    for case in cases {
        for kv in KV_TYPES {
            if kv == KvType::F16 && case.values == Values::Huge {
                continue;
            }
            let inputs = case.inputs(kv);
            for tile in tiles(context, kv, case.shape.head_dim) {
                let got = run(context, &attention_coop::KERNEL, tile, case, &inputs);
                match judge(case, &inputs, &got) {
                    Ok(share) => worst = worst.max(share),
                    Err(fault) => {
                        let (seed, shape, n_rows) = (case.seed, case.shape, case.n_rows);
                        panic!("seed {seed}, {n_rows} rows, {shape:?}, {tile:?}: {fault}");
                    }
                }
            }
        }
    }
    println!("largest error {worst:.3} of the bound");
}

fn random(seed: u64, shape: Shape, n_rows: usize) -> Case {
    Case {
        seed,
        shape,
        n_rows,
        scores: 1.0,
        values: Values::Random,
    }
}

#[test]
fn attention_coop_matches_its_twin_for_any_heads() {
    let Some(context) = gpu() else { return };
    let widest = match context.info.kind {
        DeviceKind::SoftwareGpu => 128,
        _ => 256,
    };
    let heads = [(1, 1, 16), (9, 3, 64), (4, 2, 80), (8, 1, 128), (2, 1, 256)];
    let cases: Vec<Case> = (1..)
        .zip(heads)
        .filter(|(_, (_, _, head_dim))| *head_dim <= widest)
        .flat_map(|(seed, (n_head, n_head_kv, head_dim))| {
            [(5, 0), (17, 126)].map(|(n_rows, position)| {
                random(seed, shape(n_head, n_head_kv, head_dim, position), n_rows)
            })
        })
        .collect();
    check(&cases);
}

#[test]
fn attention_coop_matches_its_twin_at_the_ends_of_tiles() {
    let cases = [1, 31, 32, 33, 63, 64, 65, 127, 130].map(|n_rows| {
        [0, 1, 15, 32, 63].map(|position| random(21, shape(2, 1, 32, position), n_rows))
    });
    check(&cases.into_iter().flatten().collect::<Vec<_>>());
}

#[test]
fn attention_coop_sees_the_window_alone() {
    let cases = [1, 2, 31, 32, 33, 100, 512, usize::MAX].map(|window| {
        [(7, 0), (70, 70), (40, 300)].map(|(n_rows, position)| {
            let shape = Shape {
                window: Some(window),
                ..shape(4, 2, 32, position)
            };
            random(22, shape, n_rows)
        })
    });
    check(&cases.into_iter().flatten().collect::<Vec<_>>());
}

fn both_ways(seed: u64, n_rows: usize, position: usize) -> Case {
    let shape = Shape {
        causal: false,
        n_rows,
        ..shape(2, 1, 32, position)
    };
    random(seed, shape, n_rows)
}

#[test]
fn attention_coop_of_both_ways_matches_its_twin() {
    let cases = [5, 31, 32, 33, 64, 65, 130].map(|n_rows| both_ways(28, n_rows, 0));
    check(&cases);
    check(&[both_ways(29, 40, 61)]);
}

#[test]
fn attention_coop_of_both_ways_with_a_mistake_is_noticed() {
    let Some(context) = gpu() else { return };
    let case = both_ways(30, 140, 0);
    let inputs = case.inputs(KvType::F16);
    for tile in tiles(context, KvType::F16, 32).into_iter().take(1) {
        for (right, wrong) in [
            ("(p.of_heads & BOTH_WAYS) != 0u", "false"),
            ("select(row_end, place.end, sees_all)", "row_end"),
            ("batch.n_rows, sees_all)", "first_row + 1u, sees_all)"),
            (
                "select(batch.position + first_row + 1u, place.end, sees_all)",
                "place.end + TILE_KEYS",
            ),
        ] {
            let text = attention_coop::KERNEL.wgsl;
            assert_eq!(text.matches(right).count(), 1, "`{right}`");
            let name = format!("attention_coop of both ways with `{wrong}`");
            let kernel = Kernel {
                name: Box::leak(name.into_boxed_str()),
                wgsl: Box::leak(text.replace(right, wrong).into_boxed_str()),
                ..attention_coop::KERNEL
            };
            let got = run(context, &kernel, tile, &case, &inputs);
            assert!(
                judge(&case, &inputs, &got).is_err(),
                "`{right}` became `{wrong}`"
            );
        }
    }
}

#[test]
fn attention_coop_matches_its_twin_for_zero_tiny_and_huge_values() {
    let of_values = Values::ALL.map(|values| Case {
        values,
        ..random(23, shape(4, 2, 32, 100), 9)
    });
    let of_scores = [0.0, 1e-3, 8.0].map(|scores| Case {
        scores,
        ..random(24, shape(4, 2, 32, 100), 9)
    });
    check(&of_values);
    check(&of_scores);
}

#[test]
fn attention_coop_over_2048_keys_matches_its_twin() {
    check(&[random(25, shape(2, 1, 32, 2000), 48)]);
}

/// Scores that rise and fall by much more than a weight of 16 bits holds.
fn steep(kv: KvType, n_rows: usize, position: usize, height: f32, query: f32) -> (Case, Inputs) {
    let case = Case {
        seed: 26,
        shape: Shape {
            scale: 1.0,
            ..shape(1, 1, 16, position)
        },
        n_rows,
        scores: 1.0,
        values: Values::Random,
    };
    let head_dim = case.shape.head_dim;
    let mut inputs = case.inputs(kv);
    // Highest at the 50th key, before the first row.
    let keys: Vec<f32> = (0..inputs.decoded[0].len())
        .map(|i| height * (50.0 - ((i / head_dim) as f32 - 50.0).abs()))
        .collect();
    inputs.caches[0] = encode_cache(kv, &keys);
    inputs.decoded[0] = decode_cache(kv, &inputs.caches[0]);
    inputs.q.fill(query);
    let [keys, values] = &inputs.decoded;
    attention::twin(&case.shape, None, &inputs.q, keys, values, &mut inputs.want);
    (case, inputs)
}

#[test]
fn attention_coop_of_huge_scores_takes_the_highest() {
    let Some(context) = gpu() else { return };
    for kv in KV_TYPES {
        let heights: &[f32] = match kv {
            KvType::F16 => &[0.25, 300.0],
            KvType::F32 => &[0.25, 300.0, 1e6],
        };
        for &height in heights {
            for query in [1.0, 1e6, 1e15] {
                let (case, inputs) = steep(kv, 9, 100, height, query);
                for tile in tiles(context, kv, 16) {
                    let got = run(context, &attention_coop::KERNEL, tile, &case, &inputs);
                    let near = first_difference(&got[..inputs.want.len()], &inputs.want, |_| NEAR);
                    assert!(near.is_none(), "{tile:?}, {height}, {query}: {near:?}");
                }
            }
        }
    }
}

#[test]
fn attention_coop_matches_its_twin_with_sinks() {
    let with_sinks = |(seed, position): (u64, usize)| {
        let shape = Shape {
            window: seed.is_multiple_of(2).then_some(20),
            has_sinks: true,
            ..shape(10, 5, 64, position)
        };
        random(seed, shape, 41)
    };
    let cases: Vec<Case> = (91..).zip([0, 1, 63, 200]).map(with_sinks).collect();
    check(&cases);
}

#[test]
fn attention_coop_with_a_mistake_is_noticed() {
    let Some(context) = gpu() else { return };
    let mistakes = [
        ("< vec4(n_visible)", "<= vec4(n_visible)"),
        (
            "let row_end = min(batch.position + place.row + 1u, place.end)",
            "let row_end = place.end",
        ),
        (
            "let first = first_end - min(p.window, first_end)",
            "let first = 0u",
        ),
        ("place.end - 1u)", "place.end)"),
        ("(p.of_heads & SINKS) != 0u", "false"),
        ("sinks[head] * 1.44269504 - base", "sinks[head] - base"),
        (
            "sinks[head] * 1.44269504 - base",
            "sinks[0] * 1.44269504 - base",
        ),
        ("total *= decay;", ""),
        ("rescale_all(place);", ""),
        (
            "let first_row = (n_tiles - 1u -",
            "let first_row = (n_tiles -",
        ),
    ];
    let steep = steep(KvType::F16, 9, 100, 0.25, 1.0);
    let in_window = {
        let shape = Shape {
            window: Some(20),
            ..shape(2, 1, 16, 70)
        };
        let case = random(27, shape, 41);
        let inputs = case.inputs(KvType::F16);
        (case, inputs)
    };
    let with_sinks = {
        let shape = Shape {
            has_sinks: true,
            ..shape(5, 1, 16, 70)
        };
        let case = random(28, shape, 41);
        let inputs = case.inputs(KvType::F16);
        (case, inputs)
    };
    for tile in tiles(context, KvType::F16, 16).into_iter().take(1) {
        for (right, wrong) in mistakes {
            let text = attention_coop::KERNEL.wgsl;
            assert!(text.contains(right), "`{right}` is not in the text");
            // Pipelines are found again by the name.
            let name = format!("attention_coop with `{wrong}`");
            let kernel = Kernel {
                name: Box::leak(name.into_boxed_str()),
                wgsl: Box::leak(text.replacen(right, wrong, 1).into_boxed_str()),
                ..attention_coop::KERNEL
            };
            let is_noticed = [&steep, &in_window, &with_sinks].map(|(case, inputs)| {
                let got = run(context, &kernel, tile, case, inputs);
                first_difference(&got[..inputs.want.len()], &inputs.want, |_| NEAR).is_some()
            });
            assert!(is_noticed.contains(&true), "`{right}` became `{wrong}`");
        }
    }
}
