//! Cases for the kernels that read weight matrices, their inputs and what is right for them.

use crate::gguf::WeightType;
use crate::kernels::repack::Shard;
use crate::kernels::tests::{Random, SENTINEL, first_difference};
use crate::kernels::{embed, matmul, quantize, row_stride};

/// The factor on the embedding, as gemma-3-270m has it.
pub(super) const SCALE: f32 = 25.298_222;

/// The bound of `matvec.wgsl`, `matvec_int8.wgsl` and `matmul.wgsl`, in units of
/// `f32::EPSILON * (sum |w x| + |bias| + |residual|)`.
pub(super) const PRODUCT_BOUND: f64 = 4.0;
/// The bound of `embed.wgsl`, in units of `f32::EPSILON * max |w| * |scale|` of the row.
pub(super) const EMBED_BOUND: f64 = 2.0;

/// How exact a product must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Class {
    /// The bound of `matvec.wgsl`, `matvec_int8.wgsl` and `matmul.wgsl`.
    F32,
    /// That of `matmul_coop.wgsl`.
    F16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Values {
    /// Weights of several magnitudes, so that some scales are subnormal halves.
    Usual,
    /// Activations of zero.
    Zeros,
    /// Activations of 1e-30.
    Tiny,
    /// Activations of 1e6, weights of 1e4.
    Huge,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) ty: WeightType,
    pub(super) n_out: usize,
    pub(super) n_cols: usize,
    pub(super) n_rows: usize,
    pub(super) n_shards: usize,
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) values: Values,
}

/// Shapes for a type: rows of weights, one of three widths, rows of activations, shards, bias, residual
/// and values.
pub(super) fn cases(ty: WeightType) -> Vec<Case> {
    let widths = match ty {
        WeightType::F32 => [1, 129, 2077],
        WeightType::F16 | WeightType::BF16 => [33, 127, 576],
        _ => [1, 3, 65].map(|n| {
            if ty.block_len() == 256 {
                256 * n.min(9)
            } else {
                32 * n
            }
        }),
    };
    [
        (1, 0, 1, 1, false, false, Values::Usual),
        (3, 1, 3, 1, true, false, Values::Usual),
        (127, 1, 65, 3, true, true, Values::Usual),
        (130, 2, 64, 3, false, true, Values::Usual),
        (65, 2, 1, 1, true, true, Values::Huge),
        (64, 1, 3, 1, false, false, Values::Tiny),
        (67, 0, 130, 1, true, true, Values::Zeros),
        (129, 1, 130, 3, false, false, Values::Huge),
    ]
    .into_iter()
    .zip(1..)
    .map(
        |((n_out, width, n_rows, n_shards, bias, residual, values), seed)| {
            let n_cols = widths[width];
            Case {
                seed,
                ty,
                n_out,
                n_cols,
                n_rows,
                n_shards,
                bias,
                residual,
                values,
            }
        },
    )
    .collect()
}

/// The inputs of a case.
pub(super) struct Inputs {
    pub(super) case: Case,
    pub(super) file: Vec<u8>,
    pub(super) src: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) residual: Option<Vec<f32>>,
}

impl Inputs {
    pub(super) fn new(case: Case) -> Inputs {
        let mut random = Random::new(case.seed);
        let mut file = Vec::new();
        for row in 0..case.n_out {
            let magnitude = match case.values {
                Values::Usual => [0.1, 1.0, 1e-3, 1e-5][row % 4],
                Values::Zeros | Values::Tiny => 1.0,
                Values::Huge => 1e4,
            };
            let weights: Vec<f32> = (0..case.n_cols)
                .map(|_| random.signed() * magnitude)
                .collect();
            file.extend(case.ty.encode(&weights));
        }
        let magnitude = match case.values {
            Values::Usual => 1.0,
            Values::Zeros => 0.0,
            Values::Tiny => 1e-30,
            Values::Huge => 1e6,
        };
        let src = (0..case.n_rows * case.n_cols)
            .map(|_| random.signed() * magnitude)
            .collect();
        let bias = case
            .bias
            .then(|| (0..case.n_out).map(|_| random.signed()).collect());
        let residual = case.residual.then(|| {
            (0..case.n_rows * case.n_out)
                .map(|_| random.signed())
                .collect()
        });
        Inputs {
            case,
            file,
            src,
            bias,
            residual,
        }
    }

    /// `src` as int8 stands for it.
    pub(super) fn int8_src(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.src.len()];
        quantize::twin(&self.src, self.case.n_cols, &mut values);
        values
    }

    fn decode(&self, row: usize, out: &mut [f32]) {
        let bytes = self.case.ty.row_bytes(self.case.n_cols);
        self.case.ty.decode(&self.file[row * bytes..][..bytes], out);
    }

    /// The shards of the weights with their words.
    pub(super) fn shards(&self) -> Vec<(Shard, Vec<u32>)> {
        let Case {
            ty,
            n_out,
            n_cols,
            n_shards,
            ..
        } = self.case;
        let step = n_out.div_ceil(n_shards);
        (0..n_out)
            .step_by(step)
            .map(|first_row| {
                let n_rows = step.min(n_out - first_row);
                let shard = Shard {
                    ty,
                    first_row,
                    n_rows,
                    n_cols,
                };
                let bytes = ty.row_bytes(n_cols);
                let file = &self.file[first_row * bytes..][..n_rows * bytes];
                let mut words = vec![0; shard.words()];
                shard.repack_rows(0..n_rows, file, &mut Vec::new(), |offset, part| {
                    words[offset..][..part.len()].copy_from_slice(part);
                });
                (shard, words)
            })
            .collect()
    }

    /// The largest error of a product with `src` in units of its bound; or what is wrong with it.
    pub(super) fn judge_product(
        &self,
        class: Class,
        dst: &[f32],
        src: &[f32],
    ) -> Result<f64, String> {
        let decode = |row: usize, out: &mut [f32]| self.decode(row, out);
        let expected = self.product(&decode, src, |value| value);
        let decode = |row: usize, out: &mut [f32]| {
            self.decode(row, out);
            out.iter_mut().for_each(|value| *value = value.abs());
        };
        let src: Vec<f32> = src.iter().map(|value| value.abs()).collect();
        let sizes = self.product(&decode, &src, f32::abs);
        let Case { n_out, n_cols, .. } = self.case;
        let src_sums: Vec<f64> = src
            .chunks_exact(n_cols)
            .map(|row| row.iter().map(|&x| f64::from(x)).sum())
            .collect();
        self.judge(dst, n_out, &expected, |i| match class {
            Class::F32 => PRODUCT_BOUND * f64::from(sizes[i]),
            Class::F16 => {
                let absolute = 2.0_f64.powi(-25) * src_sums[i / n_out];
                (2.0_f64.powi(-10) * f64::from(sizes[i]) + absolute) / f64::from(f32::EPSILON)
            }
        })
    }

    /// The twin's product, plus what `added` makes of bias and residual.
    fn product(
        &self,
        decode: &(dyn Fn(usize, &mut [f32]) + Sync),
        src: &[f32],
        added: fn(f32) -> f32,
    ) -> Vec<f32> {
        let Case {
            n_out,
            n_cols,
            n_rows,
            ..
        } = self.case;
        let mapped = |values: &Vec<f32>| values.iter().copied().map(added).collect::<Vec<_>>();
        let bias = self.bias.as_ref().map(mapped);
        let mut product = vec![0.0; n_rows * n_out];
        matmul::twin(decode, n_cols, src, bias.as_deref(), &mut product);
        if let Some(residual) = self.residual.as_ref().map(mapped) {
            let sum = |(value, residual): (&mut f32, f32)| *value += residual;
            product.iter_mut().zip(residual).for_each(sum);
        }
        product
    }

    /// Compares `dst`, whose padding must be zero or unwritten and whose last row unwritten, with the
    /// dense `expected`; `bound` is in units of `f32::EPSILON`.
    fn judge(
        &self,
        dst: &[f32],
        width: usize,
        expected: &[f32],
        bound: impl Fn(usize) -> f64,
    ) -> Result<f64, String> {
        let unwritten = |value: &f32| value.to_bits() == SENTINEL;
        let (rows, last) = dst.split_at(self.case.n_rows * row_stride(width));
        let mut dense = Vec::new();
        for row in rows.chunks_exact(row_stride(width)) {
            let (row, padding) = row.split_at(width);
            dense.extend_from_slice(row);
            if !padding
                .iter()
                .all(|value| *value == 0.0 || unwritten(value))
            {
                return Err(format!("{:?}: the padding of a row was written", self.case));
            }
        }
        if !last.iter().all(unwritten) {
            return Err(format!(
                "{:?}: a row behind the last was written",
                self.case
            ));
        }
        let bound = |i| bound(i) * f64::from(f32::EPSILON);
        if let Some(difference) = first_difference(&dense, expected, bound) {
            return Err(format!("{:?}: {difference}", self.case));
        }
        let errors = dense
            .iter()
            .zip(expected)
            .map(|(got, want)| f64::from(*got) - f64::from(*want));
        let of_bound = |(i, error): (usize, f64)| {
            if error == 0.0 {
                0.0
            } else {
                error.abs() / bound(i)
            }
        };
        Ok(errors.enumerate().map(of_bound).fold(0.0, f64::max))
    }

    pub(super) fn tokens(&self) -> Vec<u32> {
        let mut random = Random::new(self.case.seed + 100);
        let last = self.case.n_out as f32 - 1.0;
        (0..self.case.n_rows)
            .map(|_| ((random.signed() + 1.0) / 2.0 * last).round() as u32)
            .collect()
    }

    /// As [`Inputs::judge_product`].
    pub(super) fn judge_embed(&self, dst: &[f32]) -> Result<f64, String> {
        let Case { n_cols, n_rows, .. } = self.case;
        let mut expected = vec![0.0; n_rows * n_cols];
        embed::twin(
            &|row, out| self.decode(row, out),
            &self.tokens(),
            SCALE,
            &mut expected,
        );
        let largest: Vec<f32> = expected
            .chunks_exact(n_cols)
            .map(|row| {
                row.iter()
                    .fold(0.0, |largest, value| value.abs().max(largest))
            })
            .collect();
        self.judge(dst, n_cols, &expected, |i| {
            EMBED_BOUND * f64::from(largest[i / n_cols])
        })
    }
}
