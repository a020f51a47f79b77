//! The kernels without a matrix and without attention.

use super::quantize::assert_int8;
use super::{
    Random, Values, assert_close, gpu, padded, run_kernel, unpadded, unwritten, unwritten_words,
    variants,
};
use crate::kernels::{
    BatchParams, Kernel, Variant, add, f16_rows, gated_activation, quantize, rms_norm, rope,
    row_stride, select_outputs, store_kv,
};
use crate::kv_cache::KvType;
use crate::plan::{Activation, RopePairing, RopeTable};
use half::f16;

/// Rows and widths: one, primes, tails, those of real models.
const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (3, 2),
    (2, 31),
    (7, 127),
    (2, 129),
    (5, 576),
    (3, 1536),
    (1, 16384),
];

fn batch(n_rows: usize, position: usize, n_outputs: usize) -> BatchParams {
    let [n_rows, position, n_outputs] = [n_rows, position, n_outputs].map(|count| count as u32);
    BatchParams {
        n_rows,
        position,
        n_outputs,
        random: 0,
    }
}

/// The only variant of a kernel that includes nothing.
fn only_variant(kernel: &Kernel) -> Variant {
    variants(kernel, true)[0]
}

#[test]
fn add_matches_its_twin() {
    let Some(context) = gpu() else { return };
    let variant = only_variant(&add::KERNEL);
    for (seed, (n_rows, width)) in (1..).zip(SHAPES) {
        for values in Values::ALL {
            let mut random = Random::new(seed);
            let a = values.fill(&mut random, n_rows * width);
            let b = values.fill(&mut random, n_rows * width);
            let mut want = vec![0.0; a.len()];
            add::twin(&a, &b, &mut want);

            let params = add::Params::new(width);
            let dst = run_kernel(
                context,
                &add::KERNEL,
                &variant,
                batch(n_rows, 0, 0),
                bytemuck::bytes_of(&params),
                add::grid(&params, n_rows),
                &[
                    &padded(&a, width),
                    &padded(&b, width),
                    &unwritten(n_rows, width),
                ],
            );
            let shape = (n_rows, width, values);
            assert_close(
                "add",
                seed,
                &shape,
                &unpadded(dst.last().unwrap(), width),
                &want,
                |_| 0.0,
            );
        }
    }
}

#[test]
fn select_outputs_matches_its_twin() {
    let Some(context) = gpu() else { return };
    let variant = only_variant(&select_outputs::KERNEL);
    for (seed, (n_rows, width)) in (1..).zip(SHAPES) {
        for n_outputs in [1, n_rows.div_ceil(2), n_rows] {
            let src = Values::Random.fill(&mut Random::new(seed), n_rows * width);
            let mut want = vec![0.0; n_outputs * width];
            select_outputs::twin(&src, &mut want);

            let params = select_outputs::Params::new(width);
            let dst = run_kernel(
                context,
                &select_outputs::KERNEL,
                &variant,
                batch(n_rows, 3, n_outputs),
                bytemuck::bytes_of(&params),
                select_outputs::grid(&params, n_outputs),
                &[&padded(&src, width), &unwritten(n_outputs, width)],
            );
            let shape = (n_rows, n_outputs, width);
            let got = unpadded(dst.last().unwrap(), width);
            assert_close("select_outputs", seed, &shape, &got, &want, |_| 0.0);
        }
    }
}

fn check_gated_activation(seed: u64, width: usize, gate: &[f32], up: &[f32]) {
    let Some(context) = gpu() else { return };
    let n_rows = gate.len() / width;
    let variants = variants(&gated_activation::KERNEL, context.subgroups());
    let activations = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::ClampedSwiglu,
        Activation::Identity,
        Activation::Sigmoid,
    ];
    for (variant, activation, has_f16) in variants.into_iter().flat_map(|variant| {
        let both = |has_f16| activations.map(|activation| (variant, activation, has_f16));
        [0, 1].map(both).into_iter().flatten()
    }) {
        let mut want = vec![0.0; gate.len()];
        gated_activation::twin(activation, gate, up, &mut want);

        let params = gated_activation::Params {
            has_f16,
            ..gated_activation::Params::new(width, activation)
        };
        let buffers = run_kernel(
            context,
            &gated_activation::KERNEL,
            &variant,
            batch(n_rows, 0, 0),
            bytemuck::bytes_of(&params),
            gated_activation::grid(&params, n_rows),
            &[
                &padded(gate, width),
                &padded(up, width),
                &unwritten(n_rows, width),
                &unwritten_words(n_rows * row_stride(width) / 2),
                &unwritten_words(n_rows),
            ],
        );
        let more = f64::from(u8::from(activation == Activation::ClampedSwiglu));
        let bound = |i: usize| {
            let gate = match activation {
                Activation::Sigmoid => 1.0,
                _ => f64::from(gate[i]).abs(),
            };
            GATED_BOUND * gate * (f64::from(up[i]).abs() + more)
        };
        let shape = (n_rows, width, activation);
        let got = unpadded(&buffers[2], width);
        assert_close("gated_activation", seed, &shape, &got, &want, bound);
        match has_f16 {
            1 => assert_f16_rows(&buffers[3], &buffers[4], &got, width),
            _ => assert_eq!(buffers[4], unwritten_words(n_rows)),
        }
    }
}

/// Of `|gate * up|`, or `|gate| * (|up| + 1)` where that is what is multiplied.
const GATED_BOUND: f64 = 1e-6;

#[test]
fn gated_activation_matches_its_twin() {
    for (seed, (n_rows, width)) in (1..).zip(SHAPES) {
        for values in Values::ALL {
            let mut random = Random::new(seed);
            let gate = values.fill(&mut random, n_rows * width);
            let up = Values::Random.fill(&mut random, n_rows * width);
            check_gated_activation(seed, width, &gate, &up);
        }
    }
}

#[test]
fn gated_activation_matches_its_twin_over_the_whole_range() {
    let mut gate: Vec<f32> = (-1000..=1000).map(|i| i as f32 * 0.11).collect();
    for exponent in -30..=30 {
        gate.extend([10f32.powi(exponent), -(10f32.powi(exponent))]);
    }
    check_gated_activation(0, gate.len(), &gate, &vec![1.0; gate.len()]);
}

/// Of the result's magnitude.
const RMS_NORM_BOUND: f64 = 1e-6;

fn check_rms_norm(seed: u64, width: usize, eps: f32, src: &[f32], weight: &[f32]) {
    let Some(context) = gpu() else { return };
    let n_rows = src.len() / width;
    let mut want = vec![0.0; src.len()];
    rms_norm::twin(src, weight, eps, &mut want);
    let roundings = match width == weight.len() {
        true => vec![0, rms_norm::INT8, rms_norm::F16],
        false => vec![0],
    };
    let variants = variants(&rms_norm::KERNEL, context.subgroups());
    for (variant, rounds) in variants
        .iter()
        .flat_map(|variant| roundings.iter().map(move |&rounds| (variant, rounds)))
    {
        let params = rms_norm::Params {
            rounds,
            ..rms_norm::Params::new(width, weight.len(), eps)
        };
        let stride = row_stride(width);
        let buffers = run_kernel(
            context,
            &rms_norm::KERNEL,
            variant,
            batch(n_rows, 0, 0),
            bytemuck::bytes_of(&params),
            rms_norm::grid(&params, n_rows),
            &[
                &padded(src, width),
                &padded(weight, weight.len()),
                &unwritten(n_rows, width),
                &unwritten_words(n_rows * quantize::row_words(width)),
                &unwritten_words(n_rows * stride / 2),
                &unwritten_words(n_rows),
            ],
        );
        let shape = (n_rows, width, weight.len(), eps, variant.subgroups, rounds);
        let got = unpadded(&buffers[2], width);
        let bound = |i: usize| RMS_NORM_BOUND * f64::from(want[i]).abs();
        assert_close("rms_norm", seed, &shape, &got, &want, bound);
        match rounds {
            rms_norm::INT8 => assert_int8(&buffers[3], &got, width),
            rms_norm::F16 => assert_f16_rows(&buffers[4], &buffers[5], &got, width),
            _ => assert_eq!(buffers[4], unwritten_words(n_rows * stride / 2)),
        }
    }
}

/// Fails where rows of 16-bit floats are not those of `values`.
fn assert_f16_rows(halves: &[u8], scales: &[u8], values: &[f32], width: usize) {
    let mut want = vec![f16::ZERO; values.len()];
    let mut want_scales = vec![0.0; values.len() / width];
    f16_rows::twin(values, width, &mut want, &mut want_scales);
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(scales), want_scales);
    let halves: Vec<f16> = bytemuck::pod_collect_to_vec(halves);
    let rows = halves
        .chunks_exact(row_stride(width))
        .zip(want.chunks_exact(width));
    for (row, (got, want)) in rows.enumerate() {
        let (got, padding) = got.split_at(width);
        assert!(
            padding.iter().all(|x| *x == f16::ZERO),
            "padding of row {row}"
        );
        let [got, want] = [got, want].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        assert_close("f16_rows", 0, &(row, width), &got, &want, |i| {
            2.0_f64.powi(-10) * f64::from(want[i].abs()) + 2.0_f64.powi(-24)
        });
    }
}

#[test]
fn rms_norm_of_rows_matches_its_twin() {
    for (seed, (n_rows, width)) in (1..).zip(SHAPES) {
        for values in Values::ALL {
            let mut random = Random::new(seed);
            let src = values.fill(&mut random, n_rows * width);
            let weight = Values::Random.fill(&mut random, width);
            check_rms_norm(seed, width, 1e-5, &src, &weight);
        }
    }
}

#[test]
fn rms_norm_of_heads_matches_its_twin() {
    for (seed, (n_rows, n_head, head_dim)) in
        (1..).zip([(1, 1, 4), (3, 5, 12), (2, 9, 64), (5, 3, 80), (2, 4, 256)])
    {
        let mut random = Random::new(seed);
        let src = Values::Random.fill(&mut random, n_rows * n_head * head_dim);
        let weight = Values::Random.fill(&mut random, head_dim);
        check_rms_norm(seed, n_head * head_dim, 1e-6, &src, &weight);
    }
}

#[test]
fn rms_norm_holds_for_values_up_to_1e15() {
    let mut random = Random::new(5);
    for scale in [1e-30, 1e-12, 1e15] {
        let src: Vec<f32> = (0..2 * 8192).map(|_| random.signed() * scale).collect();
        let weight = Values::Random.fill(&mut random, 8192);
        check_rms_norm(5, 8192, 1e-6, &src, &weight);
    }
}

/// Of the largest element times the magnitude.
const ROPE_BOUND: f64 = 2.5e-7;
const MAGNITUDE: f64 = 1.2;

#[test]
fn rope_matches_its_twin() {
    let Some(context) = gpu() else { return };
    let variant = only_variant(&rope::KERNEL);
    let shapes = [
        (1, 1, 2, 2),
        (3, 5, 6, 4),
        (7, 9, 64, 64),
        (2, 3, 80, 20),
        (5, 32, 128, 128),
    ];
    for (seed, (n_rows, n_head, head_dim, n_dims)) in (1..).zip(shapes) {
        for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
            for (position, values) in [(0, Values::Random), (1000, Values::Huge), (1, Values::Tiny)]
            {
                let width = n_head * head_dim;
                let frequency = |i: usize| 10000f64.powf(-2.0 * i as f64 / n_dims as f64);
                let inverse_frequency = (0..n_dims / 2).map(frequency).collect();
                let table = RopeTable {
                    pairing,
                    inverse_frequency,
                    magnitude: MAGNITUDE,
                    temperature: None,
                };
                let src = values.fill(&mut Random::new(seed), n_rows * width);
                let mut want = vec![0.0; src.len()];
                rope::twin(&table, position, width, head_dim, &src, &mut want);

                let rows: Vec<[f32; 2]> = (0..position + n_rows)
                    .flat_map(|position| table.row(position))
                    .collect();
                let params = rope::Params::new(width, head_dim, &table);
                let dst = run_kernel(
                    context,
                    &rope::KERNEL,
                    &variant,
                    batch(n_rows, position, 0),
                    bytemuck::bytes_of(&params),
                    rope::grid(&params, n_rows),
                    &[
                        &padded(&src, width),
                        bytemuck::cast_slice(&rows),
                        &unwritten(n_rows, width),
                    ],
                );
                let shape = (n_rows, n_head, head_dim, n_dims, pairing, position, values);
                let bound = |_| ROPE_BOUND * f64::from(values.scale()) * MAGNITUDE;
                assert_close(
                    "rope",
                    seed,
                    &shape,
                    &unpadded(dst.last().unwrap(), width),
                    &want,
                    bound,
                );
            }
        }
    }
}

/// A cache's bytes as floats.
pub(super) fn decode_cache(ty: KvType, bytes: &[u8]) -> Vec<f32> {
    match ty {
        KvType::F32 => bytemuck::pod_collect_to_vec(bytes),
        KvType::F16 => bytemuck::pod_collect_to_vec::<u8, u16>(bytes)
            .into_iter()
            .map(half)
            .collect(),
    }
}

fn half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// Stores `k` and its reverse as `v`, and checks the caches around them too.
fn check_store_kv(seed: u64, width: usize, position: usize, k: &[f32]) {
    let v: Vec<f32> = k.iter().rev().copied().collect();
    check_store(seed, [width; 2], position, [k, &v]);
}

fn check_store(seed: u64, widths: [usize; 2], position: usize, rows: [&[f32]; 2]) {
    let Some(context) = gpu() else { return };
    let n_rows = rows[0].len() / widths[0];
    let params = store_kv::Params::new(widths);
    for variant in variants(&store_kv::KERNEL, context.subgroups()) {
        let n_positions = position + n_rows + 2;
        let fresh =
            widths.map(|width| unwritten_words(n_positions * width * variant.kv.bytes() / 4));
        let [k, v] = [0, 1].map(|part| padded(rows[part], widths[part]));
        let buffers = run_kernel(
            context,
            &store_kv::KERNEL,
            &variant,
            batch(n_rows, position, 0),
            bytemuck::bytes_of(&params),
            store_kv::grid(&params, n_rows),
            &[&k, &v, &fresh[0], &fresh[1]],
        );
        for part in 0..2 {
            let (src, cache, fresh) = (rows[part], &buffers[2 + part], &fresh[part]);
            let row_bytes = widths[part] * variant.kv.bytes();
            let rows = position * row_bytes..(position + n_rows) * row_bytes;
            let mut want = vec![0.0; src.len()];
            store_kv::twin(variant.kv, src, &mut want);
            let got = decode_cache(variant.kv, &cache[rows.clone()]);
            let shape = (n_rows, widths, position, variant.kv);
            assert_close("store_kv", seed, &shape, &got, &want, |_| 0.0);
            assert_eq!(cache[..rows.start], fresh[..rows.start], "{shape:?}");
            assert_eq!(cache[rows.end..], fresh[rows.end..], "{shape:?}");
        }
    }
}

#[test]
fn store_kv_matches_its_twin_and_touches_no_other_row() {
    for (seed, (n_rows, width, position)) in (1..).zip([
        (1, 4, 0),
        (3, 12, 5),
        (7, 132, 1),
        (2, 192, 30),
        (5, 1024, 2),
    ]) {
        for values in [Values::Zero, Values::Tiny, Values::Random] {
            let k = values.fill(&mut Random::new(seed), n_rows * width);
            check_store_kv(seed, width, position, &k);
        }
    }
}

#[test]
fn store_kv_takes_keys_and_values_of_different_widths() {
    for (seed, widths) in (11..).zip([[8, 20], [64, 512], [512, 64], [4, 1028]]) {
        let [k, v] = widths.map(|width| Values::Random.fill(&mut Random::new(seed), 3 * width));
        check_store(seed, widths, 5, [&k, &v]);
    }
}

#[test]
fn store_kv_rounds_to_the_nearest_half_ties_to_even() {
    let halves = (0..0x7BFF)
        .step_by(7)
        .map(|bits| (half(bits), half(bits + 1)));
    let near = |(low, high): (f32, f32)| {
        let middle = (low + high) / 2.0;
        [low, middle, -middle, middle.next_up(), -middle.next_down()]
    };
    let mut k: Vec<f32> = halves.flat_map(near).collect();
    k.resize(k.len().next_multiple_of(1024), 1e-30);
    check_store_kv(0, 1024, 1, &k);
}

#[test]
fn store_kv_saturates_halves() {
    let k = [
        65504.0, 65519.0, 65520.0, 1e6, 1e30, -65504.0, -65520.0, -1e30,
    ];
    check_store_kv(0, 8, 0, &k);
    for value in k {
        assert_eq!(KvType::F16.round(value).abs(), 65504.0, "{value}");
    }
}

#[test]
fn rows_wider_than_one_dimension_of_the_grid_are_covered() {
    let Some(context) = gpu() else { return };
    let width = 65536 * 4 * 64 + 4;
    assert!(row_stride(width) * 4 <= 128 << 20);
    let src = Values::Random.fill(&mut Random::new(9), width);
    let params = select_outputs::Params::new(width);
    let grid = select_outputs::grid(&params, 1);
    assert!(grid[1] > 1);
    let dst = run_kernel(
        context,
        &select_outputs::KERNEL,
        &only_variant(&select_outputs::KERNEL),
        batch(1, 0, 1),
        bytemuck::bytes_of(&params),
        grid,
        &[&padded(&src, width), &unwritten(1, width)],
    );
    assert_close(
        "select_outputs",
        9,
        &width,
        &unpadded(dst.last().unwrap(), width),
        &src,
        |_| 0.0,
    );
}
