//! Attention of encoders, whose queries see the whole batch.

use super::attention::{Case, check, run_with, shape};
use super::{Values, altered, first_difference, gpu, variants};
use crate::kernels::attention::{self, Shape};

fn case(seed: u64, heads: [usize; 3], n_rows: usize, position: usize) -> Case {
    let [n_head, n_head_kv, head_dim] = heads;
    Case {
        seed,
        shape: Shape {
            causal: false,
            n_rows,
            ..shape(n_head, n_head_kv, head_dim, position)
        },
        n_rows,
        scores: 1.0,
        values: Values::Random,
    }
}

#[test]
fn attention_of_both_ways_matches_its_twin() {
    let heads = [[1, 1, 4], [4, 4, 12], [3, 1, 64], [2, 1, 260], [6, 2, 96]];
    for (seed, heads) in (31..).zip(heads) {
        for n_rows in [1, 2, 63, 64, 65, 129] {
            check(&case(seed, heads, n_rows, 0));
        }
        check(&case(seed, heads, 5, 61));
    }
}

#[test]
fn attention_of_both_ways_matches_its_twin_with_caps_and_sinks() {
    for (seed, has_sinks) in [(41, false), (42, true)] {
        let case = case(seed, [10, 5, 64], 7, 130);
        check(&Case {
            shape: Shape {
                soft_cap: Some(5.0),
                has_sinks,
                ..case.shape
            },
            ..case
        });
    }
}

#[test]
fn mistakes_in_what_is_visible_are_seen() {
    let Some(_) = gpu() else { return };
    let case = case(51, [2, 1, 32], 9, 3);
    for (from, to) in [
        ("(p.of_heads & BOTH_WAYS) != 0u", "false"),
        (
            "end = batch.position + batch.n_rows",
            "end = batch.position + batch.n_rows - 1u",
        ),
        ("end = batch.position + batch.n_rows", "end = batch.n_rows"),
    ] {
        let variant = variants(&attention::KERNEL, false)[0];
        let inputs = case.inputs(variant.kv);
        let [keys, values] = &inputs.caches;
        let kernel = altered(&attention::KERNEL, &variant, from, to);
        let (q, shape) = (&inputs.q, &case.shape);
        let got = run_with(&kernel, case.n_rows, shape, &variant, q, keys, values);
        let difference = first_difference(&got, &inputs.want, |_| case.bound());
        assert!(difference.is_some(), "`{from}` as `{to}`");
    }
}

#[test]
fn twin_of_both_ways_gives_every_row_the_same_mean_where_scores_are_equal() {
    let shape = Shape {
        causal: false,
        n_rows: 3,
        ..shape(1, 1, 4, 0)
    };
    let (zeros, mut dst) = ([0.0; 12], [f32::NAN; 12]);
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    attention::twin(&shape, None, &zeros, &zeros, &values, &mut dst);
    for row in dst.chunks(4) {
        assert_eq!(row, [4.0, 5.0, 6.0, 7.0]);
    }
}
