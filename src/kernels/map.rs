//! A function of each element.

use super::{Access, Kernel, Uses, gated_activation, row_stride};
use crate::plan::{Activation, Function};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `map.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) function: u32,
    pub(crate) value: f32,
}

impl Params {
    pub(crate) fn new(width: usize, function: Function) -> Params {
        let (function, value) = match function {
            Function::Scale(factor) => (0, factor),
            Function::SoftCap(cap) => (1, cap),
            Function::Sigmoid => (2, 0.0),
            // The one that is not zero of zero.
            Function::Activation(Activation::Sigmoid) => (2, 0.0),
            Function::Activation(activation) => (3 + gated_activation::number(activation), 0.0),
        };
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            function,
            value,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "map",
    wgsl: include_str!("map.wgsl"),
    bindings: &[("src", Access::Read), ("dst", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        activation: true,
        soft_cap: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_rows)
}

/// `dst = function(src)`, each `[n_rows, width]`.
pub(crate) fn twin(function: Function, src: &[f32], dst: &mut [f32]) {
    for (dst, &x) in dst.iter_mut().zip(src) {
        let x = f64::from(x);
        *dst = match function {
            Function::Scale(factor) => x * f64::from(factor),
            Function::SoftCap(cap) => soft_cap(x, cap),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Activation(activation) => gated_activation::activate(activation, x),
        } as f32;
    }
}

/// `cap * tanh(x / cap)`; what is not finite stays as it is.
pub(crate) fn soft_cap(x: f64, cap: f32) -> f64 {
    if !x.is_finite() {
        return x;
    }
    f64::from(cap) * (x / f64::from(cap)).tanh()
}
