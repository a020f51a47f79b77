//! Steps that carry a state from batch to batch: parallel over channels or heads, row by row.

use super::elementwise::{activate, for_rows};
use crate::plan::Activation;

/// As `kernels::causal_conv::twin`.
pub(super) fn causal_conv(
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
    for_rows(dst, n_channels, |row, dst| {
        let rows = &rows[row * n_channels..][..n_taps * n_channels];
        for (channel, dst) in dst.iter_mut().enumerate() {
            let mut sum = bias.map_or(0.0, |bias| bias[channel]);
            for tap in 0..n_taps {
                sum += weight[channel * n_taps + tap] * rows[tap * n_channels + channel];
            }
            *dst = activate(activation, sum);
        }
    });
    state.copy_from_slice(&rows[rows.len() - state.len()..]);
}
