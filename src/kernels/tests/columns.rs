//! Parts of rows, and rows that are all the first one.

use super::{
    Random, Values, altered, first_difference, gpu, padded, run_kernel, unpadded, unwritten,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::repack::Shard;
use crate::kernels::{BatchParams, Kernel, Variant, embed, row_stride, take_columns};

fn batch(n_rows: usize) -> BatchParams {
    BatchParams {
        n_rows: n_rows as u32,
        position: 5,
        n_outputs: 0,
        random: 0,
    }
}

/// Whether of each `period` columns `length` from the `first` on are those of the twin.
fn is_right(
    context: &Context,
    kernel: &Kernel,
    [n_rows, n_groups]: [usize; 2],
    [period, first, length]: [usize; 3],
) -> bool {
    let [from, width] = [period, length].map(|columns| n_groups * columns);
    let src = Values::Random.fill(&mut Random::new(from as u64), n_rows * from);
    let mut want = vec![0.0; n_rows * width];
    take_columns::twin(&src, first, [length, period], &mut want);
    let params = take_columns::Params::new([from, width], first, [length, period]);
    let buffers = run_kernel(
        context,
        kernel,
        &Variant::PLAIN,
        batch(n_rows),
        bytemuck::bytes_of(&params),
        take_columns::grid(&params, n_rows),
        &[&padded(&src, from), &unwritten(n_rows, width)],
    );
    let got = unpadded(buffers.last().unwrap(), width);
    first_difference(&got, &want, |_| 0.0).is_none()
}

/// Rows and groups of a row; the columns of a group, the first that is taken, and how many.
const CASES: [([usize; 2], [usize; 3]); 11] = [
    ([1, 1], [1, 0, 1]),
    ([3, 1], [2, 1, 1]),
    ([2, 1], [96, 48, 48]),
    ([5, 1], [127, 0, 64]),
    ([2, 1], [129, 66, 63]),
    ([4, 1], [257, 128, 129]),
    ([3, 1], [48, 24, 24]),
    ([1, 1], [8960, 8704, 256]),
    ([3, 4], [4, 2, 2]),
    ([2, 2], [48, 24, 24]),
    ([2, 33], [7, 1, 3]),
];

#[test]
fn columns_match_their_twin() {
    let Some(context) = gpu() else { return };
    for (rows, shape) in CASES {
        let right = is_right(context, &take_columns::KERNEL, rows, shape);
        assert!(right, "{rows:?}, {shape:?}");
    }
}

#[test]
fn mistakes_in_columns_are_seen() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("p.first + column", "column"),
        ("column / p.length * p.period", "column"),
        ("column % p.length", "column"),
        (".z * p.src_stride", ".z * p.dst_stride"),
        ("column >= p.width", "column >= p.width - 1u"),
    ] {
        let kernel = altered(&take_columns::KERNEL, &Variant::PLAIN, from, to);
        let mut cases = CASES.iter();
        let is_seen = cases.any(|&(rows, shape)| !is_right(context, &kernel, rows, shape));
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

/// The rows of an embedding that names by nothing, of two shards of which the second begins with row 1.
fn first_rows(context: &Context, kernel: &Kernel, weights: &[f32], n_cols: usize) -> Vec<f32> {
    const N_ROWS: usize = 3;
    let mut dst = unwritten(N_ROWS, n_cols);
    for (first_row, n_rows) in [(0, 1), (1, 2)] {
        let rows = &weights[first_row * n_cols..][..n_rows * n_cols];
        let shard = Shard {
            ty: WeightType::F32,
            first_row,
            n_rows,
            n_cols,
        };
        let mut words = vec![0; shard.words()];
        let bytes = bytemuck::cast_slice(rows);
        shard.repack_rows(0..n_rows, bytes, &mut Vec::new(), |offset, part| {
            words[offset..][..part.len()].copy_from_slice(part);
        });
        let params = embed::Params {
            matrix: shard.matrix(),
            dst_stride: row_stride(n_cols) as u32,
            scale: 2.0,
            named_by: embed::BY_NOTHING,
            padding: 0,
        };
        let mut buffers = run_kernel(
            context,
            kernel,
            &Variant::PLAIN,
            batch(N_ROWS),
            bytemuck::bytes_of(&params),
            embed::grid(&params, N_ROWS),
            &[
                bytemuck::cast_slice(&[2u32, 1, 0]),
                bytemuck::cast_slice(&words),
                &dst,
            ],
        );
        dst = buffers.swap_remove(2);
    }
    unpadded(&dst, n_cols)
}

#[test]
fn rows_that_nothing_names_are_the_first_and_mistakes_are_seen() {
    let Some(context) = gpu() else { return };
    for n_cols in [4, 48, 127] {
        let weights = Values::Random.fill(&mut Random::new(3), 3 * n_cols);
        let row = |_| weights[..n_cols].iter().map(|weight| weight * 2.0);
        let want: Vec<f32> = (0..3).flat_map(row).collect();
        let got = first_rows(context, &embed::KERNEL, &weights, n_cols);
        assert!(first_difference(&got, &want, |_| 0.0).is_none());
        for (from, to) in [
            ("named_by == BY_NOTHING", "named_by == BY_NOTHING + 1u"),
            ("0u - p.matrix", "1u - p.matrix"),
        ] {
            let kernel = altered(&embed::KERNEL, &Variant::PLAIN, from, to);
            let got = first_rows(context, &kernel, &weights, n_cols);
            let difference = first_difference(&got, &want, |_| 0.0);
            assert!(difference.is_some(), "`{from}` as `{to}`");
        }
    }
}
