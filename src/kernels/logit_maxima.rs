//! The largest logits of blocks of tokens, which spare `sample` reading most of them; and the largest
//! magnitude, by which [`Wrong::of`](super::sentinel::Wrong::of) says whether they can be right at all.

#[cfg(test)]
use super::sentinel;
use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// Tokens of a workgroup.
pub(crate) const GROUP: usize = 1024;

/// The `Params` of `logit_maxima.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_tokens: u32,
    pub(crate) stride: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// For rows of `n_logits`, of which the first `n_tokens` stand for tokens.
    pub(crate) fn new(n_logits: usize, n_tokens: usize) -> Params {
        Params {
            n_tokens: n_tokens as u32,
            stride: row_stride(n_logits) as u32,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "logit_maxima",
    wgsl: include_str!("logit_maxima.wgsl"),
    bindings: &[("logits", Access::Read), ("maxima", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        ordered: true,
        ..Uses::NOTHING
    },
};

/// Workgroups for rows of `n_logits`.
pub(crate) fn n_groups(n_logits: usize) -> usize {
    row_stride(n_logits).div_ceil(GROUP)
}

/// Words of `maxima`, for each group: 64 maxima of 16 tokens, 4 of 256, one of 1024, the first token that
/// has that one, and the largest magnitude; all groups' words of a kind lie together, in this order.
pub(crate) fn n_words(n_logits: usize) -> usize {
    n_groups(n_logits) * (64 + 4 + 1 + 1 + 1)
}

pub(crate) fn grid(n_logits: usize) -> [u32; 3] {
    super::grid(n_groups(n_logits), 1)
}

/// A number of the same order as the float: 0 is below every number, and both zeros are one.
pub(crate) fn ordered(logit: f32) -> u32 {
    match logit.to_bits() {
        bits if bits > 1 << 31 => !bits,
        bits => bits | 1 << 31,
    }
}

/// `maxima` of the last row of logits; those behind the first `n_tokens` count for the magnitude alone.
#[cfg(test)]
pub(crate) fn twin(logits: &[f32], n_tokens: usize) -> Vec<u32> {
    let n_groups = n_groups(logits.len());
    let tokens_of = |block: usize, index: usize| {
        (index * block).min(n_tokens)..((index + 1) * block).min(n_tokens)
    };
    let largest = |tokens: std::ops::Range<usize>| {
        let keys = logits[tokens].iter().map(|&logit| ordered(logit));
        keys.max().unwrap_or(0)
    };
    let mut maxima = Vec::new();
    for block in [16, 256, GROUP] {
        let n_blocks = n_groups * GROUP / block;
        maxima.extend((0..n_blocks).map(|index| largest(tokens_of(block, index))));
    }
    maxima.extend((0..n_groups).map(|group| {
        let mut tokens = tokens_of(GROUP, group);
        let key = largest(tokens.clone());
        let first = tokens.find(|&token| ordered(logits[token]) == key);
        first.unwrap_or(group * GROUP) as u32
    }));
    maxima.extend((0..n_groups).map(|group| {
        let end = logits.len().min((group + 1) * GROUP);
        sentinel::largest(&logits[(group * GROUP).min(end)..end])
    }));
    maxima
}
