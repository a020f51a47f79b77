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
    /// Whether `halves` and `scales` are written; where they are not, any buffer may be bound for them.
    pub(crate) has_f16: u32,
}

impl Params {
    /// Without 16-bit floats.
    pub(crate) fn new(width: usize, activation: Activation) -> Params {
        Params {
            width: width as u32,
            stride: row_stride(width) as u32,
            activation: number(activation),
            has_f16: 0,
        }
    }
}

/// What `common/activation.wgsl` calls it.
pub(crate) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::ReluSquared => 2,
        Activation::ClampedSwiglu => 3,
        Activation::Identity => 4,
        Activation::Sigmoid => 5,
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "gated_activation",
    wgsl: include_str!("gated_activation.wgsl"),
    bindings: &[
        ("gate", Access::Read),
        ("up", Access::Read),
        ("dst", Access::ReadWrite),
        ("halves", Access::ReadWrite),
        ("scales", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        activation: true,
        reduce: true,
        f16_rows: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(_: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(1, n_rows)
}

/// `dst = activation(gate) * up`, each `[n_rows, width]`.
pub(crate) fn twin(activation: Activation, gate: &[f32], up: &[f32], dst: &mut [f32]) {
    for ((dst, &gate), &up) in dst.iter_mut().zip(gate).zip(up) {
        *dst = (activate(activation, f64::from(gate)) * linear(activation, f64::from(up))) as f32;
    }
}

/// What a gate is multiplied with.
fn linear(activation: Activation, up: f64) -> f64 {
    match activation {
        Activation::Silu
        | Activation::GeluTanh
        | Activation::ReluSquared
        | Activation::Identity
        | Activation::Sigmoid => up,
        Activation::ClampedSwiglu => up.clamp(-CLAMP, CLAMP) + 1.0,
    }
}

/// Of [`Activation::ClampedSwiglu`].
const CLAMP: f64 = 7.0;

pub(crate) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::ClampedSwiglu => {
            let x = if x > CLAMP { CLAMP } else { x };
            x / (1.0 + (-1.702 * x).exp())
        }
        Activation::Identity => x,
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        // `max` would make zero of what is not a number.
        Activation::ReluSquared => (if x < 0.0 { 0.0 } else { x }).powi(2),
    }
}
