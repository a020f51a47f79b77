//! Activations as 8-bit integers with a scale for each 32 of them, as [`super::matvec`] takes them.

use super::{Access, Kernel, ROW_ALIGNMENT, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// Elements that share a scale.
pub(crate) const UNIT: usize = ROW_ALIGNMENT;

/// The `Params` of `quantize.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    /// Elements from a row of `src` to the next.
    pub(crate) stride: u32,
    /// Rows for each token.
    pub(crate) n_slots: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    pub(crate) fn new(width: usize) -> Params {
        Params {
            stride: row_stride(width) as u32,
            n_slots: 1,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "quantize",
    wgsl: include_str!("quantize.wgsl"),
    bindings: &[("src", Access::Read), ("int8", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        quantize: true,
        ..Uses::NOTHING
    },
};

/// Words of a row of `width` elements as `common/quantize.wgsl` lays it out: quants, then scales.
pub(crate) fn row_words(width: usize) -> usize {
    let stride = row_stride(width);
    (stride / 4 + stride / UNIT * 2).next_multiple_of(4)
}

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.stride as usize).div_ceil(4 * 64), n_rows)
}

/// The integers of a unit; the values that they stand for are `q * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quants {
    /// In -127..=127.
    pub(crate) q: [i8; UNIT],
    pub(crate) scale: f32,
}

/// Rounds a unit; elements that it lacks are zero.
///
/// The inverse of the scale is the largest number of 16 significant bits with which the largest
/// magnitude becomes at most 127, found by whole numbers: it is the same on every device, and so are
/// the products with it and their rounding. Where a value is not finite the scale is not a number, and so is
/// every product with the unit.
pub(crate) fn quantize_unit(values: &[f32]) -> Quants {
    if !values.iter().all(|value| value.is_finite()) {
        return Quants {
            q: [0; UNIT],
            scale: f32::NAN,
        };
    }
    let max = values
        .iter()
        .fold(0.0_f32, |max, value| max.max(value.abs()));
    let exponent = max.to_bits() >> 23;
    // The inverse would be too large a number.
    if exponent < 10 {
        return Quants {
            q: [0; UNIT],
            scale: 0.0,
        };
    }
    let mantissa = max.to_bits() & 0x7f_ffff | 0x80_0000;
    let power = f32::from_bits((245 - exponent.min(240)) << 23); // 2^(118 - exponent)
    let inverse = ((127 << 24) / ((mantissa >> 8) + 1)) as f32 * power;
    let mut q = [0; UNIT];
    for (q, value) in q.iter_mut().zip(values) {
        *q = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    Quants {
        q,
        scale: 1.0 / inverse,
    }
}

/// The values that the integers stand for; `src` and `dst` are `[n_rows, width]`.
pub(crate) fn twin(src: &[f32], width: usize, dst: &mut [f32]) {
    let rows = src.chunks_exact(width).zip(dst.chunks_exact_mut(width));
    for (src, dst) in rows {
        for (src, dst) in src.chunks(UNIT).zip(dst.chunks_mut(UNIT)) {
            let Quants { q, scale } = quantize_unit(src);
            for (value, q) in dst.iter_mut().zip(q) {
                *value = f32::from(q) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_becomes_127_and_nothing_moves_by_more_than_half_a_step() {
        for magnitude in [1e-34, 1e-20, 0.3, 1.0, 127.0, 65504.0, 1e30] {
            let values: Vec<f32> = (0..UNIT)
                .map(|i| (i as f32 - 11.3) / 20.7 * magnitude)
                .collect();
            let Quants { q, scale } = quantize_unit(&values);
            assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127));
            for (q, value) in q.into_iter().zip(values) {
                let error = (f32::from(q) * scale - value).abs();
                assert!(error <= 0.501 * scale, "{value}: {error} of {scale}");
            }
        }
    }

    #[test]
    fn ties_are_rounded_to_even() {
        // Of a unit up to 1; its products with halves of the scale are exact.
        let inverse = ((127_u32 << 24) / 0x8001) as f32 * (-9.0_f32).exp2();
        let scale = 1.0 / inverse;
        let Quants { q, scale: found } =
            quantize_unit(&[1.0, 0.5 * scale, 1.5 * scale, -2.5 * scale]);
        assert_eq!(found, scale);
        assert_eq!(q[..4], [127, 0, 2, -2]);
    }

    #[test]
    fn a_unit_without_a_usable_scale_is_zero() {
        for max in [0.0, 1e-40, 1e-36] {
            let Quants { q, scale } = quantize_unit(&[max, -max / 2.0]);
            assert_eq!((q, scale), ([0; UNIT], 0.0));
        }
    }

    #[test]
    fn a_unit_with_a_value_that_is_not_finite_is_no_number() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantize_unit(&[1.0, value, 3.0]).scale.is_nan());
        }
    }

    #[test]
    fn magnitudes_beyond_the_scales_are_cut() {
        let Quants { q, scale } = quantize_unit(&[f32::MAX, -1e36, 1e30]);
        assert!(scale.is_normal());
        assert_eq!(q[..2], [127, -127]);
    }

    #[test]
    fn units_end_with_their_row() {
        let src: Vec<f32> = (0..2 * 33)
            .map(|i| if i == 32 { 1e6 } else { 1.0 })
            .collect();
        let mut dst = vec![f32::NAN; src.len()];
        twin(&src, 33, &mut dst);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b;
        assert!(dst.iter().zip(&src).all(close), "{dst:?}");
    }
}
