//! Steps that carry a state from batch to batch: parallel over channels or heads, row by row.

use super::elementwise::{activate, for_rows};
use crate::kernels::state_scan::elements;
use crate::kernels::{delta_rule, state_scan};
use crate::plan::Activation;
use rayon::prelude::*;

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

/// Gives each head its part of the state and its rows `[n_rows, head_dim]`, which `dst` has side by side.
fn by_head(
    n_head: usize,
    head_dim: usize,
    state: &mut [f32],
    dst: &mut [f32],
    each: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let n_rows = dst.len() / (n_head * head_dim);
    let mut rows = vec![0.0; dst.len()];
    let states = state.par_chunks_exact_mut(state.len() / n_head);
    states
        .zip(rows.par_chunks_exact_mut(n_rows * head_dim))
        .enumerate()
        .for_each(|(head, (state, rows))| each(head, state, rows));
    for (row, dst) in dst.chunks_exact_mut(n_head * head_dim).enumerate() {
        for (head, dst) in dst.chunks_exact_mut(head_dim).enumerate() {
            dst.copy_from_slice(&rows[(head * n_rows + row) * head_dim..][..head_dim]);
        }
    }
}

fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// As `kernels::state_scan::twin`.
pub(super) fn state_scan(
    shape: &state_scan::Shape,
    inputs: &state_scan::Inputs<'_>,
    state: &mut [f32],
    dst: &mut [f32],
) {
    let state_scan::Shape {
        n_head,
        head_dim,
        n_state,
        n_group,
        has_a_of_each,
    } = *shape;
    by_head(n_head, head_dim, state, dst, |head, state, rows| {
        let group = head / (n_head / n_group) * n_state;
        let rates = match has_a_of_each {
            true => &inputs.a[head * n_state..][..n_state],
            false => &inputs.a[head..=head],
        };
        let mut decays = vec![0.0; n_state];
        for (row, dst) in rows.chunks_exact_mut(head_dim).enumerate() {
            let step = softplus(inputs.dt[row * n_head + head]);
            let x = elements(inputs.x, row, head * head_dim, head_dim);
            let b = elements(inputs.b, row, group, n_state);
            let c = elements(inputs.c, row, group, n_state);
            match rates {
                [rate] => decays.fill((step * rate).exp()),
                rates => {
                    let each = decays.iter_mut().zip(rates);
                    each.for_each(|(decay, rate)| *decay = (step * rate).exp());
                }
            }
            for ((state, dst), &x) in state.chunks_exact_mut(n_state).zip(dst).zip(x) {
                let mut sum = 0.0;
                for n in 0..n_state {
                    state[n] = state[n] * decays[n] + step * x * b[n];
                    sum += state[n] * c[n];
                }
                *dst = sum + inputs.d[head] * x;
            }
        }
    });
}

/// As `kernels::delta_rule::twin`.
pub(super) fn delta_rule(
    shape: &delta_rule::Shape,
    inputs: &delta_rule::Inputs<'_>,
    state: &mut [f32],
    dst: &mut [f32],
) {
    let (n_head, n) = (shape.n_head, shape.n_state);
    let unit = |x: &[f32], unit: &mut [f32]| {
        let squares: f32 = x.iter().map(|x| x * x).sum();
        let scale = 1.0 / (squares + shape.eps).sqrt();
        let each = unit.iter_mut().zip(x);
        each.for_each(|(unit, x)| *unit = x * scale);
    };
    by_head(n_head, n, state, dst, |head, state, rows| {
        let head_k = shape.head_k(head);
        let (mut q, mut k) = (vec![0.0; n], vec![0.0; n]);
        for (row, dst) in rows.chunks_exact_mut(n).enumerate() {
            let qkv = &inputs.qkv[row * shape.qkv_width()..][..shape.qkv_width()];
            let of = |head: usize| &qkv[head * n..][..n];
            unit(of(head_k), &mut q);
            unit(of(shape.n_head_k + head_k), &mut k);
            let v = of(2 * shape.n_head_k + head);
            let gate = row * n_head + head;
            let step = softplus(inputs.alpha[gate] + inputs.bias[head]);
            let decay = (inputs.a[head] * step).exp();
            let rate = activate(Activation::Sigmoid, inputs.beta[gate]);
            for ((state, dst), &v) in state.chunks_exact_mut(n).zip(dst).zip(v) {
                let mut seen = 0.0;
                for (state, k) in state.iter_mut().zip(&k) {
                    *state *= decay;
                    seen += *state * k;
                }
                let change = rate * (v - seen);
                let mut sum = 0.0;
                for ((state, k), q) in state.iter_mut().zip(&k).zip(&q) {
                    *state += change * k;
                    sum += *state * q;
                }
                *dst = sum / (n as f32).sqrt();
            }
        }
    });
}

/// As `kernels::group_norm::twin`.
pub(super) fn group_norm(src: &[f32], group: usize, weight: &[f32], eps: f32, dst: &mut [f32]) {
    for_rows(dst, weight.len(), |row, dst| {
        let src = &src[row * weight.len()..][..weight.len()];
        let groups = dst.chunks_exact_mut(group).zip(src.chunks_exact(group));
        for ((dst, src), weight) in groups.zip(weight.chunks_exact(group)) {
            let squares: f32 = src.iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / group as f32 + eps).sqrt();
            for ((dst, x), weight) in dst.iter_mut().zip(src).zip(weight) {
                *dst = x * scale * weight;
            }
        }
    });
}
