//! The product of each head of a row with a matrix of its own.

use super::repack::Matrix;
use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// Shapes of [`Op::HeadMatMul`](crate::plan::Op::HeadMatMul).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) n_head: usize,
    /// Elements of a head of the source, for the kernel a multiple of 4.
    pub(crate) src_dim: usize,
    /// Rows of a head's matrix.
    pub(crate) n_out: usize,
    /// Elements of a head of the source that are multiplied; the kernel takes a multiple of 4.
    pub(crate) n_cols: usize,
}

impl Heads {
    /// Elements of a head of the source that are not multiplied.
    fn n_rest(&self) -> usize {
        self.src_dim - self.n_cols
    }

    /// Elements of a head of the result.
    pub(crate) fn dst_dim(&self) -> usize {
        self.n_rest() + self.n_out
    }
}

/// The `Params` of `head_matvec.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    /// The shard of the weights: rows of some heads, or a part of one.
    pub(crate) matrix: Matrix,
    pub(crate) src_stride: u32,
    pub(crate) row_quads: u32,
    pub(crate) dst_stride: u32,
    /// [`super::matvec::n_pairs`].
    pub(crate) n_pairs: u32,
    pub(crate) n_head: u32,
    pub(crate) src_dim: u32,
    pub(crate) n_out: u32,
    pub(crate) n_rest: u32,
}

impl Params {
    pub(crate) fn new(matrix: Matrix, n_pairs: u32, heads: &Heads) -> Params {
        Params {
            matrix,
            src_stride: 4,
            row_quads: row_stride(heads.n_head * heads.src_dim) as u32 / 4,
            dst_stride: row_stride(heads.n_head * heads.dst_dim()) as u32,
            n_pairs,
            n_head: heads.n_head as u32,
            src_dim: heads.src_dim as u32,
            n_out: heads.n_out as u32,
            n_rest: heads.n_rest() as u32,
        }
    }

    /// Workgroups that share the products of a head.
    fn n_blocks(&self) -> u32 {
        self.n_out.div_ceil(2 * self.n_pairs)
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "head_matvec",
    wgsl: include_str!("head_matvec.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        matvec: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.n_blocks() * params.n_head) as usize, n_rows)
}

/// `dst[row, h] = [src[row, h, n_cols..], matrix[h] src[row, h, ..n_cols]]`; `weights` decodes a row of all heads'
/// matrices.
pub(crate) fn twin(
    weights: &(dyn Fn(usize, &mut [f32]) + Sync),
    heads: &Heads,
    src: &[f32],
    dst: &mut [f32],
) {
    let Heads {
        n_head,
        src_dim,
        n_out,
        n_cols,
    } = *heads;
    let n_rows = src.len() / (n_head * src_dim);
    for head in 0..n_head {
        let of_head: Vec<&[f32]> = src
            .chunks_exact(src_dim)
            .skip(head)
            .step_by(n_head)
            .collect();
        let multiplied: Vec<f32> = of_head.iter().flat_map(|x| &x[..n_cols]).copied().collect();
        let mut products = vec![0.0; n_rows * n_out];
        let row = |index: usize, out: &mut [f32]| weights(head * n_out + index, out);
        super::matmul::twin(&row, n_cols, &multiplied, None, &mut products);
        let results = dst
            .chunks_exact_mut(heads.dst_dim())
            .skip(head)
            .step_by(n_head);
        for ((dst, src), products) in results.zip(of_head).zip(products.chunks_exact(n_out)) {
            let (rest, of_products) = dst.split_at_mut(heads.n_rest());
            rest.copy_from_slice(&src[n_cols..]);
            of_products.copy_from_slice(products);
        }
    }
}
