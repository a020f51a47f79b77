//! Activations as int8, on a GPU, against their twin.

use super::{Random, altered, gpu, int8_rows, padded, run_kernel, unwritten_words, variants};
use crate::device::wgpu::context::Context;
use crate::kernels::quantize::{self, KERNEL, Params, UNIT, grid, quantize_unit};
use crate::kernels::{BatchParams, Kernel, row_stride};

/// One, tails, units, those of real models.
const WIDTHS: [usize; 8] = [1, 31, 32, 33, 127, 129, 576, 1536];

const N_ROWS: usize = 3;

/// Rows of a width, each unit of another magnitude.
fn rows(width: usize) -> Vec<f32> {
    const MAGNITUDES: [f32; 11] = [
        4.0, 0.0, 1e-30, 1e30, 1.0, 1e-40, 1e-36, 3e-35, 1e38, 65504.0, 1e-4,
    ];
    let mut random = Random::new(width as u64);
    let mut values = Vec::new();
    for row in 0..N_ROWS {
        for i in 0..width {
            let unit = i / UNIT;
            let magnitude = MAGNITUDES[(row * 4 + unit) % MAGNITUDES.len()];
            // In every third unit most elements are halves of steps, the largest 127 of them.
            values.push(match (unit % 3, i % UNIT) {
                (2, 0) => magnitude,
                (2, k) => quantize_unit(&[magnitude]).scale * (k as f32 - 15.5),
                _ => random.signed() * magnitude,
            });
        }
    }
    values
}

/// What is wrong with rows of int8: the integers are to be the twin's, the scales within three roundings.
pub(super) fn judge_int8(got: &[u8], values: &[f32], width: usize) -> Result<(), String> {
    let row_bytes = quantize::row_words(width) * 4;
    let want_rows = int8_rows(values, width);
    let within =
        |got: f32, want: f32, eps: f32| (got - want).abs() <= eps * f32::EPSILON * want.abs();
    for (row, (got, want)) in got
        .chunks(row_bytes)
        .zip(want_rows.chunks(row_bytes))
        .enumerate()
    {
        let (got_quants, got_scales) = got.split_at(row_stride(width));
        let (want_quants, want_scales) = want.split_at(row_stride(width));
        let mut units = got_quants.chunks(UNIT).zip(want_quants.chunks(UNIT));
        if let Some(unit) = units.position(|(got, want)| got != want) {
            return Err(format!(
                "width {width}, row {row}, unit {unit}: other integers"
            ));
        }
        let [got_scales, want_scales]: [Vec<[f32; 2]>; 2] =
            [got_scales, want_scales].map(|bytes| {
                let n_units = row_stride(width) / UNIT;
                bytemuck::pod_collect_to_vec(&bytes[..n_units * 8])
            });
        let pairs = got_scales.into_iter().zip(want_scales).enumerate();
        for (unit, ([scale, scaled_sum], [want_scale, want_sum])) in pairs {
            let sum = if want_scale == 0.0 {
                0.0
            } else {
                (want_sum / want_scale).round()
            };
            if !within(scale, want_scale, 3.0) || !within(scaled_sum, scale * sum, 1.0) {
                return Err(format!(
                    "width {width}, row {row}, unit {unit}: scale {scale:e}, sum {scaled_sum:e}, \
                     expected {want_scale:e}, {want_sum:e}"
                ));
            }
        }
    }
    Ok(())
}

/// Fails where rows of int8 are not those of `values`.
pub(super) fn assert_int8(got: &[u8], values: &[f32], width: usize) {
    if let Err(message) = judge_int8(got, values, width) {
        panic!("int8: {message}");
    }
}

/// What is wrong with the results of a kernel.
fn judge(context: &Context, kernel: &Kernel, width: usize) -> Result<(), String> {
    let src = rows(width);
    let params = Params::new(width);
    // A row more than the batch has.
    let mut padded_src = padded(&src, width);
    padded_src.resize((N_ROWS + 1) * row_stride(width) * 4, 1);
    let row_words = quantize::row_words(width);
    let buffers = run_kernel(
        context,
        kernel,
        &variants(kernel, true)[0],
        BatchParams {
            n_rows: N_ROWS as u32,
            position: 0,
            n_outputs: 0,
            random: 0,
        },
        bytemuck::bytes_of(&params),
        grid(&params, N_ROWS + 1),
        &[&padded_src, &unwritten_words((N_ROWS + 1) * row_words)],
    );
    let (rows, last) = buffers[1].split_at(N_ROWS * row_words * 4);
    if *last != unwritten_words(row_words) {
        return Err("a row behind the last was written".to_owned());
    }
    judge_int8(rows, &src, width)
}

#[test]
fn quantize_gives_the_integers_of_its_twin() {
    let Some(context) = gpu() else { return };
    for width in WIDTHS {
        if let Err(message) = judge(context, &KERNEL, width) {
            panic!("quantize: {message}");
        }
    }
}

#[test]
fn mistakes_in_quantize_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("clamp(round(", "clamp(floor(0.5 + "),
        ("clamp(bits >> 23u, 10u, 240u)", "bits >> 23u"),
        ("(mantissa >> 8u) + 1u", "mantissa >> 8u"),
        (
            "select(bitcast<u32>(inverse), 0u, bits < (10u << 23u))",
            "bitcast<u32>(inverse)",
        ),
        ("larger(sizes0, sizes1)", "larger(sizes0, sizes0)"),
        ("sum += quad_sums[lane + i]", "sum += quad_sums[i]"),
        ("row >= batch.n_rows", "row > batch.n_rows"),
        ("quad < n_quads, lane", "quad + 1u < n_quads, lane"),
        ("stride / 4u + quad / 4u", "stride / 4u + quad / 8u"),
    ] {
        let kernel = altered(&KERNEL, &variants(&KERNEL, true)[0], from, to);
        let found = judge(context, &kernel, 576).is_err();
        assert!(found, "`{to}` was not noticed");
    }
}
