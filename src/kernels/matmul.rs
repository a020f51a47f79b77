//! The product of many rows with a weight matrix: prefill.

use super::repack::Matrix;
use super::{Access, Kernel, Uses, grid as grid_of};
use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

/// Parameters of this kernel and of [`super::matmul_coop`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the weights; it gives columns `first_row..first_row + n_rows` of `dst`.
    pub(crate) matrix: Matrix,
    /// Elements from a row of `src` to the next, a multiple of 32.
    pub(crate) src_stride: u32,
    /// Elements from a row of `dst` to the next.
    pub(crate) dst_stride: u32,
    /// 0: a row for each token of the batch, 1: a row for each output.
    pub(crate) extent: u32,
    /// Whether `bias` is added; where it is not, any buffer may be bound for it.
    pub(crate) has_bias: u32,
    /// Whether `residual` is added, and what it is added to written to `product`; both are shaped like
    /// `dst`. Where it is not, any buffer but that of `dst` may be bound for the residual, and `dst`
    /// itself for the product.
    pub(crate) has_residual: u32,
    pub(crate) padding: [u32; 3],
}

/// Outputs and rows of a tile.
pub(crate) const TILE: usize = 64;

/// The kernel.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matmul",
    wgsl: include_str!("matmul.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("bias", Access::Read),
        ("residual", Access::Read),
        ("product", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matmul: true,
        output: true,
        ..Uses::NOTHING
    },
};

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(
        (params.matrix.n_rows as usize).div_ceil(TILE),
        n_rows.div_ceil(TILE),
    )
}

/// `dst[row, j] = sum_i src[row, i] * weights[j, i] (+ bias[j])`, in `f64`.
///
/// `weights` decodes a row of `n_cols` weights; `src` is `[n_rows, n_cols]`, `dst` `[n_rows, n_out]`.
pub(crate) fn twin(
    weights: &(dyn Fn(usize, &mut [f32]) + Sync),
    n_cols: usize,
    src: &[f32],
    bias: Option<&[f32]>,
    dst: &mut [f32],
) {
    /// Rows of weights that a pass over `src` serves.
    const BLOCK: usize = 8;
    let n_rows = src.len() / n_cols;
    if n_rows == 0 {
        return;
    }
    let n_out = dst.len() / n_rows;
    let src: Vec<f64> = src.iter().copied().map(f64::from).collect();
    let mut by_output = vec![0.0; n_out * n_rows];
    by_output
        .par_chunks_mut(BLOCK * n_rows)
        .enumerate()
        .for_each(|(block, sums)| {
            let mut decoded = vec![0.0; n_cols];
            let mut rows = Vec::with_capacity(BLOCK * n_cols);
            for j in 0..sums.len() / n_rows {
                weights(block * BLOCK + j, &mut decoded);
                rows.extend(decoded.iter().copied().map(f64::from));
            }
            for (row, src) in src.chunks_exact(n_cols).enumerate() {
                for (j, weights) in rows.chunks_exact(n_cols).enumerate() {
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[block * BLOCK + j]));
                    sums[j * n_rows + row] = (dot(weights, src) + bias) as f32;
                }
            }
        });
    for (row, dst) in dst.chunks_exact_mut(n_out).enumerate() {
        for (j, value) in dst.iter_mut().enumerate() {
            *value = by_output[j * n_rows + row];
        }
    }
}

/// The dot product, in eight sums so that it vectorises.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_eights.iter().zip(b_eights) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twin_is_the_definition() {
        for (n_rows, n_cols, n_out) in [(1, 1, 1), (3, 17, 9), (2, 8, 20)] {
            let src: Vec<f32> = (0..n_rows * n_cols)
                .map(|i| (i as f32 * 0.7).sin())
                .collect();
            let weight = |j: usize, i: usize| ((j * n_cols + i) as f32 * 0.3).cos();
            let bias: Vec<f32> = (0..n_out).map(|j| j as f32).collect();
            let decode = |j: usize, row: &mut [f32]| {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(i, value)| *value = weight(j, i));
            };
            let mut dst = vec![f32::NAN; n_rows * n_out];
            twin(&decode, n_cols, &src, Some(&bias), &mut dst);
            for row in 0..n_rows {
                for j in 0..n_out {
                    let mut sum = f64::from(bias[j]);
                    for i in 0..n_cols {
                        sum += f64::from(src[row * n_cols + i]) * f64::from(weight(j, i));
                    }
                    let error = (f64::from(dst[row * n_out + j]) - sum).abs();
                    assert!(
                        error <= 1e-6 * sum.abs().max(1.0),
                        "row {row}, output {j}: {error}"
                    );
                }
            }
        }
    }
}
