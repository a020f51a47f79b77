//! The kernels that compute several steps of few rows, against the twins of these steps.

mod heads;

use super::quantize::judge_int8;
use super::{
    Random, altered, first_difference, gpu, int8_rows, padded, run_kernel, unpadded, unwritten,
    unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::repack::{Matrix, Shard};
use crate::kernels::teams::{FewRows, Of, Teams};
use crate::kernels::{
    BatchParams, Constants, Kernel, Src, Variant, gated_activation, matmul, matvec_gated, quantize,
    rms_norm, row_stride,
};
use crate::plan::Activation;

/// Of the products: `f32::EPSILON * sum |w x|` (with int8 also `|offset x|`, which is no larger here).
const PRODUCT_BOUND: f64 = 8.0;
const N_ROWS: usize = 3;
const POSITION: usize = 5;

fn batch() -> BatchParams {
    BatchParams {
        n_rows: N_ROWS as u32,
        position: POSITION as u32,
        n_outputs: 0,
        random: 0,
    }
}

/// Weights of a type, as a file and as the kernels see them.
pub(super) struct Weights {
    pub(super) shard: Shard,
    pub(super) file: Vec<u8>,
    pub(super) words: Vec<u32>,
}

impl Weights {
    pub(super) fn new(
        random: &mut Random,
        ty: WeightType,
        n_rows: usize,
        n_cols: usize,
    ) -> Weights {
        let mut file = Vec::new();
        for _ in 0..n_rows {
            let row: Vec<f32> = (0..n_cols).map(|_| random.signed()).collect();
            file.extend(ty.encode(&row));
        }
        let shard = Shard {
            ty,
            first_row: 0,
            n_rows,
            n_cols,
        };
        let mut words = vec![0; shard.words()];
        shard.repack_rows(0..n_rows, &file, &mut Vec::new(), |offset, part| {
            words[offset..][..part.len()].copy_from_slice(part);
        });
        Weights { shard, file, words }
    }

    /// The product with rows of `src`, and the bound of each of its elements.
    fn product(&self, src: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Vec<f64>) {
        let Shard {
            ty, n_rows, n_cols, ..
        } = self.shard;
        let row_bytes = ty.row_bytes(n_cols);
        let decode = |row: usize, out: &mut [f32]| {
            ty.decode(&self.file[row * row_bytes..][..row_bytes], out);
        };
        let mut want = vec![0.0; src.len() / n_cols * n_rows];
        matmul::twin(&decode, n_cols, src, bias, &mut want);
        let sizes = |row: usize, out: &mut [f32]| {
            decode(row, out);
            out.iter_mut().for_each(|weight| *weight = weight.abs());
        };
        let src: Vec<f32> = src.iter().map(|x| x.abs()).collect();
        let bias: Option<Vec<f32>> = bias.map(|bias| bias.iter().map(|x| x.abs()).collect());
        let mut of_magnitudes = want.clone();
        matmul::twin(&sizes, n_cols, &src, bias.as_deref(), &mut of_magnitudes);
        let bound = |size: f32| PRODUCT_BOUND * f64::from(f32::EPSILON) * f64::from(size);
        (want, of_magnitudes.into_iter().map(bound).collect())
    }
}

/// Weights as in a buffer that they share, and where each begins: at a multiple of 256 bytes.
fn together(weights: &[&[u32]]) -> (Vec<u32>, Vec<u32>) {
    let mut words = Vec::new();
    let starts = weights.iter().map(|of_one| {
        words.resize(words.len().next_multiple_of(64), 0);
        let start = words.len() as u32;
        words.extend_from_slice(of_one);
        start
    });
    let starts = starts.collect();
    (words, starts)
}

const EPS: f32 = 1e-3;

/// Rows of activations as the kernel gets them, and what a norm in the kernel has beside them.
struct Activations {
    values: Vec<f32>,
    bytes: Vec<u8>,
    norm_weight: Vec<f32>,
}

impl Activations {
    fn new(random: &mut Random, n_cols: usize, src: Src) -> Activations {
        // Each unit has another magnitude.
        let magnitude = |i: usize| [1.0, 0.01, 30.0][i / 32 % 3];
        let values: Vec<f32> = (0..N_ROWS * n_cols)
            .map(|i| random.signed() * magnitude(i))
            .collect();
        let bytes = match src {
            Src::F32 | Src::Norm => padded(&values, n_cols),
            Src::Int8 => int8_rows(&values, n_cols),
        };
        let norm_weight = (0..n_cols).map(|_| random.signed()).collect();
        Activations {
            values,
            bytes,
            norm_weight,
        }
    }

    /// What the product sees; `normed` is what the kernel's norm wrote, which is judged first.
    fn seen(&self, src: Src, normed: Option<&[u8]>) -> Result<Vec<f32>, String> {
        let n_cols = self.norm_weight.len();
        let mut before = self.values.clone();
        if let Some(normed) = normed {
            let mut want = vec![0.0; before.len()];
            let weight = &self.norm_weight;
            rms_norm::twin(&self.values, weight.len(), Some(weight), EPS, &mut want);
            before = unpadded(normed, n_cols);
            judge("norm", &before, &want, |i| 1e-6 * f64::from(want[i].abs()))?;
        }
        if src == Src::F32 {
            return Ok(before);
        }
        let mut rounded = vec![0.0; before.len()];
        quantize::twin(&before, n_cols, &mut rounded);
        Ok(rounded)
    }
}

/// Runs a kernel; `storage` lacks what the norm has.
fn run(
    context: &Context,
    kernel: &Kernel,
    variant: &Variant,
    params: &[u8],
    grid: [u32; 3],
    src: &Activations,
    storage: Vec<&[u8]>,
) -> Vec<Vec<u8>> {
    let n_cols = src.norm_weight.len();
    let norm_weight = padded(&src.norm_weight, n_cols);
    let normed = unwritten(N_ROWS, n_cols);
    let mut storage = storage;
    if variant.src == Src::Norm {
        storage.extend([&norm_weight[..], &normed]);
    }
    let run = |variant| run_kernel(context, kernel, variant, batch(), params, grid, &storage);
    let buffers = run(variant);
    if !kernel.uses.is_whole {
        let constants = Constants::new(params);
        assert!(
            constants.is_some(),
            "{} has too many parameters",
            kernel.name
        );
        let by_constants = run(&Variant {
            constants,
            ..*variant
        });
        assert!(buffers == by_constants, "{}", kernel.name);
    }
    buffers
}

const SOURCES: [Src; 3] = [Src::F32, Src::Int8, Src::Norm];

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

/// Both products of a gated block.
#[derive(Clone, Copy, Debug)]
struct Gated {
    ty: WeightType,
    src: Src,
    n_out: usize,
    n_cols: usize,
    activation: Activation,
    has_int8: bool,
    teams: Teams,
}

const GATED: Gated = Gated {
    ty: WeightType::Q4_K,
    src: Src::Norm,
    n_out: 70,
    n_cols: 512,
    activation: Activation::Silu,
    has_int8: true,
    teams: Teams {
        size: 32,
        workgroup: 256,
        pairs: 2,
    },
};

fn run_gated(context: &Context, case: &Gated, mistake: Option<(&str, &str)>) -> Result<(), String> {
    let Gated {
        ty,
        src,
        n_out,
        n_cols,
        activation,
        ..
    } = *case;
    let mut random = Random::new(n_out as u64);
    let [gate, up] = [0, 1].map(|_| Weights::new(&mut random, ty, n_out, n_cols));
    let activations = Activations::new(&mut random, n_cols, src);
    let (words, starts) = together(&[&gate.words, &up.words]);
    let matrix = Matrix {
        team_size: case.teams.size,
        ..gate.shard.matrix()
    };
    let up_matrix = matrix.behind(starts[1]);
    let strides = [n_cols, n_out].map(row_stride);
    let params = matvec_gated::Params {
        eps: EPS,
        writes_norm: 1,
        has_int8: u32::from(case.has_int8),
        ..matvec_gated::Params::new(matrix, up_matrix, strides, activation)
    };
    let variant = case.teams.put_into(Variant {
        weight: ty,
        src,
        ..Variant::PLAIN
    });
    let kernel = match mistake {
        Some((from, to)) => &altered(&matvec_gated::KERNEL, &variant, from, to),
        None => &matvec_gated::KERNEL,
    };
    // A row more than the batch has.
    let nothing = unwritten(N_ROWS + 1, n_out);
    let no_int8 = unwritten_words((N_ROWS + 1) * quantize::row_words(n_out));
    let buffers = run(
        context,
        kernel,
        &variant,
        bytemuck::bytes_of(&params),
        matvec_gated::grid(&params, N_ROWS),
        &activations,
        vec![
            bytemuck::cast_slice(&words),
            &activations.bytes,
            &nothing,
            &nothing,
            &nothing,
            &no_int8,
        ],
    );
    let rows = |i: usize| buffers[i].split_at(buffers[i].len() / (N_ROWS + 1) * N_ROWS);
    if (2..6).any(|i| !nothing.starts_with(rows(i).1) && !no_int8.starts_with(rows(i).1)) {
        return Err("a row behind the last was written".to_owned());
    }
    let normed = (src == Src::Norm).then(|| &buffers[7][..]);
    let src = activations.seen(src, normed)?;
    let [got_gate, got_up, got] = [2, 3, 4].map(|i| unpadded(rows(i).0, n_out));
    for (name, weights, got) in [("gate", &gate, &got_gate), ("up", &up, &got_up)] {
        let (want, bounds) = weights.product(&src, None);
        judge(name, got, &want, |i| bounds[i])?;
    }
    let mut want = vec![0.0; got.len()];
    gated_activation::twin(activation, &got_gate, &got_up, &mut want);
    let bound = |i: usize| 1e-6 * f64::from((got_gate[i] * got_up[i]).abs());
    judge("gated", &got, &want, bound)?;
    match case.has_int8 {
        true => judge_int8(rows(5).0, &got, n_out),
        false if buffers[5] != no_int8 => Err("int8 was written".to_owned()),
        false => Ok(()),
    }
}

#[test]
fn matvec_gated_matches_the_twins_of_its_steps() {
    let Some(context) = gpu() else { return };
    let shapes = [(1, 32), (31, 64), (33, 576), (128, 96), (1536, 64)];
    for src in SOURCES {
        for (index, (n_out, n_cols)) in shapes.into_iter().enumerate() {
            let product = FewRows {
                of: Of::Gated,
                weight: WeightType::Q5_0,
                src,
                n_out,
                units_per_row: n_cols / 32,
            };
            // All teams where the last outputs are no whole unit.
            let n = if n_out == 33 { usize::MAX } else { 2 };
            for teams in product.all().take(n) {
                let case = Gated {
                    ty: WeightType::Q5_0,
                    src,
                    n_out,
                    n_cols,
                    activation: [Activation::Silu, Activation::GeluTanh][index % 2],
                    has_int8: index != 2,
                    teams,
                };
                run_gated(context, &case, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
            }
        }
        run_gated(context, &Gated { src, ..GATED }, None).unwrap();
    }
    let float = Gated {
        ty: WeightType::F16,
        src: Src::F32,
        n_cols: 33,
        ..GATED
    };
    run_gated(context, &float, None).unwrap();
}

#[test]
fn mistakes_in_matvec_gated_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        (
            "pair += n_teams * TEAM_PAIRS",
            "pair += 2u * n_teams * TEAM_PAIRS",
        ),
        ("p.up_planes, vec2(units)", "p.matrix.planes, vec2(units)"),
        ("x * sigmoid(x);\n    }", "sigmoid(x);\n    }"),
        (
            "let of_up = products[2u * lane + 1u]",
            "let of_up = products[2u * lane]",
        ),
        (
            "first + lane < p.matrix.n_rows",
            "first + lane + 1u < p.matrix.n_rows",
        ),
        ("var result = 0.0;", "var result = 1.0;"),
        ("first_column / 4u + quad", "quad"),
        ("lane < N_OUTPUTS / 4u, lane", "lane < N_OUTPUTS / 8u, lane"),
    ] {
        let found = run_gated(context, &GATED, Some((from, to))).is_err();
        assert!(found, "`{to}` for `{from}` was not noticed");
    }
}
