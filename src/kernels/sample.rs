//! The choice of the next token from the last row of logits.

use super::logit_maxima::n_groups;
#[cfg(test)]
use super::logit_maxima::ordered;
use super::{Access, Kernel, Uses, row_stride};
use crate::sampler::PlainSampling;
use bytemuck::{Pod, Zeroable};

/// The most candidates that the kernel sorts.
pub(crate) const MAX_TOP_K: usize = 64;
/// The most groups of `logit_maxima` that it reads.
const MAX_GROUPS: usize = 1024;

/// The `Params` of `sample.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_tokens: u32,
    pub(crate) stride: u32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) inverse_temperature: f32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// For rows of `n_logits`; `None` for more candidates or logits than the kernel has room for.
    pub(crate) fn new(n_logits: usize, sampling: &PlainSampling) -> Option<Params> {
        let top_k = match sampling.top_k {
            _ if sampling.temperature == 0.0 => 1,
            0 => sampling.n_tokens,
            top_k => top_k.min(sampling.n_tokens),
        };
        let has_room = top_k <= MAX_TOP_K && n_groups(n_logits) <= MAX_GROUPS;
        has_room.then(|| Params {
            n_tokens: sampling.n_tokens as u32,
            stride: row_stride(n_logits) as u32,
            top_k: top_k as u32,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            // At the largest, nothing but the best candidate has a share.
            inverse_temperature: (1.0 / sampling.temperature).min(1e30),
            padding: [0; 2],
        })
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "sample",
    wgsl: include_str!("sample.wgsl"),
    bindings: &[
        ("logits", Access::Read),
        ("maxima", Access::Read),
        ("tokens", Access::ReadWrite),
        ("chosen", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        ordered: true,
        ..Uses::NOTHING
    },
};

pub(crate) const GRID: [u32; 3] = [1, 1, 1];

/// What the kernel says of its choice.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Chosen {
    pub(crate) token: u32,
    /// The largest magnitude of the logits, as bits; see [`sentinel::Wrong::of`](super::sentinel::Wrong::of).
    pub(crate) largest: u32,
    /// The token's position.
    pub(crate) position: u32,
    /// How many tokens it was drawn from.
    pub(crate) n_candidates: u32,
    /// The largest logit, as [`ordered`](super::logit_maxima::ordered) gives it.
    pub(crate) best: u32,
}

/// The token that is drawn from the first of `logits`, and of how many; the upper 24 bits of `random`
/// are the share of the probability at which it lies.
#[cfg(test)]
pub(crate) fn twin(logits: &[f32], sampling: &PlainSampling, random: u32) -> (u32, usize) {
    let mut candidates: Vec<u32> = (0..sampling.n_tokens as u32).collect();
    candidates.sort_by_key(|&token| (!ordered(logits[token as usize]), token));
    let is_greedy = sampling.temperature == 0.0;
    match sampling.top_k {
        _ if is_greedy => candidates.truncate(1),
        0 => {}
        top_k => candidates.truncate(top_k),
    }
    let logit = |&token: &u32| f64::from(logits[token as usize]);
    let best = logit(&candidates[0]);
    let weights: Vec<f64> = candidates.iter().map(|t| (logit(t) - best).exp()).collect();
    let wanted = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
    let mut held = 0.0;
    let mut n_kept = 0;
    for weight in weights {
        let is_enough = sampling.top_p < 1.0 && held >= wanted;
        if n_kept > 0 && (is_enough || weight < f64::from(sampling.min_p)) {
            break;
        }
        held += weight;
        n_kept += 1;
    }
    candidates.truncate(n_kept);
    if is_greedy {
        return (candidates[0], 1);
    }
    let share = |token| ((logit(token) - best) / f64::from(sampling.temperature)).exp();
    let unit = f64::from(random >> 8) / f64::from(1 << 24);
    let target = unit * candidates.iter().map(share).sum::<f64>();
    let mut passed = 0.0;
    let drawn = candidates.iter().find(|token| {
        passed += share(token);
        passed > target
    });
    (*drawn.unwrap_or(&candidates[n_kept - 1]), n_kept)
}
