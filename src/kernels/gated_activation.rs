//! The gated feed-forward block's non-linearity.

use super::{Access, Kernel, Uses, row_stride};
use crate::plan::Activation;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `gated_activation.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) width: u32,
    pub(crate) stride: u32,
    pub(crate) activation: u32,
    pub(crate) padding: u32,
}

impl Params {
    pub(crate) fn new(width: usize, activation: Activation) -> Params {
        let activation = match activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        };
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            activation,
            padding: 0,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "gated_activation",
    wgsl: include_str!("gated_activation.wgsl"),
    bindings: &[
        ("gate", Access::Read),
        ("up", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid((params.width as usize).div_ceil(4 * 64), n_rows)
}

/// `dst = activation(gate) * up`, each `[n_rows, width]`.
pub(crate) fn twin(activation: Activation, gate: &[f32], up: &[f32], dst: &mut [f32]) {
    for ((dst, &gate), &up) in dst.iter_mut().zip(gate).zip(up) {
        *dst = (activate(activation, f64::from(gate)) * f64::from(up)) as f32;
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
    }
}
