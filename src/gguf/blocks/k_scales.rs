//! The eight 6-bit scales and eight 6-bit minimums of a Q4_K or Q5_K block, in 12 bytes.
//!
//! Layout: `get_scale_min_k4` in ggml-quants.c. Scales 0 to 3 are the low 6 bits of bytes 0 to 3,
//! minimums 0 to 3 those of bytes 4 to 7. Scales and minimums 4 to 7 have their low 4 bits in the low
//! and high halves of bytes 8 to 11, and their high 2 bits in the high bits of bytes 0 to 3 and 4 to 7.

use half::f16;

use super::{f16_not_below, quantize, range_with_zero};

/// The scales and the minimums, each 0 to 63.
pub(super) fn unpack(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let unpack = |first: usize, shift: u8| {
        std::array::from_fn(|index| match index {
            0..4 => bytes[first + index] & 63,
            _ => bytes[4 + index] >> shift & 15 | (bytes[first + index - 4] >> 6) << 4,
        })
    };
    (unpack(0, 0), unpack(4, 4))
}

/// The inverse of [`unpack`].
pub(super) fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|index| match index {
        0..4 => scales[index] | scales[index + 4] >> 4 << 6,
        4..8 => mins[index - 4] | mins[index] >> 4 << 6,
        _ => scales[index - 4] & 15 | (mins[index - 4] & 15) << 4,
    })
}

/// The scales of a block in which `weight = d * scale * q - dmin * min`.
pub(super) struct Scales {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) packed: [u8; 12],
    /// `d * scale` of each 32 weights.
    steps: [f32; 8],
    /// `dmin * min` of each 32 weights.
    offsets: [f32; 8],
}

impl Scales {
    /// Scales and minimums, rounded up so that `0..=max` spans the weights.
    pub(super) fn fit(weights: &[f32; 256], max: i32) -> Scales {
        let (groups, _) = weights.as_chunks::<32>();
        let range = |group: usize| range_with_zero(&groups[group]);
        let (dmin, mins) = quantize_up(&std::array::from_fn(|group| -range(group).0));
        let offsets = mins.map(|min| dmin.to_f32() * f32::from(min));
        let (d, scales) = quantize_up(&std::array::from_fn(|group| {
            (range(group).1 + offsets[group]) / max as f32
        }));
        let steps = scales.map(|scale| d.to_f32() * f32::from(scale));
        Scales {
            d,
            dmin,
            packed: pack(&scales, &mins),
            steps,
            offsets,
        }
    }

    /// The quant of the weight at `index` of the block.
    pub(super) fn quantize(&self, index: usize, weight: f32, max: i32) -> u8 {
        let group = index / 32;
        quantize(weight + self.offsets[group], self.steps[group], 0, max) as u8
    }
}

/// A scale and 6-bit integers whose products are not below the values, which are not negative.
fn quantize_up(values: &[f32; 8]) -> (f16, [u8; 8]) {
    let largest = values.iter().fold(0.0_f32, |largest, &x| largest.max(x));
    let d = f16_not_below(largest / 63.0);
    let integer = |x: f32| {
        if x == 0.0 {
            0
        } else {
            (x / d.to_f32()).ceil().min(63.0) as u8
        }
    };
    (d, values.map(integer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_unpack_as_worked_by_hand() {
        let mut bytes = [0; 12];
        bytes[1] = 0b10_000101; // scale 1 = 5; high bits of scale 5 = 2
        bytes[6] = 0b01_111111; // min 2 = 63; high bits of min 6 = 1
        bytes[9] = 0b0000_1001; // low bits of scale 5 = 9
        bytes[10] = 0b0111_0000; // low bits of min 6 = 7
        let (scales, mins) = unpack(&bytes);
        assert_eq!(scales, [0, 5, 0, 0, 0, 2 * 16 + 9, 0, 0]);
        assert_eq!(mins, [0, 0, 63, 0, 0, 0, 16 + 7, 0]);
    }

    #[test]
    fn scales_round_trip_through_their_packing() {
        let scales = [63, 0, 21, 42, 63, 1, 17, 48];
        let mins = [0, 63, 5, 32, 31, 62, 0, 63];
        assert_eq!(unpack(&pack(&scales, &mins)), (scales, mins));
    }
}
