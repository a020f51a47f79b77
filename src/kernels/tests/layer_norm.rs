//! Normalisation by mean and variance.

use super::{Random, Values, assert_close, gpu, padded, run_kernel, unpadded, unwritten, variants};
use crate::kernels::{BatchParams, layer_norm};

/// Of the largest scaled element of a group and of the bias.
const BOUND: f64 = 4e-6;

struct Case {
    seed: u64,
    n_rows: usize,
    n_groups: usize,
    group: usize,
    n_weight: usize,
    eps: f32,
}

fn check(case: &Case, values: Values, offset: f32, has_bias: bool) {
    let Some(context) = gpu() else { return };
    let Case {
        seed,
        n_rows,
        n_groups,
        group,
        n_weight,
        eps,
    } = *case;
    let width = n_groups * group;
    let mut random = Random::new(seed);
    let mut src = values.fill(&mut random, n_rows * width);
    src.iter_mut().for_each(|x| *x += offset * values.scale());
    let weight = Values::Random.fill(&mut random, n_weight);
    let bias = Values::Random.fill(&mut random, n_weight);
    let given = has_bias.then_some(bias.as_slice());
    let mut want = vec![0.0; src.len()];
    layer_norm::twin(&src, group, &weight, given, eps, &mut want);

    let params = layer_norm::Params::new(width, group, n_weight, eps, has_bias);
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: 0,
        n_outputs: 0,
        random: 0,
    };
    for variant in variants(&layer_norm::KERNEL, context.subgroups()) {
        let dst = run_kernel(
            context,
            &layer_norm::KERNEL,
            &variant,
            batch,
            bytemuck::bytes_of(&params),
            layer_norm::grid(&params, n_rows),
            &[
                &padded(&src, width),
                &padded(&weight, n_weight),
                &padded(&bias, n_weight),
                &unwritten(n_rows, width),
            ],
        );
        let got = unpadded(dst.last().unwrap(), width);
        let largest = |i: usize| {
            let group = want[i / group * group..][..group].iter();
            group.fold(4.0, |most: f64, x| most.max(f64::from(x.abs())))
        };
        let shape = (n_rows, n_groups, group, n_weight, values, variant.subgroups);
        let bound = |i: usize| BOUND * largest(i);
        assert_close("layer_norm", seed, &shape, &got, &want, bound);
    }
}

#[test]
fn layer_norm_of_rows_matches_its_twin() {
    let shapes = [
        (1, 1),
        (3, 2),
        (2, 31),
        (7, 127),
        (2, 129),
        (5, 576),
        (1, 16384),
    ];
    for (seed, (n_rows, group)) in (1..).zip(shapes) {
        let case = Case {
            seed,
            n_rows,
            n_groups: 1,
            group,
            n_weight: group,
            eps: 1e-5,
        };
        for values in Values::ALL {
            check(&case, values, 0.0, true);
            check(&case, values, 1.0, false);
        }
    }
}

#[test]
fn layer_norm_of_heads_matches_its_twin_with_weights_for_one_and_for_each() {
    for (seed, (n_rows, n_groups, group)) in (1..).zip([(3, 5, 12), (2, 9, 64), (2, 4, 256)]) {
        for n_weight in [group, n_groups * group] {
            let case = Case {
                seed,
                n_rows,
                n_groups,
                group,
                n_weight,
                eps: 1e-6,
            };
            check(&case, Values::Random, 0.5, false);
            check(&case, Values::Random, 0.0, true);
        }
    }
}
