//! The table of architectures: what a file of each does not say and llama.cpp's code does.
//!
//! Sources are file names of llama.cpp at commit 0c1e57098; see docs/ADDING-AN-ARCHITECTURE.md.

use crate::error::{Error, Result};
use crate::plan::{Activation, RopePairing};

/// Whether a tensor must, may or must not be in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Required,
    Optional,
    Absent,
}

/// The factor on the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EmbeddingScale {
    One,
    SqrtHiddenSize,
}

/// Which layers see a sliding window only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Windows {
    None,
    /// All but each `period`-th layer, where the file has a window; they turn with their own base.
    Periodic {
        period: usize,
        local_theta: f32,
    },
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// src/llama-model.cpp, `llama_model_rope_type`.
    pub(super) rope_pairing: RopePairing,
    /// Whether `rope_freqs.weight` divides the frequencies.
    pub(super) rope_divisors: bool,
    pub(super) activation: Activation,
    pub(super) embedding_scale: EmbeddingScale,
    pub(super) windows: Windows,
    /// Biases of the query, key and value projections.
    pub(super) qkv_bias: Presence,
    /// Biases of the other projections.
    pub(super) other_bias: Presence,
    /// An RMS norm of each query and key head before rope.
    pub(super) qk_norm: Presence,
    /// RMS norms of the attention's and the feed-forward block's output.
    pub(super) post_norms: bool,
    /// Layers of the one size whose scale is `1 / sqrt(hidden_size / n_head)`.
    pub(super) hidden_scale_at_layers: Option<usize>,
}

/// src/models/llama.cpp
const LLAMA: Architecture = Architecture {
    name: "llama",
    rope_pairing: RopePairing::Adjacent,
    rope_divisors: true,
    activation: Activation::Silu,
    embedding_scale: EmbeddingScale::One,
    windows: Windows::None,
    qkv_bias: Presence::Optional,
    other_bias: Presence::Optional,
    qk_norm: Presence::Absent,
    post_norms: false,
    hidden_scale_at_layers: None,
};

/// Every architecture that runs.
const TABLE: &[Architecture] = &[
    LLAMA,
    // src/models/qwen2.cpp
    Architecture {
        name: "qwen2",
        rope_pairing: RopePairing::Halves,
        rope_divisors: false,
        qkv_bias: Presence::Required,
        ..LLAMA
    },
    // src/models/qwen3.cpp
    Architecture {
        name: "qwen3",
        rope_pairing: RopePairing::Halves,
        rope_divisors: false,
        qk_norm: Presence::Required,
        other_bias: Presence::Absent,
        ..LLAMA
    },
    // src/models/gemma3.cpp: five windowed layers, then a global one; the 27B model has 62 layers.
    Architecture {
        name: "gemma3",
        rope_pairing: RopePairing::Halves,
        rope_divisors: false,
        activation: Activation::GeluTanh,
        embedding_scale: EmbeddingScale::SqrtHiddenSize,
        windows: Windows::Periodic {
            period: 6,
            local_theta: 10000.0,
        },
        qkv_bias: Presence::Absent,
        other_bias: Presence::Absent,
        qk_norm: Presence::Required,
        post_norms: true,
        hidden_scale_at_layers: Some(62),
    },
];

impl Architecture {
    /// `1 / sqrt(head_dim)` but for the one size that differs.
    pub(super) fn attention_scale(
        &self,
        n_layer: usize,
        hidden_size: usize,
        n_head: usize,
        head_dim: usize,
    ) -> f32 {
        if self.hidden_scale_at_layers == Some(n_layer) {
            1.0 / ((hidden_size / n_head) as f32).sqrt()
        } else {
            1.0 / (head_dim as f32).sqrt()
        }
    }
}

/// The row of a name.
pub(super) fn find(name: &str) -> Result<&'static Architecture> {
    TABLE
        .iter()
        .find(|row| row.name == name)
        .ok_or_else(|| Error::Unsupported {
            kind: "architecture",
            name: name.to_owned(),
            supported: TABLE
                .iter()
                .map(|row| row.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}
