//! The kernels that read weight matrices, on a GPU, against their twins.

mod inputs;

use self::inputs::{Case, Class, EMBED_BOUND, Inputs, PRODUCT_BOUND, SCALE, Values, cases};
use super::{SENTINEL, assert_close, gpu, padded, run_kernel, unwritten, unwritten_words};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::matmul_coop::{CooperativeMatrix, Tile};
use crate::kernels::repack::Matrix;
use crate::kernels::{
    BatchParams, Kernel, Variant, embed, f16_rows, matmul, matmul_coop, matvec, matvec_int8,
    quantize, row_stride,
};
use crate::kv_cache::KvType;
use half::f16;

/// A kernel that computes a product.
struct Product {
    kernel: Kernel,
    grid: fn(&matmul::Params, usize) -> [u32; 3],
    /// Where it is not to be what the shape suggests.
    team_size: Option<u32>,
    tile: Option<Tile>,
}

const MATMUL: Product = Product {
    kernel: matmul::KERNEL,
    grid: matmul::grid,
    team_size: None,
    tile: None,
};
const MATVEC: Product = Product {
    kernel: matvec::KERNEL,
    grid: matvec::grid,
    team_size: None,
    tile: None,
};
const MATVEC_INT8: Product = Product {
    kernel: matvec_int8::KERNEL,
    grid: matvec_int8::grid,
    team_size: None,
    tile: None,
};

impl Product {
    fn takes(&self, ty: WeightType) -> bool {
        !self.kernel.uses.integers || ty.block_len() > 1
    }

    /// The buffers that hold the activations.
    fn src_buffers(&self, inputs: &Inputs) -> Vec<Vec<u8>> {
        if self.kernel.uses.integers {
            int8_buffers(&inputs.src, inputs.case.n_cols).to_vec()
        } else {
            vec![padded(&inputs.src, inputs.case.n_cols)]
        }
    }

    /// The activations as the kernel sees them.
    fn src(&self, inputs: &Inputs) -> Vec<f32> {
        if self.kernel.uses.integers {
            inputs.int8_src()
        } else {
            inputs.src.clone()
        }
    }

    /// The class of precision that it is in.
    fn class(&self) -> Class {
        match self.tile {
            None => Class::F32,
            Some(_) => Class::F16,
        }
    }

    fn judge(&self, inputs: &Inputs, dst: &[f32]) -> Result<f64, String> {
        inputs.judge_product(self.class(), dst, &self.src(inputs))
    }
}

/// The quants and the scales of rows, as `quantize` stores them.
fn int8_buffers(src: &[f32], width: usize) -> [Vec<u8>; 2] {
    let (mut quants, mut scales) = (Vec::new(), Vec::new());
    for unit in src
        .chunks_exact(width)
        .flat_map(|row| row.chunks(quantize::UNIT))
    {
        let unit = quantize::quantize_unit(unit);
        let sum: i32 = unit.q.into_iter().map(i32::from).sum();
        quants.extend_from_slice(bytemuck::cast_slice(&unit.q));
        scales.extend_from_slice(bytemuck::cast_slice(&[unit.scale, unit.scale * sum as f32]));
    }
    [quants, scales]
}

fn batch(n_rows: usize, n_outputs: usize) -> BatchParams {
    let [n_rows, n_outputs] = [n_rows, n_outputs].map(|count| count as u32);
    BatchParams {
        n_rows,
        position: 7,
        n_outputs,
        padding: 0,
    }
}

/// The product by cooperative matrices, in every tile that there is room for; says so where there is none.
fn cooperative(context: &Context) -> Vec<Product> {
    let Some(matrix) = context.cooperative_matrix else {
        println!("skipped: {} has no cooperative matrices", context.info.name);
        return Vec::new();
    };
    let room = context.limits.max_compute_workgroup_storage_size as usize;
    // Arrays of scalars do everywhere.
    let ways = if matrix.from_vectors {
        vec![true, false]
    } else {
        vec![false]
    };
    let tiles = ways.into_iter().flat_map(|from_vectors| {
        let matrix = CooperativeMatrix {
            from_vectors,
            ..matrix
        };
        [false, true].map(|is_large| Tile { matrix, is_large })
    });
    let product = |tile| Product {
        kernel: matmul_coop::KERNEL,
        grid: matmul::grid,
        team_size: None,
        tile: Some(tile),
    };
    tiles
        .filter(|tile| tile.workgroup_bytes() <= room)
        .map(product)
        .collect()
}

fn variant(inputs: &Inputs, tile: Option<Tile>) -> Variant {
    Variant {
        weight: inputs.case.ty,
        kv: KvType::F32,
        subgroups: false,
        tile,
    }
}

/// `dst` of a product, `[n_rows + 1, row_stride(n_out)]`: the last row is nobody's.
fn run_product(context: &Context, inputs: &Inputs, product: &Product) -> Vec<f32> {
    let Case {
        seed,
        n_out,
        n_cols,
        n_rows,
        ..
    } = inputs.case;
    // Where there is nothing to add, what is bound is not read.
    let padded_or_any = |values: &Option<Vec<f32>>| {
        values
            .as_ref()
            .map_or(vec![0; 4], |values| padded(values, n_out))
    };
    let bias = padded_or_any(&inputs.bias);
    let residual = padded_or_any(&inputs.residual);
    let extent = (seed % 2) as u32;
    let (n_tokens, n_outputs) = if extent == 0 {
        (n_rows, 0)
    } else {
        (n_rows + 1, n_rows)
    };
    let mut dst = unwritten(n_rows + 1, n_out);
    let mut without_residual = dst.clone();
    let batch = batch(n_tokens, n_outputs);
    let src = match product.tile {
        None => product.src_buffers(inputs),
        Some(_) => run_f16_rows(context, inputs, batch, extent).to_vec(),
    };
    for (shard, words) in inputs.shards() {
        let matrix = shard.matrix();
        let params = matmul::Params {
            matrix: Matrix {
                team_size: product.team_size.unwrap_or(matrix.team_size),
                ..matrix
            },
            src_stride: row_stride(n_cols) as u32,
            dst_stride: row_stride(n_out) as u32,
            extent,
            has_bias: u32::from(inputs.bias.is_some()),
            has_residual: u32::from(inputs.residual.is_some()),
            padding: [0; 3],
        };
        let grid = match product.tile {
            None => (product.grid)(&params, n_rows),
            Some(tile) => matmul_coop::grid(tile, &params, n_rows),
        };
        let mut storage: Vec<&[u8]> = vec![bytemuck::cast_slice(&words)];
        storage.extend(src.iter().map(Vec::as_slice));
        storage.extend([&bias[..], &residual, &without_residual, &dst]);
        let mut buffers = run_kernel(
            context,
            &product.kernel,
            &variant(inputs, product.tile),
            batch,
            bytemuck::bytes_of(&params),
            grid,
            &storage,
        );
        dst = buffers.pop().expect("dst is the last");
        without_residual = buffers.pop().expect("product is in front of it");
    }
    let mut dst: Vec<f32> = bytemuck::pod_collect_to_vec(&dst);
    let product: Vec<f32> = bytemuck::pod_collect_to_vec(&without_residual);
    let residual: Vec<f32> = bytemuck::pod_collect_to_vec(&residual);
    if inputs.residual.is_some() && !is_sum(&dst, &product, &residual) {
        dst.fill(f32::NAN);
    }
    dst
}

/// Whether `dst` is the product and the residual, rounded as a step of its own would.
fn is_sum(dst: &[f32], product: &[f32], residual: &[f32]) -> bool {
    let mut sums = dst.iter().zip(product).zip(residual);
    sums.all(|((&dst, &product), &residual)| {
        let unwritten = |value: f32| value.to_bits() == SENTINEL;
        dst == product + residual || unwritten(dst) && unwritten(product)
    })
}

/// The rows of `src` in 16-bit floats, and their scales.
fn run_f16_rows(
    context: &Context,
    inputs: &Inputs,
    batch: BatchParams,
    extent: u32,
) -> [Vec<u8>; 2] {
    let Case { n_cols, n_rows, .. } = inputs.case;
    let src = padded(&inputs.src, n_cols);
    let params = f16_rows::Params::new(n_cols, extent);
    let buffers = run_kernel(
        context,
        &f16_rows::KERNEL,
        &variant(inputs, None),
        batch,
        bytemuck::bytes_of(&params),
        f16_rows::grid(&params, n_rows),
        &[
            &src,
            &unwritten_words(src.len() / 8),
            &unwritten_words(n_rows),
        ],
    );
    let [_, halves, scales] = buffers.try_into().unwrap();
    [halves, scales]
}

/// `dst` of the embedding, `[n_rows + 1, row_stride(n_cols)]`: the last row is nobody's.
fn run_embed(context: &Context, inputs: &Inputs, kernel: &Kernel) -> Vec<f32> {
    let Case { n_cols, n_rows, .. } = inputs.case;
    let tokens = inputs.tokens();
    let mut dst = unwritten(n_rows + 1, n_cols);
    for (shard, words) in inputs.shards() {
        let params = embed::Params {
            matrix: shard.matrix(),
            dst_stride: row_stride(n_cols) as u32,
            scale: SCALE,
            padding: [0; 2],
        };
        let mut buffers = run_kernel(
            context,
            kernel,
            &variant(inputs, None),
            batch(n_rows, 1),
            bytemuck::bytes_of(&params),
            embed::grid(&params, n_rows),
            &[
                bytemuck::cast_slice(&tokens),
                bytemuck::cast_slice(&words),
                &dst,
            ],
        );
        dst = buffers.swap_remove(2);
    }
    bytemuck::pod_collect_to_vec(&dst)
}

fn check_products(context: &Context, product: &Product, types: &[WeightType]) {
    let mut worst = 0.0_f64;
    let types = types.iter().copied().filter(|ty| product.takes(*ty));
    for case in types.flat_map(cases) {
        let inputs = Inputs::new(case);
        match product.judge(&inputs, &run_product(context, &inputs, product)) {
            Ok(error) => worst = worst.max(error),
            Err(message) => panic!("{}: {message}", product.kernel.name),
        }
    }
    match product.tile {
        None => println!(
            "{}: largest error {:.2} eps",
            product.kernel.name,
            worst * PRODUCT_BOUND
        ),
        Some(tile) => println!(
            "{}: largest error {worst:.3} of the bound, {tile:?}",
            product.kernel.name
        ),
    }
}

#[test]
fn embed_agrees_with_its_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    let mut worst = 0.0_f64;
    for case in WeightType::ALL.into_iter().flat_map(cases) {
        let inputs = Inputs::new(case);
        match inputs.judge_embed(&run_embed(context, &inputs, &embed::KERNEL)) {
            Ok(error) => worst = worst.max(error),
            Err(message) => panic!("embed: {message}"),
        }
    }
    println!("embed: largest error {:.2} eps", worst * EMBED_BOUND);
}

#[test]
fn matmul_agrees_with_its_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    check_products(context, &MATMUL, &WeightType::ALL);
}

#[test]
fn matvec_agrees_with_its_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    check_products(context, &MATVEC, &WeightType::ALL);
}

#[test]
fn matmul_coop_agrees_with_its_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    for (index, product) in cooperative(context).iter().enumerate() {
        let types = match index {
            0 => &WeightType::ALL[..],
            _ => &[WeightType::F16, WeightType::Q6_K],
        };
        check_products(context, product, types);
    }
}

/// Rows that 16-bit floats could not hold side by side.
#[test]
fn matmul_coop_keeps_rows_of_any_magnitude() {
    let Some(context) = gpu() else { return };
    for product in cooperative(context) {
        let mut inputs = Inputs::new(Case {
            seed: 2,
            ty: WeightType::Q8_0,
            n_out: 33,
            n_cols: 96,
            n_rows: 9,
            n_shards: 1,
            bias: false,
            residual: false,
            values: Values::Usual,
        });
        let magnitudes = [1e6, 1e30, 1e-10, 0.0, 1e-20, 65504.0, 1e36, 1.0, 1e-30];
        for (row, magnitude) in inputs.src.chunks_exact_mut(96).zip(magnitudes) {
            row.iter_mut().for_each(|x| *x *= magnitude);
        }
        let dst = run_product(context, &inputs, &product);
        product.judge(&inputs, &dst).unwrap();
    }
}

#[test]
fn f16_rows_matches_its_twin() {
    let Some(context) = gpu() else { return };
    if context.cooperative_matrix.is_none() {
        return;
    }
    for (seed, ty, n_cols) in [
        (1, WeightType::F32, 1),
        (2, WeightType::F32, 2077),
        (3, WeightType::Q8_0, 64),
    ] {
        let mut inputs = Inputs::new(Case {
            seed,
            ty,
            n_out: 1,
            n_cols,
            n_rows: 7,
            n_shards: 1,
            bias: false,
            residual: false,
            values: Values::Usual,
        });
        let magnitudes = [1.0, 1e30, 1e-10, 0.0, 1e-30, 65504.0, 1e6];
        for (row, magnitude) in inputs.src.chunks_exact_mut(n_cols).zip(magnitudes) {
            row.iter_mut().for_each(|x| *x *= magnitude);
        }
        let mut want = vec![f16::ZERO; inputs.src.len()];
        let mut want_scales = vec![0.0; 7];
        f16_rows::twin(&inputs.src, n_cols, &mut want, &mut want_scales);

        let [halves, scales] = run_f16_rows(context, &inputs, batch(7, 0), 0);
        assert_eq!(
            bytemuck::pod_collect_to_vec::<u8, f32>(&scales),
            want_scales,
            "seed {seed}"
        );
        let halves: Vec<f16> = bytemuck::pod_collect_to_vec(&halves);
        let rows = halves
            .chunks_exact(row_stride(n_cols))
            .zip(want.chunks_exact(n_cols));
        for (row, (got, want)) in rows.enumerate() {
            assert!(
                got[n_cols..].iter().all(|x| *x == f16::ZERO),
                "seed {seed}, row {row}"
            );
            let [got, want] =
                [&got[..n_cols], want].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
            assert_close("f16_rows", seed, &(row, n_cols), &got, &want, |i| {
                2.0_f64.powi(-10) * f64::from(want[i].abs()) + 2.0_f64.powi(-24)
            });
        }
    }
}

#[test]
fn matvec_int8_agrees_with_its_twin_for_every_quantised_weight_type() {
    let Some(context) = gpu() else { return };
    check_products(context, &MATVEC_INT8, &WeightType::ALL);
}

#[test]
fn products_of_few_rows_agree_with_their_twin_for_every_team_size() {
    let Some(context) = gpu() else { return };
    let inputs = Inputs::new(Case {
        seed: 2,
        ty: WeightType::Q4_1,
        n_out: 37,
        n_cols: 32 * 83,
        n_rows: 2,
        n_shards: 2,
        bias: true,
        residual: false,
        values: Values::Usual,
    });
    for mut product in [MATVEC, MATVEC_INT8] {
        for team_size in [8, 16, 32, 64] {
            product.team_size = Some(team_size);
            if let Err(message) = product.judge(&inputs, &run_product(context, &inputs, &product)) {
                panic!("{}, teams of {team_size}: {message}", product.kernel.name);
            }
        }
    }
}

/// The kernel with one piece of its text replaced: a mistake on purpose.
fn altered(kernel: &Kernel, from: &str, to: &str) -> Kernel {
    assert_eq!(
        kernel.wgsl.matches(from).count(),
        1,
        "`{from}` in {}",
        kernel.name
    );
    let Kernel {
        name,
        wgsl,
        bindings,
        params_bytes,
        uses,
    } = *kernel;
    // Pipelines are kept by name.
    let name = String::leak(format!("{name} with `{to}` for `{from}`"));
    Kernel {
        name,
        wgsl: String::leak(wgsl.replace(from, to)),
        bindings,
        params_bytes,
        uses,
    }
}

#[test]
fn mistakes_in_the_kernels_are_found() {
    let Some(context) = gpu() else { return };
    let case = Case {
        seed: 1,
        ty: WeightType::Q4_K,
        n_out: 67,
        n_cols: 256,
        n_rows: 65,
        n_shards: 1,
        bias: true,
        residual: true,
        values: Values::Usual,
    };
    let inputs = Inputs::new(case);
    let cooperative = cooperative(context);
    let mut mistakes = vec![
        (
            &MATVEC,
            "&& output < p.matrix.n_rows",
            "&& output + 1u < p.matrix.n_rows",
        ),
        (&MATVEC, "row >= n_rows", "row + 1u >= n_rows"),
        (
            &MATVEC,
            "decode8(header3, quarter)",
            "decode8(header3, 3u - quarter)",
        ),
        (&MATVEC, "bias[column]", "bias[0u]"),
        (&MATVEC, "= residual[row", "= residual[0u"),
        (
            &MATVEC,
            "lane < n_sums && output < p.matrix.n_rows",
            "lane < n_sums",
        ),
        (&MATVEC_INT8, "src.high.zw", "src.high.xy"),
        (&MATVEC_INT8, "src.sum * weight.offset", "weight.offset"),
        (&MATVEC_INT8, "select(0.0, 1.0,", "select(1.0, 1.0,"),
        (
            &MATVEC_INT8,
            "dot_unit(weight1, src0)",
            "dot_unit(weight0, src0)",
        ),
        (&MATVEC_INT8, "row >= n_rows", "row + 1u >= n_rows"),
        (&MATVEC_INT8, "= residual[row", "= residual[0u"),
        (
            &MATVEC_INT8,
            "lane < n_sums && output < p.matrix.n_rows",
            "lane < n_sums",
        ),
        (
            &MATMUL,
            "output < p.matrix.n_rows",
            "output + 1u < p.matrix.n_rows",
        ),
        (&MATMUL, "    if row >= n_rows {", "    if row > n_rows {"),
        (&MATMUL, "unit < n_units", "unit + 1u < n_units"),
        (&MATMUL, "dot(weight2, src3)", "dot(weight2, src2)"),
        (&MATMUL, "= residual[row", "= residual[0u"),
    ];
    for product in &cooperative {
        mistakes.extend([
            (
                product,
                "output < p.matrix.n_rows",
                "output + 1u < p.matrix.n_rows",
            ),
            (
                product,
                "output < p.matrix.n_rows",
                "output <= p.matrix.n_rows",
            ),
            (product, "row < place.n_rows", "row <= place.n_rows"),
            (product, "row < place.n_rows", "row + 1u < place.n_rows"),
            (product, "unit < n_units", "unit + 1u < n_units"),
            (product, " * scales[row]", ""),
            (product, "= bias[column]", "= bias[output + 1u]"),
            (product, "= residual[row", "= residual[0u"),
            (product, "product[at] = value;", ""),
            (
                product,
                "decode8(header, quarter + 1u)",
                "decode8(header, quarter)",
            ),
            (
                product,
                "src_starts.y + next * 8u",
                "src_starts.x + next * 8u",
            ),
            (product, "full = TILE_LENGTH - full;", ""),
        ]);
    }
    for (product, from, to) in mistakes {
        let kernel = altered(&product.kernel, from, to);
        let mistaken = Product { kernel, ..*product };
        let dst = run_product(context, &inputs, &mistaken);
        assert!(
            product.judge(&inputs, &dst).is_err(),
            "`{to}` for `{from}` was not noticed"
        );
    }
    for (from, to) in [
        ("decode8(header, eight % 4u)", "decode8(header, 0u)"),
        ("dst[at + 1u] = weight.high * p.scale;", ""),
        ("row >= batch.n_rows", "row + 1u >= batch.n_rows"),
    ] {
        let dst = run_embed(context, &inputs, &altered(&embed::KERNEL, from, to));
        assert!(
            inputs.judge_embed(&dst).is_err(),
            "`{to}` for `{from}` was not noticed"
        );
    }
}
