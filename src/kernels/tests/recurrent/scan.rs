//! The selective state space.

use super::super::{
    Random, Values, altered, assert_close, first_difference, gpu, padded, run_kernel, unpadded,
    unwritten, variants,
};
use super::{Made, batch, given};
use crate::kernels::Kernel;
use crate::kernels::state_scan::{self, Inputs, KERNEL, Params, Place, Shape};

struct Case {
    seed: u64,
    n_rows: usize,
    shape: Shape,
    position: usize,
    values: Values,
    /// Whether `x`, `b` and `c` lie side by side in one buffer.
    is_joined: bool,
}

/// Of what the magnitudes give. Seen on lavapipe: 2.0e-6 of states, 3.6e-7 of results.
const BOUND: f64 = 1e-5;

fn magnitudes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| x.abs()).collect()
}

impl Case {
    /// What the kernel makes of it, what the twin does, and what the twin makes of magnitudes.
    fn run(&self, kernel: &Kernel) -> Option<[Made; 3]> {
        let context = gpu()?;
        let Shape {
            n_head,
            head_dim,
            n_state,
            n_group,
            has_a_of_each,
        } = self.shape;
        let (n_elements, n_b) = (n_head * head_dim, n_group * n_state);
        let mut random = Random::new(self.seed);
        let mut fill = |n: usize| self.values.fill(&mut random, n);
        let place = |width, first| Place { width, first };
        // Columns that nobody asks for lie between.
        let width = n_elements + 2 * n_b + 3;
        let places = match self.is_joined {
            true => [0, n_elements + 1, n_elements + n_b + 2].map(|first| place(width, first)),
            false => [place(n_elements, 0), place(n_b + 2, 2), place(n_b, 0)],
        };
        let joined = fill(self.n_rows * width);
        let inputs = places.map(|place| match self.is_joined {
            true => joined.clone(),
            false => fill(self.n_rows * place.width),
        });
        let state = fill(n_elements * n_state);
        // Steps, and the rates of decays, are what models have, or extreme.
        let dt = fill(self.n_rows * n_head);
        let n_a = if has_a_of_each {
            n_head * n_state
        } else {
            n_head
        };
        let a = Values::Random.fill(&mut random, n_a);
        let a: Vec<f32> = a.iter().map(|a| -a.abs()).collect();
        let d = Values::Random.fill(&mut random, n_head);

        let twin = |inputs: &[Vec<f32>; 3], d: &[f32], state: &[f32]| {
            let mut made = Made {
                dst: vec![0.0; self.n_rows * n_elements],
                state: given(self.position, state),
            };
            let [x, b, c] = [0, 1, 2].map(|i| (inputs[i].as_slice(), places[i]));
            let (dt, a) = (&dt[..], &a[..]);
            let inputs = Inputs { x, dt, b, c, a, d };
            state_scan::twin(&self.shape, &inputs, &mut made.state, &mut made.dst);
            made
        };
        let want = twin(&inputs, &d, &state);
        let all = inputs.each_ref().map(|values| magnitudes(values));
        let most = twin(&all, &magnitudes(&d), &magnitudes(&state));

        let params = Params::new(&self.shape, places);
        let [x, b, c] = [0, 1, 2].map(|i| padded(&inputs[i], places[i].width));
        let found = run_kernel(
            context,
            kernel,
            &variants(&KERNEL, false)[0],
            batch(self.n_rows, self.position),
            bytemuck::bytes_of(&params),
            state_scan::grid(&params, self.n_rows),
            &[
                &x,
                &padded(&dt, n_head),
                &b,
                &c,
                bytemuck::cast_slice(&a),
                bytemuck::cast_slice(&d),
                bytemuck::cast_slice(&state),
                &unwritten(self.n_rows, n_elements),
            ],
        );
        let got = Made {
            state: bytemuck::pod_collect_to_vec(&found[6]),
            dst: unpadded(&found[7], n_elements),
        };
        Some([got, want, most])
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let shapes = [
        (1, [1, 1, 1, 1], true),
        (3, [96, 1, 8, 1], true),
        (2, [67, 1, 16, 1], true),
        (5, [8, 12, 12, 2], false),
        (2, [6, 5, 17, 3], false),
        (3, [4, 64, 128, 1], false),
        (2, [2, 3, 255, 2], false),
        (67, [2, 8, 40, 1], false),
    ];
    let each = |(seed, (n_rows, sizes, has_a_of_each)): (u64, (usize, [usize; 4], bool))| {
        let [n_head, head_dim, n_state, n_group] = sizes;
        let shape = Shape {
            n_head,
            head_dim,
            n_state,
            n_group,
            has_a_of_each,
        };
        [0, 7].into_iter().flat_map(move |position| {
            Values::ALL.map(|values| Case {
                seed,
                n_rows,
                shape,
                position,
                values,
                is_joined: seed % 2 == 0,
            })
        })
    };
    (1..).zip(shapes).flat_map(each)
}

#[test]
fn state_scan_matches_its_twin_and_keeps_its_state() {
    for case in cases() {
        let Some([got, want, most]) = case.run(&KERNEL) else {
            return;
        };
        let shape = (case.n_rows, case.shape, case.position, case.values);
        let of = |values: &[f32], i: usize| BOUND * f64::from(values[i]);
        assert_close("state_scan", case.seed, &shape, &got.dst, &want.dst, |i| {
            of(&most.dst, i)
        });
        assert_close(
            "state_scan state",
            case.seed,
            &shape,
            &got.state,
            &want.state,
            |i| of(&most.state, i),
        );
    }
}

#[test]
fn mistakes_in_state_scan_are_seen() {
    let mistakes = [
        ("batch.position > 0u", "batch.position > 9u"),
        ("+ step * value * b[b_at + n]", "+ value * b[b_at + n]"),
        ("total + d[head] * value", "total"),
        ("sum += states[i] * c[c_at + n];", "sum += c[c_at + n];"),
        (
            "head / (p.n_head / p.n_group) * p.n_state",
            "head % p.n_group * p.n_state",
        ),
        (
            "sum += partial_sums[first + other];",
            "sum = partial_sums[first + other];",
        ),
        (
            "softplus(dt[row * p.dt_stride + head])",
            "dt[row * p.dt_stride + head]",
        ),
        ("decay = decay_of(step * rates[i]);", ""),
        ("state[element * p.n_state + n] = states[i];", ""),
        (
            "own < n_elements {\n            dst",
            "own + 1u < n_elements {\n            dst",
        ),
    ];
    for (from, to) in mistakes {
        let wrong = altered(&KERNEL, &variants(&KERNEL, false)[0], from, to);
        let mut is_seen = false;
        for case in cases().filter(|case| case.values == Values::Random) {
            let Some([got, want, most]) = case.run(&wrong) else {
                return;
            };
            let of = |values: &[f32], i: usize| BOUND * f64::from(values[i]);
            is_seen |= first_difference(&got.dst, &want.dst, |i| of(&most.dst, i)).is_some()
                || first_difference(&got.state, &want.state, |i| of(&most.state, i)).is_some();
        }
        assert!(is_seen, "`{to}` for `{from}`");
    }
}

#[test]
fn state_scan_of_one_element_is_its_formula_row_by_row() {
    let shape = Shape {
        n_head: 1,
        head_dim: 1,
        n_state: 1,
        n_group: 1,
        has_a_of_each: false,
    };
    let place = Place { width: 1, first: 0 };
    let inputs = Inputs {
        x: (&[2.0, -1.0], place),
        dt: &[0.0, 1.0],
        b: (&[3.0, 5.0], place),
        c: (&[7.0, -2.0], place),
        a: &[-1.0],
        d: &[0.5],
    };
    let (mut state, mut dst) = ([4.0], [0.0; 2]);
    state_scan::twin(&shape, &inputs, &mut state, &mut dst);
    let steps = [2f64.ln(), (1.0 + 1f64.exp()).ln()];
    let first = 4.0 * (-steps[0]).exp() + steps[0] * 2.0 * 3.0;
    let second = first * (-steps[1]).exp() + steps[1] * -5.0;
    let expected = [first * 7.0 + 1.0, second * -2.0 - 0.5];
    for (found, expected) in dst
        .iter()
        .chain(&state)
        .zip(expected.into_iter().chain([second]))
    {
        assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected.abs());
    }
}
