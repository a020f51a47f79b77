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
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum EmbeddingScale {
    One,
    SqrtHiddenSize,
    /// `embedding_scale`, or this.
    Stated(f32),
}

/// The factor on what each block adds to the residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ResidualScale {
    One,
    /// `residual_scale`, or 1.
    Stated,
    /// `residual_scale`, or this divided by the root of the number of layers.
    StatedOrByDepth(f32),
}

/// What `logit_scale` does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LogitScale {
    None,
    Multiplies,
    Divides,
    /// Divides; where it is absent, `hidden_size` divided by this does.
    DividesOrByWidth(f32),
}

/// `tanh` on attention scores or on logits, which keeps them below a cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SoftCap {
    None,
    /// What the file states, or this; 0 for none.
    Stated(f32),
}

/// The normalisation of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    Rms,
    /// LayerNorm, whose bias must, may or must not be there.
    Layer(Presence),
}

/// What the feed-forward block of a layer takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// The residual behind attention.
    Sequential,
    /// What attention takes in, beside it.
    Parallel,
    /// `Parallel` where there is no `ffn_norm`, else `Sequential`.
    ParallelWithoutNorm,
    /// The layer's input by its own norm, beside attention, where `use_parallel_residual`; else `Sequential`.
    ParallelWhereStated,
    /// The layer's input by `attn_norm`; attention that by `attn_norm_2`, or the same.
    ParallelSecondNorm,
}

/// Which layers see a sliding window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// The file may state one, which llama.cpp does not use.
    Unused,
    /// All but each `period`-th layer, where the model has a window.
    Periodic {
        period: usize,
        /// The window of a file that states none; `None` for no window then.
        default: Option<usize>,
        /// The one number of layers that has windows; `None` for any.
        at_layers: Option<usize>,
    },
}

/// The rope of windowed layers, beside that of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LocalRope {
    Same,
    /// Without scaling.
    Unscaled,
    /// Without scaling, and with its own base: `rope.freq_base_swa`, or this.
    OwnBase(f32),
}

/// Which layers turn queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RopeLayers {
    All,
    /// All but each `n`-th.
    AllButEach(usize),
    /// The windowed ones; all where the model has no window.
    Windowed,
}

/// The tensors that divide the frequencies of rope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RopeDivisors {
    None,
    /// `rope_freqs.weight`, where it is there.
    Fixed,
    /// `rope_factors_short.weight` and `rope_factors_long.weight`, where they are there.
    ByContext,
}

/// The normalisation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head, before rope.
    Heads,
    /// Each head, after rope.
    HeadsAfterRope,
    /// All heads of a row together, before rope.
    Rows,
    /// Each head with weights of its own, before rope, where there are any.
    OptionalByHead,
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    /// In front of attention and of the feed-forward block.
    Before,
    /// As `Before`; the second is called `post_attention_norm`.
    BeforeByAnotherName,
    /// Behind both, in front of the residual sum.
    After,
    BeforeAndAfter,
}

/// The tensors of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// `ffn_gate` and `ffn_up`.
    Gated,
    /// `ffn_up` is both: the first half of its rows is the gate.
    FusedGate,
    /// `ffn_up` alone.
    Plain,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// src/llama-model.cpp, `llama_model_rope_type`.
    pub(super) rope_pairing: RopePairing,
    pub(super) rope_layers: RopeLayers,
    pub(super) rope_divisors: RopeDivisors,
    pub(super) local_rope: LocalRope,
    /// Whether YaRN's ramp is what the file states (`rope.scaling.yarn_beta_fast` and `_slow`).
    pub(super) states_yarn_ramp: bool,
    /// Whether queries grow with the position by `attention.temperature_scale`.
    pub(super) has_query_temperature: bool,
    pub(super) activation: Activation,
    pub(super) feed_forward: FeedForward,
    pub(super) embedding_scale: EmbeddingScale,
    pub(super) residual_scale: ResidualScale,
    pub(super) logit_scale: LogitScale,
    pub(super) attention_soft_cap: SoftCap,
    pub(super) logit_soft_cap: SoftCap,
    pub(super) windows: Windows,
    /// Biases of the query, key and value projections.
    pub(super) qkv_bias: Presence,
    /// Biases of the other projections.
    pub(super) other_bias: Presence,
    pub(super) block: Block,
    pub(super) norm: NormKind,
    pub(super) norms: Norms,
    pub(super) qk_norm: QkNorm,
    /// Layers of the one size whose scale is `1 / sqrt(hidden_size / n_head)`.
    pub(super) hidden_scale_at_layers: Option<usize>,
}

/// src/models/llama.cpp
const LLAMA: Architecture = Architecture {
    name: "llama",
    rope_pairing: RopePairing::Adjacent,
    rope_layers: RopeLayers::All,
    rope_divisors: RopeDivisors::Fixed,
    local_rope: LocalRope::Same,
    states_yarn_ramp: false,
    has_query_temperature: false,
    activation: Activation::Silu,
    feed_forward: FeedForward::Gated,
    embedding_scale: EmbeddingScale::One,
    residual_scale: ResidualScale::One,
    logit_scale: LogitScale::None,
    attention_soft_cap: SoftCap::None,
    logit_soft_cap: SoftCap::None,
    windows: Windows::None,
    qkv_bias: Presence::Optional,
    other_bias: Presence::Optional,
    block: Block::Sequential,
    norm: NormKind::Rms,
    norms: Norms::Before,
    qk_norm: QkNorm::None,
    hidden_scale_at_layers: None,
};

/// What most architectures with halves as pairs have in common.
const HALVES: Architecture = Architecture {
    rope_pairing: RopePairing::Halves,
    rope_divisors: RopeDivisors::None,
    other_bias: Presence::Absent,
    ..LLAMA
};

/// src/models/gemma.cpp
const GEMMA: Architecture = Architecture {
    name: "gemma",
    activation: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::SqrtHiddenSize,
    qkv_bias: Presence::Absent,
    ..HALVES
};

/// src/models/command-r.cpp
const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    rope_divisors: RopeDivisors::None,
    other_bias: Presence::Absent,
    logit_scale: LogitScale::Multiplies,
    block: Block::Parallel,
    norm: NormKind::Layer(Presence::Absent),
    qk_norm: QkNorm::OptionalByHead,
    ..LLAMA
};

/// What architectures with LayerNorm and biases have in common.
const BIASED: Architecture = Architecture {
    activation: Activation::GeluTanh,
    feed_forward: FeedForward::Plain,
    norm: NormKind::Layer(Presence::Required),
    other_bias: Presence::Optional,
    ..HALVES
};

/// Every architecture that runs.
const TABLE: &[Architecture] = &[
    LLAMA,
    // src/models/qwen2.cpp
    Architecture {
        name: "qwen2",
        qkv_bias: Presence::Required,
        other_bias: Presence::Optional,
        ..HALVES
    },
    // src/models/qwen3.cpp
    Architecture {
        name: "qwen3",
        qk_norm: QkNorm::Heads,
        ..HALVES
    },
    GEMMA,
    // src/models/gemma2.cpp, and src/llama-hparams.h for the caps; the 27B model has 46 layers.
    Architecture {
        name: "gemma2",
        windows: Windows::Periodic {
            period: 2,
            default: Some(4096),
            at_layers: None,
        },
        attention_soft_cap: SoftCap::Stated(50.0),
        logit_soft_cap: SoftCap::Stated(30.0),
        norms: Norms::BeforeAndAfter,
        hidden_scale_at_layers: Some(46),
        ..GEMMA
    },
    // src/models/gemma3.cpp: five windowed layers, then a global one; the 27B model has 62 layers.
    Architecture {
        name: "gemma3",
        local_rope: LocalRope::OwnBase(10000.0),
        windows: Windows::Periodic {
            period: 6,
            default: None,
            at_layers: None,
        },
        norms: Norms::BeforeAndAfter,
        qk_norm: QkNorm::Heads,
        logit_soft_cap: SoftCap::Stated(0.0),
        hidden_scale_at_layers: Some(62),
        ..GEMMA
    },
    // src/models/phi3.cpp
    Architecture {
        name: "phi3",
        rope_divisors: RopeDivisors::ByContext,
        feed_forward: FeedForward::FusedGate,
        windows: Windows::Unused,
        ..HALVES
    },
    // src/models/mistral3.cpp
    Architecture {
        name: "mistral3",
        states_yarn_ramp: true,
        has_query_temperature: true,
        ..LLAMA
    },
    // src/models/smollm3.cpp
    Architecture {
        name: "smollm3",
        rope_layers: RopeLayers::AllButEach(4),
        rope_divisors: RopeDivisors::None,
        ..LLAMA
    },
    // src/models/internlm2.cpp
    Architecture {
        name: "internlm2",
        rope_divisors: RopeDivisors::None,
        ..LLAMA
    },
    // src/models/exaone.cpp
    Architecture {
        name: "exaone",
        rope_divisors: RopeDivisors::Fixed,
        ..HALVES
    },
    // src/models/exaone4.cpp: the 32B model has 64 layers and is the one with windows.
    Architecture {
        name: "exaone4",
        rope_divisors: RopeDivisors::Fixed,
        rope_layers: RopeLayers::Windowed,
        windows: Windows::Periodic {
            period: 4,
            default: None,
            at_layers: Some(64),
        },
        norms: Norms::After,
        qk_norm: QkNorm::Heads,
        ..HALVES
    },
    // src/models/seed-oss.cpp
    Architecture {
        name: "seed_oss",
        qkv_bias: Presence::Required,
        norms: Norms::BeforeByAnotherName,
        ..HALVES
    },
    // src/models/hunyuan-vl.cpp
    Architecture {
        name: "hunyuan-dense",
        qk_norm: QkNorm::HeadsAfterRope,
        ..HALVES
    },
    // src/models/olmo2.cpp: OLMo 3 states a window, and scales the rope of the other layers only.
    Architecture {
        name: "olmo2",
        local_rope: LocalRope::Unscaled,
        windows: Windows::Periodic {
            period: 4,
            default: None,
            at_layers: None,
        },
        norms: Norms::After,
        qk_norm: QkNorm::Rows,
        ..HALVES
    },
    // src/models/glm4.cpp
    Architecture {
        name: "glm4",
        rope_divisors: RopeDivisors::None,
        feed_forward: FeedForward::FusedGate,
        norms: Norms::BeforeAndAfter,
        other_bias: Presence::Absent,
        ..LLAMA
    },
    // src/models/granite.cpp
    Architecture {
        name: "granite",
        embedding_scale: EmbeddingScale::Stated(1.0),
        residual_scale: ResidualScale::Stated,
        logit_scale: LogitScale::Divides,
        ..LLAMA
    },
    // src/models/minicpm.cpp; without `logit_scale` arXiv:2404.06395, section 4.1
    Architecture {
        name: "minicpm",
        embedding_scale: EmbeddingScale::Stated(12.0),
        residual_scale: ResidualScale::StatedOrByDepth(1.4),
        logit_scale: LogitScale::DividesOrByWidth(256.0),
        ..LLAMA
    },
    COMMAND_R,
    // src/models/cohere2.cpp
    Architecture {
        name: "cohere2",
        rope_layers: RopeLayers::Windowed,
        windows: Windows::Periodic {
            period: 4,
            default: None,
            at_layers: None,
        },
        qk_norm: QkNorm::None,
        ..COMMAND_R
    },
    // src/models/stablelm.cpp
    Architecture {
        name: "stablelm",
        activation: Activation::Silu,
        feed_forward: FeedForward::Gated,
        block: Block::ParallelWithoutNorm,
        qk_norm: QkNorm::OptionalByHead,
        ..BIASED
    },
    // src/models/starcoder2.cpp
    Architecture {
        name: "starcoder2",
        ..BIASED
    },
    // src/models/phi2.cpp
    Architecture {
        name: "phi2",
        block: Block::Parallel,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/gptneox.cpp
    Architecture {
        name: "gptneox",
        block: Block::ParallelWhereStated,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/falcon.cpp
    Architecture {
        name: "falcon",
        block: Block::ParallelSecondNorm,
        qkv_bias: Presence::Absent,
        other_bias: Presence::Absent,
        ..BIASED
    },
    // src/models/nemotron.cpp
    Architecture {
        name: "nemotron",
        activation: Activation::ReluSquared,
        ..BIASED
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
