//! Rotary position embedding as a file states it, worked out to one angle for each pair.

use crate::plan::{QueryTemperature, RopePairing, RopeTable};
use std::f64::consts::PI;

/// How the angles of long contexts are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Nothing turns, whatever its position: queries have their temperature alone.
    Still,
    /// Positions divided by `factor` (arXiv:2306.15595).
    Linear {
        /// At least 1 in practice.
        factor: f32,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// Context extension.
        factor: f32,
        /// Tokens of the context the model was trained with.
        original_context_length: usize,
        /// `rope.scaling.yarn_log_multiplier`, 0 where absent.
        log_multiplier: f32,
        /// The turns over the original context from which on pairs stay as they are, and up to which they
        /// are fully divided; 32 and 1 in the paper.
        ramp: [f32; 2],
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
    /// Divisor of each pair's frequency, `[n_dims / 2]`.
    pub divisors: RopeDivisors,
    /// What makes queries grow with the position, keys not.
    pub query_temperature: Option<QueryTemperature>,
}

/// The divisors of each pair's frequency, `[n_dims / 2]`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeDivisors {
    /// None.
    None,
    /// Tensor `rope_freqs.weight`.
    Fixed(Vec<f32>),
    /// Tensors `rope_factors_short.weight` and `rope_factors_long.weight` (LongRoPE, arXiv:2402.13753).
    ByContext {
        /// For contexts of up to this many tokens.
        most_short: usize,
        /// Of those contexts.
        short: Vec<f32>,
        /// Of longer ones.
        long: Vec<f32>,
    },
}

impl RopeDivisors {
    /// Those of a context of this many tokens.
    fn of_context(&self, context_length: usize) -> Option<&[f32]> {
        match self {
            RopeDivisors::None => None,
            RopeDivisors::Fixed(divisors) => Some(divisors),
            RopeDivisors::ByContext {
                most_short,
                short,
                long,
            } => Some(if context_length > *most_short {
                long
            } else {
                short
            }),
        }
    }
}

impl RopeSpec {
    /// The angles of keys in a session of `context_length` tokens: `theta^(-2i / n_dims)` (arXiv:2104.09864,
    /// section 3.2.2), divided and scaled.
    pub fn table(&self, context_length: usize) -> RopeTable {
        let n = self.n_dims as f64;
        let theta = f64::from(self.theta);
        let divisors = self.divisors.of_context(context_length);
        let divisor = |pair: usize| {
            divisors
                .and_then(|d| d.get(pair))
                .map_or(1.0, |&d| f64::from(d))
        };
        let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / n) / divisor(pair);
        let pairs = 0..self.n_dims / 2;
        let (inverse_frequency, magnitude): (Vec<f64>, f64) = match self.scaling {
            RopeScaling::None => (pairs.map(plain).collect(), 1.0),
            RopeScaling::Still => (vec![0.0; self.n_dims / 2], 1.0),
            RopeScaling::Linear { factor } => (
                pairs.map(|pair| plain(pair) / f64::from(factor)).collect(),
                1.0,
            ),
            RopeScaling::Yarn {
                factor,
                original_context_length,
                log_multiplier,
                ramp: [fast, slow],
            } => {
                let factor = f64::from(factor);
                let original = original_context_length as f64;
                // The dimension whose wave turns `turns` times over the original context.
                let dimension =
                    |turns: f64| n * (original / (2.0 * PI * turns)).ln() / (2.0 * theta.ln());
                let low = dimension(f64::from(fast)).floor().max(0.0);
                let high = dimension(f64::from(slow)).ceil().min(n - 1.0);
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
            temperature: None,
        }
    }

    /// The same of another base, as trained.
    pub(super) fn unscaled(&self, theta: f32) -> RopeSpec {
        RopeSpec {
            theta,
            scaling: RopeScaling::None,
            attention_factor: 1.0,
            ..self.clone()
        }
    }

    /// The same where nothing turns.
    pub(super) fn still(&self) -> RopeSpec {
        RopeSpec {
            scaling: RopeScaling::Still,
            attention_factor: 1.0,
            divisors: RopeDivisors::None,
            ..self.clone()
        }
    }

    /// The angles of queries.
    pub fn query_table(&self, context_length: usize) -> RopeTable {
        RopeTable {
            temperature: self.query_temperature,
            ..self.table(context_length)
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
            divisors: RopeDivisors::None,
            query_temperature: None,
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_by_the_base() {
        let table = spec(RopeScaling::None).table(8);
        assert_eq!(table.inverse_frequency, [1.0, 0.1]);
        assert_eq!(table.magnitude, 1.0);
    }

    #[test]
    fn linear_scaling_and_divisors_divide() {
        let mut spec = spec(RopeScaling::Linear { factor: 2.0 });
        spec.divisors = RopeDivisors::Fixed(vec![1.0, 4.0]);
        let table = spec.table(8);
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
                ramp: [32.0, 1.0],
            })
        }
        .table(8);
        assert_eq!(table.inverse_frequency[0], 1.0);
        let slow = 10000f64.powf(-62.0 / 64.0);
        assert!((table.inverse_frequency[31] / (slow / 4.0) - 1.0).abs() < 1e-12);
        assert!((table.magnitude - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    }

    #[test]
    fn divisors_follow_the_context() {
        let mut spec = spec(RopeScaling::None);
        spec.divisors = RopeDivisors::ByContext {
            most_short: 8,
            short: vec![1.0, 2.0],
            long: vec![1.0, 5.0],
        };
        let second = |context_length| spec.table(context_length).inverse_frequency[1];
        assert_eq!([second(8), second(9)], [0.05, 0.02]);
    }

    #[test]
    fn queries_grow_with_the_position_and_keys_do_not() {
        let mut spec = spec(RopeScaling::None);
        spec.query_temperature = Some(QueryTemperature {
            scale: 0.5,
            tokens: 4,
            offset: 0,
        });
        let magnitude = |table: RopeTable, position| {
            let [cos, sin] = table.row(position).next().unwrap();
            cos.hypot(sin)
        };
        for (position, expected) in [
            (3, 1.0),
            (4, 1.0 + 0.5 * 2f32.ln()),
            (8, 1.0 + 0.5 * 3f32.ln()),
        ] {
            assert!((magnitude(spec.query_table(8), position) - expected).abs() < 1e-6);
            assert!((magnitude(spec.table(8), position) - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn still_queries_have_their_temperature_alone() {
        let mut spec = spec(RopeScaling::Still);
        spec.query_temperature = Some(QueryTemperature {
            scale: 0.1,
            tokens: 4,
            offset: 1,
        });
        for (position, expected) in [
            (2, 1.0),
            (3, 1.0 + 0.1 * 2f32.ln()),
            (6, 1.0 + 0.1 * 2f32.ln()),
        ] {
            let row: Vec<[f32; 2]> = spec.query_table(8).row(position).collect();
            assert_eq!(row, [[expected, 0.0]; 2]);
            assert_eq!(spec.table(8).row(position).next(), Some([1.0, 0.0]));
        }
    }
}
