//! The gated delta rule.

use super::super::{
    Random, Values, altered, assert_close, first_difference, gpu, padded, run_kernel, unpadded,
    unwritten, variants,
};
use super::{Made, batch, given};
use crate::kernels::Kernel;
use crate::kernels::delta_rule::{self, Inputs, KERNEL, Params, Shape};

struct Case {
    seed: u64,
    n_rows: usize,
    shape: Shape,
    position: usize,
    values: Values,
}

/// Of the largest value and element of the state before. Seen on lavapipe: 1.5e-6 of states, 1.5e-7 of results.
const BOUND: f64 = 2e-5;

impl Case {
    /// What the kernel makes of it, what the twin does, and the bound.
    fn run(&self, kernel: &Kernel) -> Option<(Made, Made, f64)> {
        let context = gpu()?;
        let (n_head, n_state) = (self.shape.n_head, self.shape.n_state);
        let (n_elements, width) = (n_head * n_state, self.shape.qkv_width());
        let mut random = Random::new(self.seed);
        let qkv = self.values.fill(&mut random, self.n_rows * width);
        let state = self.values.fill(&mut random, n_elements * n_state);
        let [alpha, beta] = [(); 2].map(|()| self.values.fill(&mut random, self.n_rows * n_head));
        let [a, bias] = [(); 2].map(|()| Values::Random.fill(&mut random, n_head));
        let a: Vec<f32> = a.iter().map(|a| -a.abs() / 8.0).collect();

        let mut want = Made {
            dst: vec![0.0; self.n_rows * n_elements],
            state: given(self.position, &state),
        };
        let all = qkv.iter().chain(&want.state);
        let largest = all.fold(0.0f32, |most, x| most.max(x.abs()));
        let inputs = Inputs {
            qkv: &qkv,
            alpha: &alpha,
            beta: &beta,
            a: &a,
            bias: &bias,
        };
        delta_rule::twin(&self.shape, &inputs, &mut want.state, &mut want.dst);

        let params = Params::new(&self.shape);
        let found = run_kernel(
            context,
            kernel,
            &variants(&KERNEL, false)[0],
            batch(self.n_rows, self.position),
            bytemuck::bytes_of(&params),
            delta_rule::grid(&params, self.n_rows),
            &[
                &padded(&qkv, width),
                &padded(&alpha, n_head),
                &padded(&beta, n_head),
                bytemuck::cast_slice(&a),
                bytemuck::cast_slice(&bias),
                bytemuck::cast_slice(&state),
                &unwritten(self.n_rows, n_elements),
            ],
        );
        let got = Made {
            state: bytemuck::pod_collect_to_vec(&found[5]),
            dst: unpadded(&found[6], n_elements),
        };
        Some((got, want, BOUND * f64::from(largest)))
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let shapes = [
        (1, [1, 1, 1]),
        (3, [4, 2, 16]),
        (5, [6, 2, 17]),
        (2, [2, 2, 64]),
        (2, [3, 1, 128]),
        (67, [4, 2, 24]),
        (1, [1, 1, 255]),
    ];
    let each = |(seed, (n_rows, sizes)): (u64, (usize, [usize; 3]))| {
        let [n_head, n_head_k, n_state] = sizes;
        [(0, true), (7, false), (9, true)]
            .into_iter()
            .flat_map(move |(position, is_tiled)| {
                let shape = Shape {
                    n_head,
                    n_head_k,
                    n_state,
                    is_tiled,
                    eps: 1e-6,
                };
                Values::ALL.map(|values| Case {
                    seed,
                    n_rows,
                    shape,
                    position,
                    values,
                })
            })
    };
    (1..).zip(shapes).flat_map(each)
}

#[test]
fn delta_rule_matches_its_twin_and_keeps_its_state() {
    for case in cases() {
        let Some((got, want, bound)) = case.run(&KERNEL) else {
            return;
        };
        let shape = (case.n_rows, case.shape, case.position, case.values);
        assert_close("delta_rule", case.seed, &shape, &got.dst, &want.dst, |_| {
            bound
        });
        assert_close(
            "delta_rule state",
            case.seed,
            &shape,
            &got.state,
            &want.state,
            |_| bound,
        );
    }
}

#[test]
fn mistakes_in_delta_rule_are_seen() {
    let mistakes = [
        ("batch.position > 0u", "batch.position > 19u"),
        ("states[i] *= decay;", ""),
        ("logistic(beta[gate])", "beta[gate]"),
        (
            "(value - sums.x * key_scale)",
            "(value + sums.x * key_scale)",
        ),
        ("(value - sums.x * key_scale)", "(value - sums.x)"),
        ("+ bias[head]", ""),
        ("total * p.scale", "total"),
        ("p.is_tiled == 1u", "p.is_tiled == 0u"),
        ("sqrt(sums.y + p.eps)", "sqrt(sums.y + 1.0)"),
        ("qkv[at + p.n_head_k * p.n_state + n]", "qkv[at + n]"),
        (
            "sum += partial_sums[first + other];",
            "sum = partial_sums[first + other];",
        ),
        ("state[element * p.n_state + n] = states[i];", ""),
    ];
    for (from, to) in mistakes {
        let wrong = altered(&KERNEL, &variants(&KERNEL, false)[0], from, to);
        let mut is_seen = false;
        for case in cases().filter(|case| case.values == Values::Random) {
            let Some((got, want, bound)) = case.run(&wrong) else {
                return;
            };
            is_seen |= first_difference(&got.dst, &want.dst, |_| bound).is_some()
                || first_difference(&got.state, &want.state, |_| bound).is_some();
        }
        assert!(is_seen, "`{to}` for `{from}`");
    }
}

#[test]
fn delta_rule_gives_back_what_was_stored_under_a_key() {
    let shape = Shape {
        n_head: 1,
        n_head_k: 1,
        n_state: 2,
        is_tiled: true,
        eps: 0.0,
    };
    // The second row asks for what the first has stored, under a key of another length, and stores nothing.
    let inputs = Inputs {
        qkv: &[0.0, 1.0, 3.0, 0.0, 5.0, -7.0, 9.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        alpha: &[-1000.0; 2],
        beta: &[1000.0, -1000.0],
        a: &[-1.0],
        bias: &[0.0],
    };
    let (mut state, mut dst) = ([0.0; 4], [1.0; 4]);
    delta_rule::twin(&shape, &inputs, &mut state, &mut dst);
    assert_eq!(state, [5.0, 0.0, -7.0, 0.0]);
    let root = std::f32::consts::FRAC_1_SQRT_2;
    let expected = [0.0, 0.0, 5.0 * root, -7.0 * root];
    for (found, expected) in dst.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6, "{dst:?}");
    }
}
