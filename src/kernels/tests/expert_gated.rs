//! The gated block of the experts of few rows, against the twins of its steps.

use super::few_rows::Weights;
use super::quantize::judge_int8;
use super::{
    Random, Values, altered, first_difference, gpu, int8_rows, padded, run_kernel, unpadded,
    unwritten, unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::experts::{self, ExpertMatrix};
use crate::kernels::repack::Matrix;
use crate::kernels::{
    BatchParams, Constants, Src, Variant, expert_gated, gated_activation, quantize, row_stride,
};
use crate::plan::Activation;

/// Of the products: `f32::EPSILON * (sum |w x| + |bias|)`, as in `few_rows.rs`.
const PRODUCT_BOUND: f64 = 8.0;
const N_EXPERT: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Gated {
    ty: WeightType,
    src: Src,
    n_rows: usize,
    n_chosen: usize,
    n_out: usize,
    n_cols: usize,
    activation: Activation,
    has_int8: bool,
    has_bias: bool,
    is_by_slot: bool,
    workgroup: u32,
}

const GATED: Gated = Gated {
    ty: WeightType::Q4_K,
    src: Src::Int8,
    n_rows: 3,
    n_chosen: 2,
    n_out: 70,
    n_cols: 512,
    activation: Activation::ClampedSwiglu,
    has_int8: true,
    has_bias: true,
    is_by_slot: false,
    workgroup: 256,
};

fn judge(
    what: &str,
    got: &[f32],
    want: &[f32],
    bound: impl Fn(usize) -> f64,
) -> Result<(), String> {
    match first_difference(got, want, bound) {
        Some(difference) => Err(format!("{what}: {difference}")),
        None => Ok(()),
    }
}

/// One behind the other in a buffer that both share: the second begins at a multiple of 256 bytes.
fn together<T: Copy + Default>(first: &[T], second: &[T]) -> (Vec<T>, u32) {
    let mut both = first.to_vec();
    both.resize(both.len().next_multiple_of(64), T::default());
    let start = both.len() as u32;
    both.extend_from_slice(second);
    (both, start)
}

fn check(context: &Context, case: &Gated, mistake: Option<(&str, &str)>) -> Result<(), String> {
    let Gated {
        ty,
        src,
        n_rows,
        n_chosen,
        n_out,
        n_cols,
        activation,
        ..
    } = *case;
    let mut random = Random::new(n_out as u64);
    let n_slots = n_rows * n_chosen;
    let n_all = N_EXPERT * n_out;
    let weights = [0, 1].map(|_| Weights::new(&mut random, ty, n_all, n_cols));
    let biases = [0, 1].map(|_| Values::Random.fill(&mut random, n_all));
    let n_src = if case.is_by_slot { n_slots } else { n_rows };
    let values = Values::Random.fill(&mut random, n_src * n_cols);
    let chosen: Vec<f32> = (0..n_slots)
        .map(|_| (random.bits() as usize % N_EXPERT) as f32)
        .collect();
    let (words, up_start) = together(&weights[0].words, &weights[1].words);
    let (both_biases, up_bias) = together(&biases[0], &biases[1]);
    let matrix = weights[0].shard.matrix();
    let up_matrix = Matrix {
        planes: matrix.planes.map(|plane| plane + up_start),
        ..matrix
    };
    let strides = [n_cols, n_out, n_chosen].map(row_stride);
    let counts = [n_out, n_chosen];
    let params = expert_gated::Params {
        has_int8: u32::from(case.has_int8),
        has_bias: u32::from(case.has_bias),
        up_bias,
        slots_per_src: if case.is_by_slot { 1 } else { n_chosen as u32 },
        ..expert_gated::Params::new([matrix, up_matrix], strides, activation, counts)
    };
    let variant = Variant {
        weight: ty,
        src,
        workgroup: case.workgroup,
        int8_pairs: 2,
        ..Variant::PLAIN
    };
    let kernel = match mistake {
        Some((from, to)) => &altered(&expert_gated::KERNEL, &variant, from, to),
        None => &expert_gated::KERNEL,
    };
    let src_bytes = match src {
        Src::F32 | Src::Norm => padded(&values, n_cols),
        Src::Int8 => int8_rows(&values, n_cols),
    };
    // A slot more than the batch has.
    let nothing = unwritten(n_slots + 1, n_out);
    let no_int8 = unwritten_words((n_slots + 1) * quantize::row_words(n_out));
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: 0,
        n_outputs: 0,
        random: 0,
    };
    let run = |variant: &Variant| {
        run_kernel(
            context,
            kernel,
            variant,
            batch,
            bytemuck::bytes_of(&params),
            expert_gated::grid(&params, n_slots),
            &[
                bytemuck::cast_slice(&words),
                &src_bytes,
                &padded(&chosen, n_chosen),
                bytemuck::cast_slice(&both_biases),
                &nothing,
                &nothing,
                &nothing,
                &no_int8,
            ],
        )
    };
    let buffers = run(&variant);
    if mistake.is_none() {
        let constants = Constants::new(bytemuck::bytes_of(&params));
        assert!(constants.is_some(), "too many parameters");
        let by_constants = Variant {
            constants,
            ..variant
        };
        assert!(buffers == run(&by_constants), "{case:?}");
    }

    let rows = |i: usize| buffers[i].split_at(buffers[i].len() / (n_slots + 1) * n_slots);
    if (4..8).any(|i| !nothing.starts_with(rows(i).1) && !no_int8.starts_with(rows(i).1)) {
        return Err("a row behind the last was written".to_owned());
    }
    let mut seen = values.clone();
    if src == Src::Int8 {
        quantize::twin(&values, n_cols, &mut seen);
    }
    let [got_gate, got_up, got] = [4, 5, 6].map(|i| unpadded(rows(i).0, n_out));
    let matrix = ExpertMatrix {
        n_expert: N_EXPERT,
        n_out,
        n_cols,
    };
    let absolute = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
    for (index, (name, got)) in [("gate", &got_gate), ("up", &got_up)]
        .into_iter()
        .enumerate()
    {
        let row_bytes = ty.row_bytes(n_cols);
        let decode = |row: usize, out: &mut [f32]| {
            ty.decode(&weights[index].file[row * row_bytes..][..row_bytes], out);
        };
        let sizes = |row: usize, out: &mut [f32]| {
            decode(row, out);
            out.iter_mut().for_each(|weight| *weight = weight.abs());
        };
        let bias = case.has_bias.then_some(&biases[index][..]);
        let mut want = vec![0.0; n_slots * n_out];
        experts::matmul_twin(&decode, matrix, &seen, &chosen, bias, &mut want);
        let mut size = want.clone();
        let bias_size = bias.map(absolute);
        let bias_size = bias_size.as_deref();
        experts::matmul_twin(
            &sizes,
            matrix,
            &absolute(&seen),
            &chosen,
            bias_size,
            &mut size,
        );
        let bound = |i: usize| PRODUCT_BOUND * f64::from(f32::EPSILON) * f64::from(size[i]) + 1e-37;
        judge(name, got, &want, bound)?;
    }
    let mut want = vec![0.0; got.len()];
    gated_activation::twin(activation, &got_gate, &got_up, &mut want);
    let bound = |i: usize| 1e-6 * f64::from((got_gate[i] * (got_up[i].abs() + 1.0)).abs());
    judge("gated", &got, &want, bound)?;
    match case.has_int8 {
        true => judge_int8(rows(7).0, &got, n_out),
        false if buffers[7] != no_int8 => Err("int8 was written".to_owned()),
        false => Ok(()),
    }
}

#[test]
fn expert_gated_matches_the_twins_of_its_steps() {
    let Some(context) = gpu() else { return };
    let shapes = [
        (1, 32, 1, 1),
        (31, 64, 4, 3),
        (33, 576, 1, 4),
        (128, 96, 2, 2),
        (512, 64, 1, 2),
    ];
    for src in [Src::F32, Src::Int8] {
        for (index, (n_out, n_cols, n_rows, n_chosen)) in shapes.into_iter().enumerate() {
            let case = Gated {
                ty: [WeightType::Q5_0, WeightType::MXFP4][index % 2],
                src,
                n_rows,
                n_chosen,
                n_out,
                n_cols,
                activation: [Activation::Silu, Activation::ClampedSwiglu][index % 2],
                has_int8: index != 2,
                has_bias: index % 2 == 0,
                is_by_slot: index == 3,
                workgroup: [128, 256][index % 2],
            };
            check(context, &case, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        }
        for ty in WeightType::ALL {
            if src == Src::Int8 && !ty.is_quantised() {
                continue;
            }
            let case = Gated { ty, src, ..GATED };
            check(context, &case, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        }
    }
}

#[test]
fn mistakes_in_expert_gated_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("min(id, p.n_expert - 1u) * p.n_out", "0u"),
        ("p.up_planes, vec2(units)", "p.matrix.planes, vec2(units)"),
        ("min(pair, p.n_out - 1u)", "pair % 32u"),
        ("bias[p.up_bias + at]", "bias[at]"),
        (
            "let at = first_row + first + lane;",
            "let at = first + lane;",
        ),
        ("slot / p.slots_per_src, lane", "slot, lane"),
        (
            "slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen",
            "slot",
        ),
        ("first + lane < p.n_out;", "first + lane + 1u < p.n_out;"),
        ("var result = 0.0;", "var result = 1.0;"),
        (
            "let at = slot * p.dst_stride",
            "let at = slot / 2u * p.dst_stride",
        ),
        ("first / 4u + quad", "quad"),
        ("store_int8(value, slot,", "store_int8(value, slot / 2u,"),
    ] {
        let found = check(context, &GATED, Some((from, to))).is_err();
        assert!(found, "`{to}` for `{from}` was not noticed");
    }
}
