//! Attention over caches of both types.

use super::elementwise::decode_cache;
use super::{
    Random, Values, altered, assert_close, first_difference, gpu, padded, run_kernel, unpadded,
    unwritten, variants,
};
use crate::kernels::attention::{self, Shape};
use crate::kernels::{BatchParams, Kernel, Variant};
use crate::kv_cache::{KvType, chunk_start, first_visible};
use half::f16;

/// Of the largest value in the cache, where scores are below 30 or so.
const BOUND: f64 = 2e-6;

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) shape: Shape,
    pub(super) n_rows: usize,
    /// Of queries and keys.
    pub(super) scores: f32,
    pub(super) values: Values,
}

/// What a case comes to in a cache of a type.
pub(super) struct Inputs {
    pub(super) q: Vec<f32>,
    /// Keys and values.
    pub(super) caches: [Vec<u8>; 2],
    /// The same as the kernels see them.
    pub(super) decoded: [Vec<f32>; 2],
    pub(super) want: Vec<f32>,
}

impl Case {
    /// Keys behind the last visible one, and before the first one, are not numbers.
    pub(super) fn inputs(&self, kv: KvType) -> Inputs {
        let Case {
            seed,
            shape,
            n_rows,
            scores,
            values,
        } = self;
        let mut random = Random::new(*seed);
        let widths = [shape.head_dim, shape.value_dim].map(|dim| shape.n_head_kv * dim);
        let end = shape.position + n_rows;
        let first = first_visible(shape.position, shape.window)
            .max(chunk_start(shape.position, shape.chunk));
        let q: Vec<f32> = (0..n_rows * shape.n_head * shape.query_dim())
            .map(|_| random.signed() * scores)
            .collect();
        let keys: Vec<f32> = (0..(end + 3) * widths[0])
            .map(|_| random.signed() * scores)
            .collect();
        let values = values.fill(&mut random, (end + 3) * widths[1]);
        let caches = [(keys, widths[0]), (values, widths[1])].map(|(mut cache, width)| {
            cache[..first * width].fill(f32::NAN);
            cache[end * width..].fill(f32::NAN);
            encode_cache(kv, &cache)
        });
        let decoded = [0, 1].map(|i| decode_cache(kv, &caches[i]));
        let mut want = vec![0.0; n_rows * shape.n_head * shape.value_dim];
        let sinks = shape.has_sinks.then(|| sinks(shape.n_head));
        attention::twin(
            shape,
            sinks.as_deref(),
            &q,
            &decoded[0],
            &decoded[1],
            &mut want,
        );
        Inputs {
            q,
            caches,
            decoded,
            want,
        }
    }

    /// How far a result in 32-bit floats may be from the twin's.
    pub(super) fn bound(&self) -> f64 {
        BOUND * f64::from(self.values.scale())
    }
}

/// Scores without a value: below, among and above those of keys.
pub(super) fn sinks(n_head: usize) -> Vec<f32> {
    (0..n_head)
        .map(|head| [-1.0, 10.0, 8.0, -40.0, 40.0][head % 5])
        .collect()
}

pub(super) fn encode_cache(ty: KvType, elements: &[f32]) -> Vec<u8> {
    match ty {
        KvType::F32 => bytemuck::cast_slice(elements).to_vec(),
        KvType::F16 => {
            let halves: Vec<f16> = elements.iter().map(|&x| f16::from_f32(x)).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }
}

pub(super) fn check(case: &Case) {
    let Some(context) = gpu() else { return };
    for variant in variants(&attention::KERNEL, context.subgroups()) {
        let inputs = case.inputs(variant.kv);
        let [keys, values] = &inputs.caches;
        let got = run(case.n_rows, &case.shape, &variant, &inputs.q, keys, values);
        let what = (case, variant.kv, variant.subgroups);
        let bound = |_| case.bound();
        assert_close("attention", case.seed, &what, &got, &inputs.want, bound);
    }
}

fn run(
    n_rows: usize,
    shape: &Shape,
    variant: &Variant,
    q: &[f32],
    keys: &[u8],
    values: &[u8],
) -> Vec<f32> {
    run_with(&attention::KERNEL, n_rows, shape, variant, q, keys, values)
}

pub(super) fn run_with(
    kernel: &Kernel,
    n_rows: usize,
    shape: &Shape,
    variant: &Variant,
    q: &[f32],
    keys: &[u8],
    values: &[u8],
) -> Vec<f32> {
    let Some(context) = gpu() else {
        return Vec::new();
    };
    let width = shape.n_head * shape.value_dim;
    let params = attention::Params::new(shape);
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: shape.position as u32,
        n_outputs: 0,
        random: 0,
    };
    let dst = run_kernel(
        context,
        kernel,
        variant,
        batch,
        bytemuck::bytes_of(&params),
        attention::grid(&params, n_rows),
        &[
            &padded(q, shape.n_head * shape.query_dim()),
            keys,
            values,
            &padded(&sinks(shape.n_head), shape.n_head),
            &unwritten(n_rows, width),
        ],
    );
    unpadded(dst.last().unwrap(), width)
}

pub(super) fn shape(n_head: usize, n_head_kv: usize, head_dim: usize, position: usize) -> Shape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Shape {
        n_head,
        n_head_kv,
        head_dim,
        value_dim: head_dim,
        values_end_keys: false,
        position,
        n_rows: 0,
        causal: true,
        scale,
        window: None,
        chunk: None,
        soft_cap: None,
        alibi: false,
        has_sinks: false,
    }
}

#[test]
fn attention_matches_its_twin_for_any_heads() {
    let heads = [
        (1, 1, 4),
        (2, 1, 8),
        (3, 3, 12),
        (9, 3, 64),
        (4, 2, 80),
        (6, 2, 96),
        (8, 1, 128),
        (4, 1, 256),
        (2, 2, 260),
        (2, 1, 512),
    ];
    for (seed, (n_head, n_head_kv, head_dim)) in (1..).zip(heads) {
        for (n_rows, position) in [(1, 0), (5, 0), (3, 126)] {
            let shape = shape(n_head, n_head_kv, head_dim, position);
            check(&Case {
                seed,
                shape,
                n_rows,
                scores: 1.0,
                values: Values::Random,
            });
        }
    }
}

#[test]
fn attention_matches_its_twin_at_the_ends_of_tiles() {
    for position in [62, 63, 64, 126, 127, 128, 1000] {
        let shape = shape(3, 1, 64, position);
        check(&Case {
            seed: 11,
            shape,
            n_rows: 2,
            scores: 2.0,
            values: Values::Random,
        });
    }
}

#[test]
fn attention_sees_the_window_alone() {
    for window in [1, 2, 63, 64, 65, 100, 512, usize::MAX] {
        for (n_rows, position) in [(1, 0), (5, 70), (2, 300)] {
            let shape = Shape {
                window: Some(window),
                ..shape(4, 2, 32, position)
            };
            check(&Case {
                seed: 12,
                shape,
                n_rows,
                scores: 1.0,
                values: Values::Random,
            });
        }
    }
}

#[test]
fn attention_caps_scores_and_lowers_them_by_distance() {
    for (seed, (soft_cap, alibi)) in
        (61..).zip([(Some(0.5), false), (None, true), (Some(5.0), true)])
    {
        for (n_head, position) in [(1, 0), (4, 70), (6, 129)] {
            let shape = Shape {
                soft_cap,
                alibi,
                ..shape(n_head, 1, 32, position)
            };
            check(&Case {
                seed,
                shape,
                n_rows: 3,
                scores: 3.0,
                values: Values::Random,
            });
        }
    }
}

#[test]
fn slopes_are_the_powers_between_one_and_a_two_hundred_and_fifty_sixth() {
    let slopes = |n_head| {
        (0..n_head)
            .map(|head| attention::alibi_slope(head, n_head))
            .collect::<Vec<_>>()
    };
    assert_eq!(slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
    assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
}

#[test]
fn attention_matches_its_twin_for_zero_tiny_and_huge_values() {
    for values in [Values::Zero, Values::Tiny] {
        let shape = shape(4, 2, 64, 100);
        check(&Case {
            seed: 13,
            shape,
            n_rows: 3,
            scores: 1.0,
            values,
        });
    }
    let zero_scores = Case {
        seed: 14,
        shape: shape(4, 2, 64, 100),
        n_rows: 3,
        scores: 0.0,
        values: Values::Random,
    };
    check(&zero_scores);
}

#[test]
fn attention_of_huge_scores_takes_the_highest() {
    let Some(context) = gpu() else { return };
    for variant in variants(&attention::KERNEL, context.subgroups()) {
        let (head_dim, position) = (64, 200);
        let shape = Shape {
            scale: 1.0,
            ..shape(1, 1, head_dim, position)
        };
        let n_keys = position + 1;
        // Scores rise by 64 * 1e4 * 300 a key up to the 150th, then fall.
        let height = |key: usize| 300.0 * (150.0 - (key as f32 - 150.0).abs());
        let keys: Vec<f32> = (0..n_keys * head_dim)
            .map(|i| height(i / head_dim))
            .collect();
        let mut random = Random::new(15);
        let values: Vec<f32> = (0..keys.len()).map(|_| random.signed() * 6e4).collect();
        let values = encode_cache(variant.kv, &values);
        let want = decode_cache(variant.kv, &values)[150 * head_dim..151 * head_dim].to_vec();
        let keys = encode_cache(variant.kv, &keys);
        for sign in [1e4, 1e15] {
            let got = run(1, &shape, &variant, &vec![sign; head_dim], &keys, &values);
            let what = (sign, variant.kv, variant.subgroups);
            assert_close("attention", 15, &what, &got, &want, |_| 0.0);
        }
    }
}

#[test]
fn attention_over_8192_keys_matches_its_twin() {
    let shape = shape(2, 1, 64, 8191);
    check(&Case {
        seed: 16,
        shape,
        n_rows: 1,
        scores: 1.0,
        values: Values::Random,
    });
}

#[test]
fn attention_sees_its_chunk_alone() {
    for chunk in [1, 7, 64, 100, 4096] {
        for (n_rows, position) in [(1, 0), (5, 61), (3, 198), (2, 300)] {
            let shape = Shape {
                chunk: Some(chunk),
                window: chunk.is_multiple_of(2).then_some(70),
                ..shape(4, 2, 32, position)
            };
            check(&Case {
                seed: 17,
                shape,
                n_rows,
                scores: 1.0,
                values: Values::Random,
            });
        }
    }
}

/// Keys of `head_dim` elements before their values, or beside them.
fn of_values(seed: u64, [head_dim, value_dim]: [usize; 2], position: usize) -> Case {
    Case {
        seed,
        shape: Shape {
            value_dim,
            values_end_keys: seed.is_multiple_of(2),
            has_sinks: seed.is_multiple_of(3),
            ..shape(5, 1 + 4 * (seed as usize % 2), head_dim, position)
        },
        n_rows: 3,
        scores: 1.0,
        values: Values::Random,
    }
}

#[test]
fn attention_matches_its_twin_where_keys_and_values_differ() {
    let dims = [[8, 20], [4, 4], [64, 512], [192, 128], [512, 512], [24, 12]];
    for (seed, dims) in (91..).zip(dims) {
        for position in [0, 62, 130] {
            check(&of_values(seed, dims, position));
            check(&of_values(seed + 1, dims, position));
        }
    }
}

#[test]
fn mistakes_with_values_and_chunks_are_seen() {
    let Some(_) = gpu() else { return };
    let chunked = Case {
        shape: Shape {
            chunk: Some(50),
            ..shape(4, 2, 32, 120)
        },
        ..of_values(93, [32, 32], 120)
    };
    let latent = of_values(94, [8, 20], 130);
    let apart = of_values(95, [24, 12], 130);
    for (case, from, to) in [
        (&latent, "if ends {", "if false {"),
        (&latent, "query[key_quads + i]", "query[i]"),
        (&latent, "select(0u, n_quads, ends)", "0u"),
        (
            &latent,
            "values[at * n_quads + i]",
            "values[at * key_quads + i]",
        ),
        (&apart, "if ends {", "if true {"),
        (
            &apart,
            "let n_quads = p.value_dim / 4u;",
            "let n_quads = p.value_dim / 8u;",
        ),
        (&apart, "row * (p.dst_stride / 4u) + head", "head"),
        (&chunked, "if p.chunk != 0u {", "if false {"),
        (&chunked, "(end - 1u) / p.chunk", "end / p.chunk + 1u"),
    ] {
        let variant = variants(&attention::KERNEL, false)[0];
        let inputs = case.inputs(variant.kv);
        let [keys, values] = &inputs.caches;
        let kernel = altered(&attention::KERNEL, &variant, from, to);
        let (n_rows, shape) = (case.n_rows, &case.shape);
        let got = run_with(&kernel, n_rows, shape, &variant, &inputs.q, keys, values);
        let difference = first_difference(&got, &inputs.want, |_| case.bound());
        assert!(difference.is_some(), "`{from}` as `{to}`");
    }
}

#[test]
fn twin_of_values_that_end_keys_is_the_definition() {
    let shape = Shape {
        head_dim: 1,
        value_dim: 2,
        values_end_keys: true,
        scale: 1.0,
        ..shape(1, 1, 1, 1)
    };
    let (keys, values) = ([5.0, 1.0], [1.0, 2.0, 3.0, 4.0]);
    // The keys are [5, 1, 2] and [1, 3, 4]: their scores are equal, then ln 3 apart.
    for (q, weight) in [([0.0; 3], 0.5), ([3f32.ln() / -4.0, 0.0, 0.0], 0.75)] {
        let mut dst = [f32::NAN; 2];
        attention::twin(&shape, None, &q, &keys, &values, &mut dst);
        let want = [
            1.0 - weight + 3.0 * weight,
            2.0 * (1.0 - weight) + 4.0 * weight,
        ];
        let mut weights = [f32::NAN; 2];
        attention::weights(&shape, None, 0, &q, [&keys, &values], &mut weights);
        let errors = dst.iter().zip(want).map(|(dst, want)| (dst - want).abs());
        assert!(
            errors.fold(0.0, f32::max) < 1e-6,
            "{dst:?}, expected {want:?}"
        );
        assert!(
            (weights[1] - weight).abs() < 1e-6,
            "{weights:?}, expected {weight}"
        );
    }
    let mut dst = [f32::NAN; 2];
    attention::twin(&shape, None, &[0.0, 9.0, -1.0], &keys, &values, &mut dst);
    // The scores are 9 * 1 - 2 and 9 * 3 - 4.
    assert!(
        (dst[0] - 3.0).abs() < 1e-5 && (dst[1] - 4.0).abs() < 1e-5,
        "{dst:?}"
    );
}

fn with_sinks(seed: u64, position: usize) -> Case {
    Case {
        seed,
        shape: Shape {
            soft_cap: seed.is_multiple_of(2).then_some(20.0),
            alibi: seed.is_multiple_of(3),
            window: seed.is_multiple_of(4).then_some(70),
            has_sinks: true,
            ..shape(10, 5, 64, position)
        },
        n_rows: 3,
        scores: 3.0,
        values: Values::Random,
    }
}

#[test]
fn attention_matches_its_twin_with_sinks() {
    for (seed, position) in (81..).zip([0, 1, 63, 130, 200]) {
        check(&with_sinks(seed, position));
    }
}

#[test]
fn mistakes_with_sinks_are_seen() {
    let Some(_) = gpu() else { return };
    let case = with_sinks(85, 130);
    for (from, to) in [
        ("total * shrink + exp(", "total + exp("),
        ("+ exp(sinks[head] - most)", ""),
        ("sum * shrink / total", "sum / total"),
        ("exp(sinks[head] - most)", "exp(sinks[0] - most)"),
    ] {
        let variant = variants(&attention::KERNEL, false)[0];
        let inputs = case.inputs(variant.kv);
        let [keys, values] = &inputs.caches;
        let kernel = altered(&attention::KERNEL, &variant, from, to);
        let got = run_with(
            &kernel,
            case.n_rows,
            &case.shape,
            &variant,
            &inputs.q,
            keys,
            values,
        );
        let difference = first_difference(&got, &inputs.want, |_| case.bound());
        assert!(difference.is_some(), "`{from}` as `{to}`");
    }
}

#[test]
fn twin_of_sinks_is_the_definition() {
    let shape = Shape {
        has_sinks: true,
        ..shape(1, 1, 4, 0)
    };
    let mut dst = [f32::NAN; 4];
    let (zero, values) = ([0.0; 4], [1.0, 2.0, 3.0, 4.0]);
    // A score of 0 beside one of ln 3: a quarter.
    attention::twin(&shape, Some(&[3f32.ln()]), &zero, &zero, &values, &mut dst);
    for (dst, value) in dst.iter().zip(values) {
        assert!(
            (dst - value / 4.0).abs() < 1e-6,
            "{dst}, expected a quarter of {value}"
        );
    }
    let share = |sinks: Option<&[f32]>| {
        let mut weights = [f32::NAN; 2];
        attention::weights(&shape, sinks, 0, &zero, [&zero, &[]], &mut weights);
        weights
    };
    let [of_key, of_none] = share(Some(&[3f32.ln()]));
    assert!((of_key - 0.25).abs() < 1e-6 && of_none == 0.0, "{of_key}");
    assert_eq!(share(None), [1.0, 0.0]);
}
