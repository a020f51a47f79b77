//! The causal convolution.

use super::super::{
    Random, Values, altered, assert_close, first_difference, gpu, padded, run_kernel, unpadded,
    unwritten, variants,
};
use super::{Made, batch};
use crate::kernels::{Kernel, causal_conv};
use crate::plan::Activation;

struct Conv {
    seed: u64,
    n_rows: usize,
    n_channels: usize,
    n_taps: usize,
    position: usize,
    activation: Activation,
    has_bias: bool,
    values: Values,
}

/// Of the sum of the magnitudes of products and bias. Seen on lavapipe: 1.9e-7.
const CONV_BOUND: f64 = 1e-6;

impl Conv {
    /// What the kernel makes of it, what the twin does, and the bound of each element.
    fn run(&self, kernel: &Kernel) -> Option<(Made, Made, Vec<f64>)> {
        let context = gpu()?;
        let (n, n_taps) = (self.n_channels, self.n_taps);
        let mut random = Random::new(self.seed);
        let src = self.values.fill(&mut random, self.n_rows * n);
        let weight = Values::Random.fill(&mut random, n * n_taps);
        let bias = Values::Random.fill(&mut random, n);
        let state = self.values.fill(&mut random, (n_taps - 1) * n);
        let given = self.has_bias.then_some(bias.as_slice());

        let mut want = Made {
            dst: vec![0.0; src.len()],
            state: match self.position {
                0 => vec![0.0; state.len()],
                _ => state.clone(),
            },
        };
        let rows = [&want.state[..], &src].concat();
        let bound = |index: usize| {
            let channel = index % n;
            let of_tap = |tap: usize| weight[channel * n_taps + tap] * rows[index + tap * n];
            let sum: f32 = (0..n_taps).map(|tap| of_tap(tap).abs()).sum();
            CONV_BOUND * f64::from(sum + bias[channel].abs())
        };
        let bounds = (0..src.len()).map(bound).collect();
        let activation = self.activation;
        causal_conv::twin(
            &weight,
            given,
            activation,
            &src,
            &mut want.state,
            &mut want.dst,
        );

        let params = causal_conv::Params::new(n, n_taps, activation, self.has_bias);
        let found = run_kernel(
            context,
            kernel,
            &variants(&causal_conv::KERNEL, false)[0],
            batch(self.n_rows, self.position),
            bytemuck::bytes_of(&params),
            causal_conv::grid(&params, self.n_rows),
            &[
                &padded(&src, n),
                bytemuck::cast_slice(&weight),
                bytemuck::cast_slice(&bias),
                bytemuck::cast_slice(&state),
                &unwritten(self.n_rows, n),
            ],
        );
        let got = Made {
            state: bytemuck::pod_collect_to_vec(&found[3]),
            dst: unpadded(&found[4], n),
        };
        Some((got, want, bounds))
    }

    fn shape(&self) -> (usize, usize, usize, usize, Activation, Values) {
        let Conv {
            n_rows,
            n_channels,
            n_taps,
            position,
            activation,
            values,
            ..
        } = *self;
        (n_rows, n_channels, n_taps, position, activation, values)
    }
}

fn convs() -> impl Iterator<Item = Conv> {
    let shapes = [
        (1, 1, 2),
        (1, 129, 4),
        (2, 31, 4),
        (5, 64, 3),
        (67, 48, 3),
        (3, 2051, 4),
    ];
    let shapes = (1..).zip(shapes);
    let each = |(seed, (n_rows, n_channels, n_taps))| {
        [0, 7].into_iter().flat_map(move |position| {
            Values::ALL.map(|values| Conv {
                seed,
                n_rows,
                n_channels,
                n_taps,
                position,
                activation: [Activation::Silu, Activation::Identity][seed as usize % 2],
                has_bias: seed % 3 != 0,
                values,
            })
        })
    };
    shapes.flat_map(each)
}

#[test]
fn causal_conv_matches_its_twin_and_keeps_the_last_rows() {
    for case in convs() {
        let Some((got, want, bounds)) = case.run(&causal_conv::KERNEL) else {
            return;
        };
        let shape = case.shape();
        assert_close("causal_conv", case.seed, &shape, &got.dst, &want.dst, |i| {
            bounds[i]
        });
        assert_close(
            "causal_conv state",
            case.seed,
            &shape,
            &got.state,
            &want.state,
            |_| 0.0,
        );
    }
}

#[test]
fn causal_conv_of_two_batches_is_that_of_one() {
    let (n_channels, n_taps) = (5, 4);
    let mut random = Random::new(3);
    let weight = Values::Random.fill(&mut random, n_channels * n_taps);
    let src = Values::Random.fill(&mut random, 9 * n_channels);
    let run = |cuts: &[usize]| {
        let mut state = vec![0.0; (n_taps - 1) * n_channels];
        let mut all = Vec::new();
        for rows in cuts.windows(2) {
            let src = &src[rows[0] * n_channels..rows[1] * n_channels];
            let mut dst = vec![0.0; src.len()];
            causal_conv::twin(&weight, None, Activation::Silu, src, &mut state, &mut dst);
            all.extend(dst);
        }
        (all, state)
    };
    let whole = run(&[0, 9]);
    assert_eq!(run(&[0, 1, 2, 4, 9]), whole);
    // The last tap meets the token itself, and the first token meets nothing else.
    let first = f64::from(src[0]) * f64::from(weight[n_taps - 1]);
    let expected = (first / (1.0 + (-first).exp())) as f32;
    assert!((whole.0[0] - expected).abs() <= 1e-6 * expected.abs());
}

#[test]
fn mistakes_in_causal_conv_are_seen() {
    let mistakes = [
        ("batch.position > 0u", "batch.position > 9u"),
        ("vec4(window.yzw, src[at])", "vec4(src[at], window.yzw)"),
        ("channel * p.n_taps + tap", "channel + p.n_channels * tap"),
        (
            "window[5u - p.n_taps + kept]",
            "window[4u - p.n_taps + kept]",
        ),
        ("p.activation, vec4(", "3u - p.activation, vec4("),
    ];
    for (from, to) in mistakes {
        let wrong = altered(
            &causal_conv::KERNEL,
            &variants(&causal_conv::KERNEL, false)[0],
            from,
            to,
        );
        let mut is_seen = false;
        for case in convs().filter(|case| case.values == Values::Random && case.n_channels < 2000) {
            let Some((got, want, bounds)) = case.run(&wrong) else {
                return;
            };
            is_seen |= first_difference(&got.dst, &want.dst, |i| bounds[i]).is_some()
                || first_difference(&got.state, &want.state, |_| 0.0).is_some();
        }
        assert!(is_seen, "`{to}` for `{from}`");
    }
}
