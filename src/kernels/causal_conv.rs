//! The causal convolution of each channel, whose last rows are kept for the next batch.

use super::gated_activation::{activate, number};
use super::{Access, Kernel, Uses, row_stride};
use crate::plan::Activation;
use bytemuck::{Pod, Zeroable};

/// The `Params` of `causal_conv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_channels: u32,
    pub(crate) stride: u32,
    pub(crate) n_taps: u32,
    pub(crate) activation: u32,
    pub(crate) has_bias: u32,
    pub(crate) padding: [u32; 3],
}

impl Params {
    pub(crate) fn new(
        n_channels: usize,
        n_taps: usize,
        activation: Activation,
        has_bias: bool,
    ) -> Params {
        Params {
            n_channels: n_channels as u32,
            stride: row_stride(n_channels) as u32,
            n_taps: n_taps as u32,
            activation: number(activation),
            has_bias: has_bias.into(),
            padding: [0; 3],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "causal_conv",
    wgsl: include_str!("causal_conv.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("state", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        activation: true,
        ..Uses::NOTHING
    },
};

/// The rows are a loop of the kernel: each needs those before it.
pub(crate) fn grid(params: &Params, _: usize) -> [u32; 3] {
    super::grid((params.n_channels as usize).div_ceil(64), 1)
}

/// `dst[row, c] = activation(sum_t weight[c, t] * src[row + t + 1 - n_taps, c] (+ bias[c]))`: `src` and `dst`
/// `[n_rows, n_channels]`, `weight` `[n_channels, n_taps]`, `bias` `[n_channels]`. The rows in front are those of `state`,
/// `[n_taps - 1, n_channels]`, which becomes the last ones.
pub(crate) fn twin(
    weight: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
    src: &[f32],
    state: &mut [f32],
    dst: &mut [f32],
) {
    let n_channels = weight.len() - state.len();
    let n_taps = weight.len() / n_channels;
    let rows = [&*state, src].concat();
    for (index, dst) in dst.iter_mut().enumerate() {
        let channel = index % n_channels;
        let taps = &weight[channel * n_taps..][..n_taps];
        let seen = rows[index..].iter().step_by(n_channels);
        let products = taps.iter().zip(seen);
        let sum: f64 = products.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        let bias = bias.map_or(0.0, |bias| f64::from(bias[channel]));
        *dst = activate(activation, sum + bias) as f32;
    }
    state.copy_from_slice(&rows[rows.len() - state.len()..]);
}
