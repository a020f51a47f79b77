//! Attention of few rows, whole and in splits, over caches of both types.

use super::attention::{Case, Inputs, encode_cache, shape, sinks};
use super::elementwise::decode_cache;
use super::{
    Random, Values, altered, first_difference, gpu, padded, run_kernel, unpadded, unwritten,
    unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::kernels::attention::Shape;
use crate::kernels::attention_few::{self, Heads, Params, fits, partials_len, writes_int8};
use crate::kernels::quantize::{UNIT, quantize_unit};
use crate::kernels::{BatchParams, Kernel, Variant, attention_merge, row_stride};
use crate::kv_cache::KvType;

const KV_TYPES: [KvType; 2] = [KvType::F32, KvType::F16];
const KERNELS: [&Kernel; 2] = [&attention_few::KERNEL, &attention_merge::KERNEL];

/// What [`run`] found in the outputs.
struct Outputs {
    dst: Vec<f32>,
    int8: Vec<u8>,
    /// Nothing was written behind the partials.
    is_clean: bool,
}

/// Without splits one dispatch, with any number of them two.
fn run(
    context: &Context,
    [few, merge]: [&Kernel; 2],
    shape: &Shape,
    n_rows: usize,
    kv: KvType,
    inputs: &Inputs,
    n_splits: Option<usize>,
) -> Outputs {
    let width = shape.n_head * shape.head_dim;
    let variant = |heads| Variant {
        kv,
        heads: Some(heads),
        ..Variant::PLAIN
    };
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: shape.position as u32,
        n_outputs: 0,
        random: 0,
    };
    let params = Params::new(shape, n_splits.unwrap_or(1), writes_int8(shape));
    let heads = match n_splits {
        None => Heads::whole(shape),
        Some(_) => Heads::shared(shape),
    };
    let n_partials = partials_len(&params, heads, n_rows);
    let spare = n_partials / n_rows / shape.n_head; // of a head that there is not
    let of_sinks = padded(&sinks(shape.n_head), shape.n_head);
    let mut is_clean = true;
    let mut buffers = run_kernel(
        context,
        few,
        &variant(heads),
        batch,
        bytemuck::bytes_of(&params),
        attention_few::grid(&params, heads, n_rows),
        &[
            &padded(&inputs.q, width),
            &inputs.caches[0],
            &inputs.caches[1],
            &unwritten(n_rows, width),
            &unwritten_words(n_rows * int8_row_words(width)),
            &unwritten_words(n_partials + spare),
            &of_sinks,
        ],
    );
    buffers.truncate(6);
    if params.n_splits > 1 {
        let [dst, int8, partials] = &buffers[3..] else {
            panic!("{} buffers", buffers.len())
        };
        let (partials, behind) = partials.split_at(n_partials * 4);
        is_clean = behind == unwritten_words(spare);
        buffers = run_kernel(
            context,
            merge,
            &variant(Heads::merge(shape)),
            batch,
            bytemuck::bytes_of(&params),
            attention_merge::grid(&params, n_rows),
            &[partials, dst, int8, &of_sinks],
        );
    }
    let n_buffers = buffers.len();
    Outputs {
        dst: unpadded(&buffers[n_buffers - 3], width),
        int8: buffers.swap_remove(n_buffers - 2),
        is_clean,
    }
}

fn int8_row_words(width: usize) -> usize {
    let stride = row_stride(width);
    (stride / 4 + stride / UNIT * 2).next_multiple_of(4)
}

/// What is wrong with rows of int8, which must be those of `dst`.
fn judge_int8(dst: &[f32], width: usize, int8: &[u8]) -> Result<(), String> {
    let rows = dst.chunks_exact(width);
    for (row, (dst, int8)) in rows
        .zip(int8.chunks_exact(int8_row_words(width) * 4))
        .enumerate()
    {
        let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&int8[width..width / UNIT * 40]);
        for (unit, values) in dst.chunks_exact(UNIT).enumerate() {
            let want = quantize_unit(values);
            let got: &[i8] = bytemuck::cast_slice(&int8[unit * UNIT..][..UNIT]);
            let [scale, scaled_sum] = scales[unit * 2..][..2] else {
                unreachable!()
            };
            let sum: i32 = want.q.into_iter().map(i32::from).sum();
            let within =
                |got: f32, want: f32| (got - want).abs() <= 3.0 * f32::EPSILON * want.abs();
            if *got != want.q
                || !within(scale, want.scale)
                || !within(scaled_sum, scale * sum as f32)
            {
                return Err(format!(
                    "row {row}, unit {unit}: {got:?}, {scale:e}, {scaled_sum:e}, expected {want:?}"
                ));
            }
        }
    }
    Ok(())
}

fn judge(
    context: &Context,
    kernels: [&Kernel; 2],
    case: &Case,
    kv: KvType,
    n_splits: Option<usize>,
) -> Result<(), String> {
    let Case { shape, n_rows, .. } = case;
    let inputs = case.inputs(kv);
    let Outputs {
        dst,
        int8,
        is_clean,
    } = run(context, kernels, shape, *n_rows, kv, &inputs, n_splits);
    if !is_clean {
        return Err("a head behind the last was written".to_owned());
    }
    if let Some(difference) = first_difference(&dst, &inputs.want, |_| case.bound()) {
        return Err(difference.to_string());
    }
    if writes_int8(shape) {
        return judge_int8(&dst, shape.n_head * shape.head_dim, &int8);
    }
    let unwritten = unwritten_words(int8.len() / 4);
    (int8 == unwritten)
        .then_some(())
        .ok_or_else(|| "int8 was written".to_owned())
}

fn check(case: &Case, n_splits: &[Option<usize>]) {
    let Some(context) = gpu() else { return };
    assert!(fits(&case.shape));
    for kv in KV_TYPES {
        for &n_splits in n_splits {
            if let Err(error) = judge(context, KERNELS, case, kv, n_splits) {
                panic!("{case:?}, {kv:?}, splits {n_splits:?}: {error}");
            }
        }
    }
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
fn attention_few_matches_its_twin_for_the_heads_of_models() {
    let heads = [
        (9, 3, 64),
        (32, 8, 128),
        (32, 4, 64),
        (32, 8, 64),
        (14, 2, 64),
        (4, 1, 256),
        (16, 16, 64),
        (32, 32, 96),
    ];
    for (seed, (n_head, n_head_kv, head_dim)) in (1..).zip(heads) {
        for (n_rows, position) in [(1, 130), (4, 31)] {
            let shape = shape(n_head, n_head_kv, head_dim, position);
            check(&case(seed, shape, n_rows), &[None, Some(3)]);
        }
    }
}

#[test]
fn attention_few_matches_its_twin_for_any_heads() {
    for (seed, head_dim) in (21..).zip([8, 24, 40, 80, 112, 256, 264, 512]) {
        for (n_head, n_head_kv) in [(4, 2), (3, 1), (7, 1), (8, 1)] {
            let shape = shape(n_head, n_head_kv, head_dim, 44);
            check(&case(seed, shape, 2), &[None, Some(2)]);
        }
    }
}

#[test]
fn attention_few_matches_its_twin_at_any_position() {
    for position in [0, 1, 31, 32, 33, 255, 256, 257, 1000, 4100] {
        for n_rows in 1..=4 {
            let shape = shape(3, 1, 64, position);
            check(&case(41, shape, n_rows), &[None, Some(2), Some(100)]);
        }
    }
}

#[test]
fn attention_few_matches_its_twin_for_any_number_of_splits() {
    for head_dim in [64, 128] {
        for n_splits in [2, 3, 4, 7, 8, 16, 17, 33, 64, 65, 200, 1000] {
            let shape = shape(4, 1, head_dim, 2811);
            check(&case(42, shape, 2), &[Some(n_splits)]);
        }
    }
}

#[test]
fn attention_few_sees_the_window_alone() {
    for window in [1, 2, 63, 64, 65, 100, 512, usize::MAX] {
        for (n_rows, position) in [(1, 0), (4, 70), (2, 300)] {
            let shape = Shape {
                window: Some(window),
                ..shape(4, 2, 32, position)
            };
            check(&case(43, shape, n_rows), &[None, Some(5)]);
        }
    }
}

#[test]
fn attention_few_caps_scores() {
    for soft_cap in [0.5, 5.0] {
        let shape = Shape {
            soft_cap: Some(soft_cap),
            ..shape(4, 2, 32, 200)
        };
        let case = Case {
            scores: 3.0,
            ..case(46, shape, 3)
        };
        check(&case, &[None, Some(4)]);
    }
}

/// Scores that differ by much, of heads whose sinks do too.
fn with_sinks(seed: u64, position: usize) -> Case {
    let shape = Shape {
        soft_cap: seed.is_multiple_of(2).then_some(20.0),
        window: seed.is_multiple_of(4).then_some(70),
        has_sinks: true,
        ..shape(10, 5, 64, position)
    };
    Case {
        scores: 3.0,
        ..case(seed, shape, 3)
    }
}

#[test]
fn attention_few_matches_its_twin_with_sinks() {
    for (seed, position) in (91..).zip([0, 1, 63, 130, 900]) {
        check(&with_sinks(seed, position), &[None, Some(2), Some(7)]);
    }
}

#[test]
fn mistakes_with_sinks_in_attention_few_are_seen() {
    let Some(context) = gpu() else { return };
    let case = with_sinks(95, 130);
    for (from, to) in [
        ("total = total * shrink +", "total = total +"),
        ("+ exp(sinks[head] - most)", ""),
        ("merged.values * shrink / total", "merged.values / total"),
        ("exp(sinks[head] - most)", "exp(sinks[0] - most)"),
        (
            "if p.has_sinks != 0u {",
            "if p.has_sinks != 0u && p.n_splits > 1u {",
        ),
        (
            "if p.has_sinks != 0u {",
            "if p.has_sinks != 0u && p.n_splits == 1u {",
        ),
    ] {
        let broken = |kernel: &Kernel, heads| {
            let variant = Variant {
                kv: KvType::F16,
                heads: Some(heads),
                ..Variant::PLAIN
            };
            altered(kernel, &variant, from, to)
        };
        let few = broken(KERNELS[0], Heads::whole(&case.shape));
        let merge = broken(KERNELS[1], Heads::merge(&case.shape));
        let whole = judge(context, [&few, KERNELS[1]], &case, KvType::F16, None);
        let split = judge(context, [KERNELS[0], &merge], &case, KvType::F16, Some(3));
        assert!(whole.is_err() || split.is_err(), "`{from}` as `{to}`");
    }
}

#[test]
fn attention_few_matches_its_twin_for_zero_and_tiny_values_and_equal_scores() {
    let shape = shape(4, 2, 64, 300);
    for values in [Values::Zero, Values::Tiny] {
        let case = Case {
            values,
            ..case(44, shape, 3)
        };
        check(&case, &[None, Some(4)]);
    }
    let case = Case {
        scores: 0.0,
        ..case(45, shape, 3)
    };
    check(&case, &[None, Some(4)]);
}

#[test]
fn attention_few_of_huge_scores_takes_the_highest() {
    let Some(context) = gpu() else { return };
    for kv in KV_TYPES {
        let (head_dim, position) = (64, 700);
        let shape = Shape {
            scale: 1.0,
            ..shape(1, 1, head_dim, position)
        };
        // Scores rise by 64 * 1e4 * 80 a key up to the 550th, then fall.
        let height = |key: usize| 80.0 * (550.0 - (key as f32 - 550.0).abs());
        let n_elements = (position + 1) * head_dim;
        let keys: Vec<f32> = (0..n_elements).map(|i| height(i / head_dim)).collect();
        let mut random = Random::new(46);
        let values: Vec<f32> = (0..n_elements).map(|_| random.signed() * 6e4).collect();
        let values = encode_cache(kv, &values);
        let want = decode_cache(kv, &values)[550 * head_dim..551 * head_dim].to_vec();
        let keys = encode_cache(kv, &keys);
        for n_splits in [None, Some(2), Some(6)] {
            for size in [1e4, 1e15] {
                let inputs = Inputs {
                    q: vec![size; head_dim],
                    caches: [keys.clone(), values.clone()],
                    decoded: Default::default(),
                    want: want.clone(),
                };
                let got = run(context, KERNELS, &shape, 1, kv, &inputs, n_splits);
                assert_eq!(got.dst, want, "{size}, {kv:?}, splits {n_splits:?}");
            }
        }
    }
}

#[test]
fn mistakes_in_attention_few_are_found() {
    let Some(context) = gpu() else { return };
    let case = case(47, shape(6, 2, 128, 2811), 2);
    for (kernel, from, to) in [
        (
            0,
            "has_weight = tile + i * SLICES + at.slice < end",
            "has_weight = true",
        ),
        (
            0,
            "let decay = exp(sums[h].highest - highest)",
            "let decay = 1.0",
        ),
        (0, "query[h] *= p.scale;", ""),
        (0, "end - min(p.window, end) +", "0u +"),
        (0, "let stride = p.n_splits * TILE", "let stride = TILE"),
        (0, "i < n_heads * QUADS", "i < HEADS * QUADS"),
        (
            0,
            "let score = scores[score_index(h, i",
            "let score = scores[score_index(0u, i",
        ),
        (
            0,
            "partials[partial] = vec4(merged.highest,",
            "partials[partial] = vec4(0.0,",
        ),
        (
            1,
            "let decay = exp(sums.highest - highest)",
            "let decay = 1.0",
        ),
        (1, "first + i * SLICES < p.n_splits", "true"),
        (1, "factor * weights[i].y", "weights[i].y"),
    ] {
        let original = KERNELS[kernel];
        assert_eq!(original.wgsl.matches(from).count(), 1, "`{from}`");
        let broken = Kernel {
            name: String::leak(format!("{} with `{to}` for `{from}`", original.name)),
            wgsl: String::leak(original.wgsl.replace(from, to)),
            ..*original
        };
        let mut kernels = KERNELS;
        kernels[kernel] = &broken;
        // Either way, and few splits or many, of heads that fill their workgroups or do not.
        let window = Case {
            shape: Shape {
                window: Some(500),
                ..case.shape
            },
            ..case
        };
        let seven = Case {
            shape: shape(7, 1, 128, 300),
            ..case
        };
        let found = [case, window, seven].iter().any(|case| {
            [None, Some(2), Some(100)]
                .into_iter()
                .any(|n_splits| judge(context, kernels, case, KvType::F16, n_splits).is_err())
        });
        assert!(found, "`{}` was not noticed", broken.name);
    }
}
