//! Functions of one element.

use super::{Random, Values, assert_close, gpu, padded, run_kernel, unpadded, unwritten, variants};
use crate::device::wgpu::context::Context;
use crate::kernels::{BatchParams, map};
use crate::plan::{Activation, Function};

const FUNCTIONS: [Function; 7] = [
    Function::Scale(0.3),
    Function::SoftCap(4.0),
    Function::SoftCap(50.0),
    Function::Sigmoid,
    Function::Activation(Activation::Silu),
    Function::Activation(Activation::GeluTanh),
    Function::Activation(Activation::ReluSquared),
];

/// Of the result's magnitude, and of the element's where a non-linearity is nearly zero.
const BOUND: f64 = 2e-6;

fn run(context: &Context, function: Function, width: usize, src: &[f32]) -> Vec<f32> {
    let n_rows = src.len() / width;
    let params = map::Params::new(width, function);
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: 0,
        n_outputs: 0,
        random: 0,
    };
    let dst = run_kernel(
        context,
        &map::KERNEL,
        &variants(&map::KERNEL, true)[0],
        batch,
        bytemuck::bytes_of(&params),
        map::grid(&params, n_rows),
        &[&padded(src, width), &unwritten(n_rows, width)],
    );
    unpadded(dst.last().unwrap(), width)
}

fn check(seed: u64, function: Function, width: usize, src: &[f32]) {
    let Some(context) = gpu() else { return };
    let n_rows = src.len() / width;
    let mut want = vec![0.0; src.len()];
    map::twin(function, src, &mut want);
    let got = run(context, function, width, src);
    let of_element = match function {
        Function::Activation(_) => 1.0,
        Function::Scale(_) | Function::SoftCap(_) | Function::Sigmoid => 0.0,
    };
    let bound = |i: usize| {
        let [want, src] = [want[i], src[i]].map(|x| f64::from(x).abs());
        // Sigmoids below 2e-35 are zero in the kernel.
        BOUND * want.max(of_element * src) + 2e-35
    };
    assert_close("map", seed, &(n_rows, width, function), &got, &want, bound);
}

#[test]
fn map_matches_its_twin() {
    for function in FUNCTIONS {
        for (seed, (n_rows, width)) in (1..).zip([(1, 1), (3, 2), (2, 31), (7, 127), (2, 1536)]) {
            for values in Values::ALL {
                let src = values.fill(&mut Random::new(seed), n_rows * width);
                check(seed, function, width, &src);
            }
        }
    }
}

#[test]
fn map_matches_its_twin_over_the_whole_range() {
    let mut src: Vec<f32> = (-2000..=2000).map(|i| i as f32 * 0.011).collect();
    for exponent in -18..=18 {
        src.extend([10f32.powi(exponent), -(10f32.powi(exponent))]);
    }
    for function in FUNCTIONS {
        check(0, function, src.len(), &src);
    }
}

#[test]
fn values_that_are_not_finite_are_seen_behind_every_function() {
    let src = [f32::NAN, 1.0, -f32::NAN, f32::INFINITY, -1.0];
    for function in FUNCTIONS {
        let mut twin = vec![0.0; src.len()];
        map::twin(function, &src, &mut twin);
        let kernel = gpu().map(|context| run(context, function, src.len(), &src));
        for found in kernel.iter().chain([&twin]) {
            let is_finite: Vec<bool> = found.iter().map(|value| value.is_finite()).collect();
            let is_bounded = function == Function::Sigmoid;
            let expected = [false, true, false, is_bounded, true];
            assert_eq!(is_finite, expected, "{function:?}: {found:?}");
            let limit = if is_bounded { 1.0 } else { f32::INFINITY };
            assert!(found[0].is_nan() && found[2].is_nan() && found[3] == limit);
        }
        if let Function::SoftCap(_) = function {
            let mut twin = [0.0];
            map::twin(function, &[f32::NEG_INFINITY], &mut twin);
            assert_eq!(twin, [f32::NEG_INFINITY]);
        }
    }
}
