//! Both instruction sets against plain sums in `f64`.

use super::super::tests::random;
use super::{RowCells, Rows, Simd};
use crate::gguf::WeightType;
use half::f16;

/// Magnitudes at which a sum could go wrong: nothing, smaller than f16's normal numbers, large.
const SCALES: [f32; 4] = [0.0, 1e-6, 1.0, 3e4];

/// What nothing may leave behind.
const SENTINEL: f32 = -12345.0;

fn paths() -> Vec<Simd> {
    match Simd::detect() {
        Simd::Portable => vec![Simd::Portable],
        #[cfg(target_arch = "x86_64")]
        best @ Simd::Avx2(_) => vec![Simd::Portable, best],
    }
}

/// Lengths that a row of a type can have.
fn lengths(ty: WeightType) -> Vec<usize> {
    match ty.block_len() {
        1 => vec![1, 7, 8, 31, 32, 33, 127, 128, 129, 255, 257, 601],
        block => [1, 2, 3, 5, 18].map(|n_blocks| n_blocks * block).to_vec(),
    }
}

fn scaled(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    random(seed, n).iter().map(|x| scale * x).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// What rounding `f32` sums of these products may cost: each product's share of 2^-24 a few times.
fn bound(a: &[f32], b: &[f32]) -> f64 {
    1e-6 * a
        .iter()
        .zip(b)
        .map(|(a, b)| f64::from((a * b).abs()))
        .sum::<f64>()
}

#[track_caller]
fn assert_close(found: f32, expected: f64, bound: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(
        error <= bound,
        "{what}: {found}, expected {expected}, bound {bound}"
    );
}

#[test]
#[should_panic(expected = "sum: NaN")]
fn a_sum_that_is_not_a_number_fails() {
    assert_close(f32::NAN, 0.0, 1.0, "sum");
}

#[test]
fn decode_gives_the_bits_of_the_files_decoder() {
    for simd in paths() {
        for ty in WeightType::ALL {
            for (seed, scale) in (0..).zip(SCALES) {
                for n in lengths(ty) {
                    let bytes = ty.encode(&scaled(seed, n, scale));
                    let (mut found, mut expected) = (vec![SENTINEL; n], vec![0.0; n]);
                    simd.decode(ty, &bytes, &mut found);
                    ty.decode(&bytes, &mut expected);
                    let differs = |i: &usize| found[*i].to_bits() != expected[*i].to_bits();
                    let first = (0..n).find(differs).map(|i| (i, found[i], expected[i]));
                    assert_eq!(first, None, "{simd:?}, {ty:?}, {n} weights, scale {scale}");
                }
            }
        }
    }
}

#[test]
fn decode_reads_blocks_of_any_quants() {
    for simd in paths() {
        for ty in WeightType::ALL.into_iter().filter(|ty| ty.is_quantised()) {
            for seed in 0..50 {
                // No f16 scale is infinite or not a number where the second bit of each byte is 0.
                let n_bytes = 3 * ty.block_bytes();
                let bytes = random(seed, n_bytes);
                let bytes: Vec<u8> = bytes
                    .iter()
                    .map(|x| (x * 128.0) as i8 as u8 & 0xbf)
                    .collect();
                let n = 3 * ty.block_len();
                let (mut found, mut expected) = (vec![SENTINEL; n], vec![0.0; n]);
                simd.decode(ty, &bytes, &mut found);
                ty.decode(&bytes, &mut expected);
                assert_eq!(found, expected, "{simd:?}, {ty:?}, seed {seed}");
            }
        }
    }
}

#[test]
fn matvec_is_the_sum_of_products() {
    for simd in paths() {
        for ty in WeightType::ALL {
            for (seed, scale) in (0..).zip(SCALES) {
                for n_cols in lengths(ty) {
                    let n_rows = 3;
                    let bytes = ty.encode(&scaled(seed, n_rows * n_cols, scale));
                    let mut weights = vec![0.0; n_rows * n_cols];
                    ty.decode(&bytes, &mut weights);
                    let x = scaled(seed + 100, n_cols, scale);
                    let mut out = vec![SENTINEL; n_rows];
                    simd.matvec(ty, &bytes, &x, &mut out);
                    for (row, weights) in weights.chunks_exact(n_cols).enumerate() {
                        let what = format!("{simd:?}, {ty:?}, {n_cols} columns, row {row}");
                        assert_close(out[row], dot(weights, &x), bound(weights, &x), &what);
                    }
                }
            }
        }
    }
}

/// Rows of both element types, with their values.
fn rows_of(values: &[f32], stride: usize, test: impl Fn(Rows<'_>, &[f32])) {
    test(
        Rows {
            cells: RowCells::F32(values),
            stride,
        },
        values,
    );
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    let bits: Vec<u16> = halves.iter().map(|half| half.to_bits()).collect();
    let values: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
    test(
        Rows {
            cells: RowCells::F16(&bits),
            stride,
        },
        &values,
    );
}

#[test]
fn dots_are_the_sums_of_products() {
    for simd in paths() {
        for (width, gap) in [
            (1, 0),
            (4, 3),
            (8, 0),
            (12, 5),
            (64, 64),
            (80, 1),
            (129, 2),
            (256, 0),
        ] {
            for n_rows in [1, 2, 3, 4, 5, 9] {
                let stride = width + gap;
                let values = random(n_rows as u64, (n_rows - 1) * stride + width);
                let x = random(77, width);
                rows_of(&values, stride, |rows, values| {
                    let mut out = vec![SENTINEL; n_rows];
                    simd.dots(rows, &x, &mut out);
                    for (row, &found) in out.iter().enumerate() {
                        let values = &values[row * stride..][..width];
                        let what = format!("{simd:?}, {width} wide, row {row} of {n_rows}");
                        assert_close(found, dot(values, &x), bound(values, &x), &what);
                    }
                });
            }
        }
    }
}

#[test]
fn weighted_sum_adds_the_weighted_rows() {
    for simd in paths() {
        for (width, gap) in [
            (1, 0),
            (4, 3),
            (8, 0),
            (12, 5),
            (64, 64),
            (80, 1),
            (129, 2),
            (256, 0),
        ] {
            for n_rows in [1, 2, 5, 128] {
                let stride = width + gap;
                let values = random(n_rows as u64, (n_rows - 1) * stride + width);
                let weights = random(77, n_rows);
                rows_of(&values, stride, |rows, values| {
                    let mut out = vec![0.5; width];
                    simd.weighted_sum(rows, &weights, &mut out);
                    for (col, &found) in out.iter().enumerate() {
                        let values: Vec<f32> =
                            (0..n_rows).map(|row| values[row * stride + col]).collect();
                        let expected = 0.5 + dot(&values, &weights);
                        let bound = 1e-6 + bound(&values, &weights);
                        let what = format!("{simd:?}, {n_rows} rows, column {col} of {width}");
                        assert_close(found, expected, bound, &what);
                    }
                });
            }
        }
    }
}

#[test]
fn multiply_adds_the_products_and_nothing_else() {
    for simd in paths() {
        for n_cols in [1, 7, 8, 64, 127, 129, 1024] {
            for n_out in [1, 2, 3, 4, 5, 8] {
                for n_rows in 1..=7 {
                    let stride = n_cols + 3;
                    let panel = random(n_out as u64, n_out * n_cols);
                    let src = random(n_rows as u64, n_rows * stride);
                    let found = multiply(simd, &panel, n_cols, &src, stride, n_rows);
                    for (row, found) in found.iter().enumerate() {
                        let src = &src[row * stride..][..n_cols];
                        let what = format!("{simd:?}, {n_cols} columns, row {row} of {n_rows}");
                        for (j, panel) in panel.chunks_exact(n_cols).enumerate() {
                            let expected = 0.5 + dot(panel, src);
                            let bound = 1e-6 + bound(panel, src);
                            assert_close(found[1 + j], expected, bound, &what);
                        }
                        assert_eq!((found[0], found[n_out + 1]), (0.5, 0.5), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn multiply_gives_a_row_the_same_bits_in_any_company() {
    for simd in paths() {
        let (n_cols, n_out, n_rows) = (129, 7, 5);
        let panel = random(1, n_out * n_cols);
        let src = random(2, n_rows * n_cols);
        let together = multiply(simd, &panel, n_cols, &src, n_cols, n_rows);
        for (row, src) in src.chunks_exact(n_cols).enumerate() {
            for (j, panel) in panel.chunks_exact(n_cols).enumerate() {
                let alone = multiply(simd, panel, n_cols, src, n_cols, 1);
                assert_eq!(
                    alone[0][1],
                    together[row][1 + j],
                    "{simd:?}, row {row}, output {j}"
                );
            }
        }
    }
}

/// Rows of 0.5 to which the outputs are added, but for the first and the last column.
fn multiply(
    simd: Simd,
    panel: &[f32],
    n_cols: usize,
    src: &[f32],
    stride: usize,
    n_rows: usize,
) -> Vec<Vec<f32>> {
    let mut rows = vec![vec![0.5; panel.len() / n_cols + 2]; n_rows];
    let mut dst: Vec<&mut [f32]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
    simd.multiply(panel, n_cols, src, stride, &mut dst, 1);
    rows
}

#[test]
fn f16_widens_to_the_value_of_the_half_crate() {
    for bits in 0..=u16::MAX {
        let (found, expected) = (
            super::portable::f16_to_f32(bits),
            f16::from_bits(bits).to_f32(),
        );
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{bits:#06x}: {found}, expected {expected}");
    }
}
