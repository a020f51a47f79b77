//! Weights to the nearest codewords.

use super::Codebook;
use crate::gguf::blocks::least;
use half::f16;
use std::array;

impl<const LEN: usize, const N: usize> Codebook<LEN, N> {
    /// The codeword nearest to the levels that are nearest to the targets.
    pub(in crate::gguf::blocks) fn nearest(&self, targets: [f32; LEN]) -> usize {
        let key = targets.iter().rev().fold(0, |key, target| {
            let distances = self.levels.iter().map(|&l| (target - f32::from(l)).abs());
            key * self.levels.len() + least(distances)
        });
        usize::from(self.nearest[key])
    }

    pub(super) fn find_nearest(&self) -> Vec<u16> {
        let n_levels = self.levels.len();
        let of_key = |mut key: usize| {
            let targets: [i32; LEN] = array::from_fn(|_| {
                let level = self.levels[key % n_levels];
                key /= n_levels;
                i32::from(level)
            });
            let distance = |word: &[i8; LEN]| -> i32 {
                let pairs = word.iter().zip(targets);
                pairs.map(|(&a, b)| (i32::from(a) - b).pow(2)).sum()
            };
            let distances = self.words.iter().map(distance).enumerate();
            distances
                .min_by_key(|&(_, distance)| distance)
                .map_or(0, |(index, _)| index as u16)
        };
        (0..n_levels.pow(LEN as u32)).map(of_key).collect()
    }

    /// The codeword for the magnitudes of `LEN` weights.
    pub(in crate::gguf::blocks) fn of_magnitudes(&self, weights: &[f32], step: f32) -> usize {
        match step {
            0.0 => 0,
            _ => self.nearest(array::from_fn(|i| weights[i].abs() / step)),
        }
    }

    /// The step with the smallest error of the magnitudes, of those that make a level of the largest.
    pub(in crate::gguf::blocks) fn step_of_magnitudes(&self, weights: &[f32]) -> f32 {
        let largest = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let step = |level: i8| largest / f32::from(level);
        let error = |&level: &i8| -> f32 {
            let step = step(level);
            let groups = weights.chunks_exact(LEN);
            let errors = groups.flat_map(|group| {
                let word = self.word(self.of_magnitudes(group, step));
                let pairs = group.iter().zip(word);
                pairs.map(move |(x, &value)| (x.abs() - step * f32::from(value)).powi(2))
            });
            errors.sum()
        };
        step(self.levels[least(self.levels.iter().map(error))])
    }
}

/// What the values of IQ1 are moved by, up or down.
pub(in crate::gguf::blocks) const DELTA: f32 = 0.125;

impl Codebook<8, 2048> {
    /// The codeword for eight weights.
    pub(in crate::gguf::blocks) fn of_values(
        &self,
        weights: &[f32],
        step: f32,
        delta: f32,
    ) -> usize {
        match step {
            0.0 => 0,
            _ => self.nearest(array::from_fn(|i| weights[i] / step - delta)),
        }
    }

    fn error(&self, weights: &[f32], step: f32, delta: f32) -> f32 {
        let errors = weights.chunks_exact(8).flat_map(|group| {
            let word = self.word(self.of_values(group, step, delta));
            let pairs = group.iter().zip(word);
            pairs.map(move |(x, &value)| (x - step * (f32::from(value) + delta)).powi(2))
        });
        errors.sum()
    }

    /// The delta with the smaller error.
    pub(in crate::gguf::blocks) fn delta(&self, weights: &[f32], step: f32) -> f32 {
        let [up, down] = [DELTA, -DELTA].map(|delta| self.error(weights, step, delta));
        if down < up { -DELTA } else { DELTA }
    }

    /// The step with the smallest error, of those that make a value of the largest weight, where so many
    /// weights have a delta together.
    pub(in crate::gguf::blocks) fn step_of_values(&self, weights: &[f32], together: usize) -> f32 {
        let largest = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let steps = [1.0 + DELTA, 1.0 - DELTA, DELTA].map(|value| largest / value);
        let error = |&step: &f32| -> f32 {
            let groups = weights.chunks_exact(together);
            let errors = groups.map(|group| self.error(group, step, self.delta(group, step)));
            errors.sum()
        };
        steps[least(steps.iter().map(error))]
    }
}

/// The signs of eight weights, a bit each.
pub(in crate::gguf::blocks) fn signs_of(weights: &[f32]) -> u8 {
    let signs = weights.iter().take(8).enumerate();
    signs.fold(0, |signs, (i, &x)| signs | u8::from(x < 0.0) << i)
}

/// The same, but for the smallest weight, where that makes the number of minus signs even.
pub(in crate::gguf::blocks) fn even_signs_of(weights: &[f32]) -> u8 {
    let signs = signs_of(weights);
    match signs.count_ones() % 2 {
        0 => signs,
        _ => signs ^ 1 << least(weights.iter().take(8).map(|x| x.abs())),
    }
}

/// `d`, and for each step the integer up to `largest` with which `d * (2 * scale + 1) * unit` is nearest to it.
pub(in crate::gguf::blocks) fn nearest_scales<const N: usize>(
    steps: [f32; N],
    unit: f32,
    largest: u8,
) -> (f16, [u8; N]) {
    let most = steps.iter().fold(0.0_f32, |most, &step| most.max(step));
    let d = most / unit / (2.0 * f32::from(largest) + 1.0);
    let d = f16::from_f32(d).clamp(f16::MIN, f16::MAX);
    let scales = steps.map(|step| match d.to_f32() {
        0.0 => 0,
        d => ((step / (d * unit) - 1.0) / 2.0)
            .round()
            .clamp(0.0, f32::from(largest)) as u8,
    });
    (d, scales)
}
