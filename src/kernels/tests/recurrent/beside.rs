//! Norms of groups with weights of their own.

use super::super::{
    Random, Values, altered, assert_close, first_difference, gpu, padded, run_kernel, unpadded,
    unwritten, variants,
};
use super::batch;
use crate::kernels::{Kernel, group_norm};

/// Of each result. Seen on lavapipe: 2.4e-7.
const BOUND: f64 = 2e-6;

fn norms(kernel: Option<&Kernel>, values: Values) -> Option<bool> {
    let context = gpu()?;
    let mut is_wrong = false;
    let shapes = [
        (1, 1, 1),
        (3, 2, 31),
        (2, 8, 127),
        (2, 1, 576),
        (5, 3, 129),
        (1, 8, 1024),
    ];
    for (seed, (n_rows, n_groups, group)) in (1..).zip(shapes) {
        let width = n_groups * group;
        let mut random = Random::new(seed);
        let src = values.fill(&mut random, n_rows * width);
        let weight = Values::Random.fill(&mut random, width);
        let mut want = vec![0.0; src.len()];
        group_norm::twin(&src, group, &weight, 1e-5, &mut want);
        let params = group_norm::Params::new(width, group, 1e-5);
        for variant in variants(&group_norm::KERNEL, context.subgroups()) {
            if kernel.is_some() && variant.subgroups {
                continue;
            }
            let dst = run_kernel(
                context,
                kernel.unwrap_or(&group_norm::KERNEL),
                &variant,
                batch(n_rows, 0),
                bytemuck::bytes_of(&params),
                group_norm::grid(&params, n_rows),
                &[
                    &padded(&src, width),
                    bytemuck::cast_slice(&weight),
                    &unwritten(n_rows, width),
                ],
            );
            let got = unpadded(&dst[2], width);
            let bound = |i: usize| BOUND * f64::from(want[i]).abs();
            match kernel {
                None => {
                    let shape = (n_rows, n_groups, group, values);
                    assert_close("group_norm", seed, &shape, &got, &want, bound);
                }
                Some(_) => is_wrong |= first_difference(&got, &want, bound).is_some(),
            }
        }
    }
    Some(is_wrong)
}

#[test]
fn group_norm_matches_its_twin() {
    for values in Values::ALL {
        norms(None, values);
    }
}

#[test]
fn mistakes_in_group_norm_are_seen() {
    let mistakes = [
        ("weight[group * p.group + i]", "weight[i]"),
        ("/ f32(p.group)", ""),
        ("+ p.eps", ""),
        (
            "workgroup.z * p.stride + group * p.group",
            "group * p.group",
        ),
    ];
    for (from, to) in mistakes {
        let plain = &variants(&group_norm::KERNEL, false)[0];
        let wrong = altered(&group_norm::KERNEL, plain, from, to);
        let values = if from == "+ p.eps" {
            Values::Tiny
        } else {
            Values::Random
        };
        assert_ne!(
            norms(Some(&wrong), values),
            Some(false),
            "`{to}` for `{from}`"
        );
    }
}
