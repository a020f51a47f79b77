//! The kernels that read weight matrices, on a GPU, against their twins.

mod codebooks;
mod decoders;
mod inputs;
mod mistakes;

use self::inputs::{Case, Class, EMBED_BOUND, Inputs, PRODUCT_BOUND, SCALE, Values, cases};
use super::{
    SENTINEL, assert_close, gpu, int8_rows, padded, run_kernel, tiles_of, unwritten,
    unwritten_words,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::matmul_coop::{CooperativeMatrix, Tile};
use crate::kernels::repack::Matrix;
use crate::kernels::teams::{FewRows, Of, Teams};
use crate::kernels::{
    self, BatchParams, Kernel, ROW_ALIGNMENT, Variant, embed, f16_rows, matmul, matmul_coop,
    matvec, row_stride,
};
use half::f16;

/// A kernel that computes a product.
struct Product {
    kernel: Kernel,
    /// What the activations become on the way.
    src: Src,
    /// Whether it is one for few rows.
    of_few: bool,
    /// Where it is not to be what the shape suggests.
    teams: Option<Teams>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Src {
    F32,
    Int8,
    F16(Tile),
}

const MATMUL: Product = Product {
    kernel: matmul::KERNEL,
    src: Src::F32,
    of_few: false,
    teams: None,
};
const MATVEC: Product = Product {
    kernel: matvec::KERNEL,
    src: Src::F32,
    of_few: true,
    teams: None,
};
const MATVEC_INT8: Product = Product {
    kernel: matvec::KERNEL,
    src: Src::Int8,
    of_few: true,
    teams: None,
};

impl Product {
    fn takes(&self, ty: WeightType) -> bool {
        self.src != Src::Int8 || ty.is_quantised()
    }

    fn few_src(&self) -> kernels::Src {
        match self.src {
            Src::Int8 => kernels::Src::Int8,
            Src::F32 | Src::F16(_) => kernels::Src::F32,
        }
    }

    fn few_rows(&self, ty: WeightType, n_out: usize, units_per_row: usize) -> FewRows {
        FewRows {
            of: Of::Matvec,
            weight: ty,
            src: self.few_src(),
            n_out,
            units_per_row,
        }
    }

    fn teams(&self, matrix: Matrix) -> Teams {
        let [n_out, units] = [matrix.n_rows, matrix.units_per_row].map(|count| count as usize);
        let rule = self.few_rows(WeightType::Q4_0, n_out, units).rule();
        self.teams.unwrap_or(rule)
    }

    fn variant(&self, inputs: &Inputs) -> Variant {
        let tile = match self.src {
            Src::F16(tile) => Some(tile),
            Src::F32 | Src::Int8 => None,
        };
        Variant {
            src: self.few_src(),
            tile,
            ..variant(inputs)
        }
    }

    fn takes_rows(&self, n_cols: usize) -> bool {
        let units = n_cols.div_ceil(ROW_ALIGNMENT);
        match self.src {
            Src::F16(tile) => units.is_multiple_of(tile.units),
            Src::F32 | Src::Int8 => true,
        }
    }

    /// The buffers that hold the activations.
    fn src_buffers(
        &self,
        context: &Context,
        inputs: &Inputs,
        batch: BatchParams,
        extent: u32,
    ) -> Vec<Vec<u8>> {
        match self.src {
            Src::F32 => vec![padded(&inputs.src, inputs.case.n_cols)],
            Src::Int8 => vec![int8_rows(&inputs.src, inputs.case.n_cols)],
            Src::F16(_) => run_f16_rows(context, inputs, batch, extent).to_vec(),
        }
    }

    /// Runs it over a shard of the weights; gives back `product` and `dst`.
    fn run_shard(
        &self,
        context: &Context,
        inputs: &Inputs,
        matrix: Matrix,
        batch: BatchParams,
        extent: u32,
        storage: &[&[u8]],
    ) -> [Vec<u8>; 2] {
        let Case {
            n_out,
            n_cols,
            n_rows,
            ..
        } = inputs.case;
        let teams = self.teams(matrix);
        let matrix = Matrix {
            team_size: teams.size,
            ..matrix
        };
        let [src_stride, dst_stride] = [n_cols, n_out].map(|width| row_stride(width) as u32);
        let has_bias = u32::from(inputs.bias.is_some());
        let has_residual = u32::from(inputs.residual.is_some());
        let of_many = matmul::Params {
            matrix,
            src_stride,
            dst_stride,
            extent,
            has_bias,
            has_residual,
            padding: [0; 3],
        };
        let of_few = matvec::Params {
            matrix,
            src_stride,
            dst_stride,
            n_pairs: teams.n_pairs(),
            has_bias,
            has_residual,
            padding: [0; 3],
        };
        let (params, grid) = match self.src {
            _ if self.of_few => (bytemuck::bytes_of(&of_few), matvec::grid(&of_few, n_rows)),
            Src::F16(tile) => {
                let grid = matmul_coop::grid(tile, &of_many, n_rows);
                (bytemuck::bytes_of(&of_many), grid)
            }
            _ => (bytemuck::bytes_of(&of_many), matmul::grid(&of_many, n_rows)),
        };
        let variant = teams.put_into(self.variant(inputs));
        let mut buffers = run_kernel(
            context,
            &self.kernel,
            &variant,
            batch,
            params,
            grid,
            storage,
        );
        let dst = buffers.pop().expect("dst is the last");
        let product = buffers.pop().expect("product is in front of it");
        [product, dst]
    }

    /// The activations as the kernel sees them.
    fn src(&self, inputs: &Inputs) -> Vec<f32> {
        match self.src {
            Src::Int8 => inputs.int8_src(),
            Src::F32 | Src::F16(_) => inputs.src.clone(),
        }
    }

    /// The class of precision that it is in.
    fn class(&self) -> Class {
        match self.src {
            Src::F32 | Src::Int8 => Class::F32,
            Src::F16(_) => Class::F16,
        }
    }

    fn judge(&self, inputs: &Inputs, dst: &[f32]) -> Result<f64, String> {
        inputs.judge_product(self.class(), dst, &self.src(inputs))
    }
}

fn batch(n_rows: usize, n_outputs: usize) -> BatchParams {
    let [n_rows, n_outputs] = [n_rows, n_outputs].map(|count| count as u32);
    BatchParams {
        n_rows,
        position: 7,
        n_outputs,
        random: 0,
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
        tiles_of(matrix)
    });
    let product = |tile| Product {
        kernel: matmul_coop::KERNEL,
        src: Src::F16(tile),
        of_few: false,
        teams: None,
    };
    tiles
        .filter(|tile| tile.workgroup_bytes() <= room)
        .map(product)
        .collect()
}

fn variant(inputs: &Inputs) -> Variant {
    Variant {
        weight: inputs.case.ty,
        ..Variant::PLAIN
    }
}

/// `dst` of a product, `[n_rows + 1, row_stride(n_out)]`: the last row is nobody's.
fn run_product(context: &Context, inputs: &Inputs, product: &Product) -> Vec<f32> {
    let Case {
        seed,
        n_out,
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
    let src = product.src_buffers(context, inputs, batch, extent);
    for (shard, words) in inputs.shards() {
        let mut storage: Vec<&[u8]> = vec![bytemuck::cast_slice(&words)];
        storage.extend(src.iter().map(Vec::as_slice));
        storage.extend([&bias[..], &residual, &without_residual, &dst]);
        [without_residual, dst] =
            product.run_shard(context, inputs, shard.matrix(), batch, extent, &storage);
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
        &variant(inputs),
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
            named_by: 0,
            padding: 0,
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

fn check_products(context: &Context, product: &Product, types: &[WeightType]) {
    let mut worst = 0.0_f64;
    let types = types.iter().copied().filter(|ty| product.takes(*ty));
    let takes = |case: &Case| product.takes_rows(case.n_cols);
    for case in types.flat_map(cases).filter(takes) {
        let inputs = Inputs::new(case);
        match product.judge(&inputs, &run_product(context, &inputs, product)) {
            Ok(error) => worst = worst.max(error),
            Err(message) => panic!("{}: {message}", product.kernel.name),
        }
    }
    match product.class() {
        Class::F32 => println!(
            "{}, {:?}: largest error {:.2} eps",
            product.kernel.name,
            product.src,
            worst * PRODUCT_BOUND
        ),
        Class::F16 => println!(
            "{}, {:?}: largest error {worst:.3} of the bound",
            product.kernel.name, product.src
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
            n_cols: 128,
            n_rows: 9,
            n_shards: 1,
            bias: false,
            residual: false,
            values: Values::Usual,
        });
        let magnitudes = [1e6, 1e30, 1e-10, 0.0, 1e-20, 65504.0, 1e36, 1.0, 1e-30];
        for (row, magnitude) in inputs.src.chunks_exact_mut(128).zip(magnitudes) {
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
fn matvec_of_int8_agrees_with_its_twin_for_every_quantised_weight_type() {
    let Some(context) = gpu() else { return };
    check_products(context, &MATVEC_INT8, &WeightType::ALL);
}

#[test]
fn products_of_few_rows_agree_with_their_twin_for_all_teams() {
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
        let candidates = product.few_rows(inputs.case.ty, 37, 83).candidates();
        assert_eq!(
            candidates.len(),
            if product.src == Src::F32 { 12 } else { 24 }
        );
        for teams in candidates {
            product.teams = Some(teams);
            if let Err(message) = product.judge(&inputs, &run_product(context, &inputs, &product)) {
                panic!("{}, {teams}: {message}", product.kernel.name);
            }
        }
    }
}
