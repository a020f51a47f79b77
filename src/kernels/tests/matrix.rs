//! The kernels that read weight matrices, on a GPU, against their twins.

mod inputs;

use self::inputs::{Case, EMBED_BOUND, Inputs, PRODUCT_BOUND, SCALE, Values, cases};
use super::{gpu, padded, run_kernel, unwritten};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::{BatchParams, Kernel, Variant, embed, matmul, matvec, row_stride};
use crate::kv_cache::KvType;

/// A kernel that computes a product.
struct Product {
    kernel: Kernel,
    grid: fn(&matmul::Params, usize) -> [u32; 3],
}

const MATMUL: Product = Product {
    kernel: matmul::KERNEL,
    grid: matmul::grid,
};
const MATVEC: Product = Product {
    kernel: matvec::KERNEL,
    grid: matvec::grid,
};

fn batch(n_rows: usize, n_outputs: usize) -> BatchParams {
    let [n_rows, n_outputs] = [n_rows, n_outputs].map(|count| count as u32);
    BatchParams {
        n_rows,
        position: 7,
        n_outputs,
        padding: 0,
    }
}

fn variant(inputs: &Inputs) -> Variant {
    Variant {
        weight: inputs.case.ty,
        kv: KvType::F32,
        subgroups: false,
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
    let src = padded(&inputs.src, n_cols);
    let bias = inputs
        .bias
        .as_ref()
        .map_or(vec![0; 4], |bias| padded(bias, n_out));
    let extent = (seed % 2) as u32;
    let (n_tokens, n_outputs) = if extent == 0 {
        (n_rows, 0)
    } else {
        (n_rows + 1, n_rows)
    };
    let mut dst = unwritten(n_rows + 1, n_out);
    for (shard, words) in inputs.shards() {
        let params = matmul::Params {
            matrix: shard.matrix(),
            src_stride: row_stride(n_cols) as u32,
            dst_stride: row_stride(n_out) as u32,
            extent,
            has_bias: u32::from(inputs.bias.is_some()),
        };
        let mut buffers = run_kernel(
            context,
            &product.kernel,
            &variant(inputs),
            batch(n_tokens, n_outputs),
            bytemuck::bytes_of(&params),
            (product.grid)(&params, n_rows),
            &[bytemuck::cast_slice(&words), &src, &bias, &dst],
        );
        dst = buffers.swap_remove(3);
    }
    bytemuck::pod_collect_to_vec(&dst)
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
            &variant(inputs),
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

fn check_products(context: &Context, product: &Product) {
    let mut worst = 0.0_f64;
    for case in WeightType::ALL.into_iter().flat_map(cases) {
        let inputs = Inputs::new(case);
        match inputs.judge_product(&run_product(context, &inputs, product)) {
            Ok(error) => worst = worst.max(error),
            Err(message) => panic!("{}: {message}", product.kernel.name),
        }
    }
    println!(
        "{}: largest error {:.2} eps",
        product.kernel.name,
        worst * PRODUCT_BOUND
    );
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
    check_products(context, &MATMUL);
}

#[test]
fn matvec_agrees_with_its_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    check_products(context, &MATVEC);
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
    let name = String::leak(format!("{name} with `{to}`"));
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
        values: Values::Usual,
    };
    let inputs = Inputs::new(case);
    for (product, from, to) in [
        (
            &MATVEC,
            "&& j < p.matrix.n_rows",
            "&& j + 1u < p.matrix.n_rows",
        ),
        (&MATVEC, "row >= n_rows", "row + 1u >= n_rows"),
        (
            &MATVEC,
            "decode8(header3, quarter)",
            "decode8(header3, 3u - quarter)",
        ),
        (&MATVEC, "sum += bias[column]", "sum += bias[0u]"),
        (
            &MATVEC,
            "lane < n_sums && j < p.matrix.n_rows",
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
    ] {
        let kernel = altered(&product.kernel, from, to);
        let mistaken = Product {
            kernel,
            grid: product.grid,
        };
        let dst = run_product(context, &inputs, &mistaken);
        assert!(
            inputs.judge_product(&dst).is_err(),
            "`{to}` was not noticed"
        );
    }
    for (from, to) in [
        ("decode8(header, eight % 4u)", "decode8(header, 0u)"),
        ("dst[at + 1u] = weight.high * p.scale;", ""),
        ("row >= batch.n_rows", "row + 1u >= batch.n_rows"),
    ] {
        let dst = run_embed(context, &inputs, &altered(&embed::KERNEL, from, to));
        assert!(inputs.judge_embed(&dst).is_err(), "`{to}` was not noticed");
    }
}
