//! Products of heads with matrices of their own.

use super::matmul::multiply;
use super::simd::Simd;
use super::weights::CpuWeights;
use crate::model::WeightId;
use rayon::prelude::*;

/// `dst[row, h] = [src[row, h, n_cols..], matrix[h] src[row, h, ..n_cols]]`, where a row of `dst` has `width` elements.
pub(super) fn multiply_heads(
    simd: Simd,
    weights: &CpuWeights,
    id: WeightId,
    n_head: usize,
    src: &[f32],
    dst: &mut [f32],
    width: usize,
) {
    let weight = weights.get(id);
    let (n_out, n_cols, dst_dim) = (weight.n_rows / n_head, weight.n_cols, width / n_head);
    let n_rest = dst_dim - n_out;
    let src_dim = n_cols + n_rest;
    let mut of_heads: Vec<Vec<&mut [f32]>> = Vec::new();
    of_heads.resize_with(n_head, Vec::new);
    for (index, dst) in dst.chunks_exact_mut(dst_dim).enumerate() {
        let (rest, products) = dst.split_at_mut(n_rest);
        rest.copy_from_slice(&src[index * src_dim + n_cols..][..n_rest]);
        of_heads[index % n_head].push(products);
    }
    let heads = of_heads.into_par_iter().enumerate();
    heads.for_each(|(head, mut dst)| {
        let first = head * n_out;
        let of_head = |row: usize| &src[(row * n_head + head) * src_dim..][..n_cols];
        if let [dst] = &mut dst[..] {
            let rows = weights.rows(id, first..first + n_out);
            simd.matvec(weight.ty, &rows, of_head(0), dst);
            return;
        }
        let src: Vec<f32> = (0..dst.len()).flat_map(of_head).copied().collect();
        multiply(simd, weights, id, first, None, &src, &mut dst);
    });
}
