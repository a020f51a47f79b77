//! Activations as int8, on a GPU, against their twin.

use super::{Random, gpu, padded, run_kernel, unwritten_words, variants};
use crate::device::wgpu::context::Context;
use crate::kernels::quantize::{KERNEL, Params, UNIT, grid, quantize_unit};
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

/// What is wrong with the results of a kernel.
fn judge(context: &Context, kernel: &Kernel, width: usize) -> Result<(), String> {
    let src = rows(width);
    let stride = row_stride(width);
    let params = Params::new(width);
    // A row more than the batch has.
    let mut padded_src = padded(&src, width);
    padded_src.resize((N_ROWS + 1) * stride * 4, 1);
    let buffers = run_kernel(
        context,
        kernel,
        &variants(kernel, true)[0],
        BatchParams {
            n_rows: N_ROWS as u32,
            position: 0,
            n_outputs: 0,
            padding: 0,
        },
        bytemuck::bytes_of(&params),
        grid(&params, N_ROWS + 1),
        &[
            &padded_src,
            &unwritten_words((N_ROWS + 1) * stride / 4),
            &unwritten_words((N_ROWS + 1) * stride / UNIT * 2),
        ],
    );
    let (quants, last_quants) = buffers[1].split_at(N_ROWS * stride);
    let (scales, last_scales) = buffers[2].split_at(N_ROWS * stride / UNIT * 8);
    if *last_quants != unwritten_words(stride / 4)
        || *last_scales != unwritten_words(stride / UNIT * 2)
    {
        return Err("a row behind the last was written".to_owned());
    }

    let scales: Vec<[f32; 2]> = bytemuck::pod_collect_to_vec(scales);
    let units = src.chunks_exact(width).flat_map(|row| row.chunks(UNIT));
    for (index, values) in units.enumerate() {
        let want = quantize_unit(values);
        let got: &[i8] = bytemuck::cast_slice(&quants[index * UNIT..][..UNIT]);
        if *got != want.q {
            let largest = values.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            return Err(format!(
                "width {width}, unit {index} up to {largest:e}: {got:?}, expected {:?}",
                want.q
            ));
        }
        let sum: i32 = want.q.into_iter().map(i32::from).sum();
        let [scale, scaled_sum] = scales[index];
        let within =
            |got: f32, want: f32, eps: f32| (got - want).abs() <= eps * f32::EPSILON * want.abs();
        if !within(scale, want.scale, 3.0) || !within(scaled_sum, scale * sum as f32, 1.0) {
            return Err(format!(
                "width {width}, unit {index}: scale {scale:e}, sum {scaled_sum:e}, expected {:e}, {:e}",
                want.scale,
                want.scale * sum as f32
            ));
        }
    }
    Ok(())
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
            "is_zero = bitcast<u32>(max_size) < (10u << 23u)",
            "is_zero = false",
        ),
        (
            "i = 0u; i < 8u; i++) {\n        max",
            "i = 0u; i < 7u; i++) {\n        max",
        ),
        ("sum += sums[lane + i]", "sum += sums[i]"),
        ("row >= batch.n_rows", "row > batch.n_rows"),
        ("first < row_words", "first + 1u < row_words"),
    ] {
        assert_eq!(KERNEL.wgsl.matches(from).count(), 1, "`{from}`");
        let kernel = Kernel {
            name: String::leak(format!("quantize with `{to}`")),
            wgsl: String::leak(KERNEL.wgsl.replace(from, to)),
            ..KERNEL
        };
        let found = judge(context, &kernel, 576).is_err();
        assert!(found, "`{to}` was not noticed");
    }
}
