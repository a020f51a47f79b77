//! Rotary position embedding as a file states it, worked out to one angle for each pair.

use crate::plan::{RopePairing, RopeTable};
use std::f64::consts::PI;

/// How the angles of long contexts are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions divided by `factor` (arXiv:2306.15595).
    Linear {
        /// At least 1 in practice.
        factor: f32,
    },
    /// YaRN (arXiv:2309.00071) with the ramp from 32 turns to 1.
    Yarn {
        /// Context extension.
        factor: f32,
        /// Tokens of the context the model was trained with.
        original_context_length: usize,
        /// `rope.scaling.yarn_log_multiplier`, 0 where absent.
        log_multiplier: f32,
    },
}

/// The rotary embedding of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Which dimensions form a pair.
    pub pairing: RopePairing,
    /// Dimensions of a head that turn.
    pub n_dims: usize,
    /// The base of the frequencies.
    pub theta: f32,
    /// Context extension.
    pub scaling: RopeScaling,
    /// Further factor on sine and cosine (`rope.scaling.attn_factor`).
    pub attention_factor: f32,
    /// Divisor of each pair's frequency, `[n_dims / 2]` (tensor `rope_freqs.weight`).
    pub divisors: Option<Vec<f32>>,
}

impl RopeSpec {
    /// The angles: `theta^(-2i / n_dims)` (arXiv:2104.09864, section 3.2.2), divided and scaled.
    pub fn table(&self) -> RopeTable {
        let n = self.n_dims as f64;
        let theta = f64::from(self.theta);
        let divisor = |pair: usize| {
            self.divisors
                .as_ref()
                .and_then(|d| d.get(pair))
                .map_or(1.0, |&d| f64::from(d))
        };
        let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / n) / divisor(pair);
        let pairs = 0..self.n_dims / 2;
        let (inverse_frequency, magnitude): (Vec<f64>, f64) = match self.scaling {
            RopeScaling::None => (pairs.map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => (
                pairs.map(|pair| plain(pair) / f64::from(factor)).collect(),
                1.0,
            ),
            RopeScaling::Yarn {
                factor,
                original_context_length,
                log_multiplier,
            } => {
                let factor = f64::from(factor);
                let original = original_context_length as f64;
                // The dimension whose wave turns `turns` times over the original context.
                let dimension =
                    |turns: f64| n * (original / (2.0 * PI * turns)).ln() / (2.0 * theta.ln());
                let low = dimension(32.0).floor().max(0.0);
                let high = dimension(1.0).ceil().min(n - 1.0);
                let scaled = |pair: usize| {
                    let ramp = (pair as f64 - low) / (high - low).max(0.001);
                    let keep = 1.0 - ramp.clamp(0.0, 1.0);
                    plain(pair) * ((1.0 - keep) / factor + keep)
                };
                let magnitude = (1.0 + 0.1 * factor.ln())
                    / (1.0 + 0.1 * f64::from(log_multiplier) * factor.ln());
                (pairs.map(scaled).collect(), magnitude)
            }
        };
        let magnitude = magnitude * f64::from(self.attention_factor);
        RopeTable {
            pairing: self.pairing,
            inverse_frequency,
            magnitude,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec {
            pairing: RopePairing::Adjacent,
            n_dims: 4,
            theta: 100.0,
            scaling,
            attention_factor: 1.0,
            divisors: None,
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_by_the_base() {
        let table = spec(RopeScaling::None).table();
        assert_eq!(table.inverse_frequency, [1.0, 0.1]);
        assert_eq!(table.magnitude, 1.0);
    }

    #[test]
    fn linear_scaling_and_divisors_divide() {
        let mut spec = spec(RopeScaling::Linear { factor: 2.0 });
        spec.divisors = Some(vec![1.0, 4.0]);
        let table = spec.table();
        assert_eq!(table.inverse_frequency[0], 0.5);
        assert!((table.inverse_frequency[1] - 0.0125).abs() < 1e-15);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let table = RopeSpec {
            n_dims: 64,
            theta: 10000.0,
            ..spec(RopeScaling::Yarn {
                factor: 4.0,
                original_context_length: 2048,
                log_multiplier: 0.0,
            })
        }
        .table();
        assert_eq!(table.inverse_frequency[0], 1.0);
        let slow = 10000f64.powf(-62.0 / 64.0);
        assert!((table.inverse_frequency[31] / (slow / 4.0) - 1.0).abs() < 1e-12);
        assert!((table.magnitude - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    }
}
