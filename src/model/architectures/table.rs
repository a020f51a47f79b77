//! The rows of the table, in which sources are file names of llama.cpp at commit 0c1e57098.

use super::{
    Architecture, Attention, Block, DefaultWindow, EmbeddingScale, Experts, Family, FeedForward,
    KeyHeads, LocalRope, LogitScale, NormKind, Norms, Positions, Presence, QkNorm, Recurrence,
    ResidualScale, RopeDivisors, RopeLayers, SharedExpert, SoftCap, Windows,
};
use crate::plan::{Activation, Gating, QueryTemperature, RopePairing};

/// src/models/llama.cpp
const LLAMA: Architecture = Architecture {
    name: "llama",
    models: "Llama 2 and 3, Mistral, Mixtral, TinyLlama, SmolLM2",
    family: Family::Decoder,
    positions: Positions::Rope,
    rope_pairing: RopePairing::Adjacent,
    rope_layers: RopeLayers::All,
    rope_divisors: RopeDivisors::Fixed,
    local_rope: LocalRope::Same,
    states_yarn_ramp: false,
    has_query_temperature: false,
    attention: Attention::Heads,
    has_prediction_layers: false,
    activation: Activation::Silu,
    feed_forward: FeedForward::Gated,
    experts: None,
    embedding_scale: EmbeddingScale::One,
    embedding_norm: false,
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
    has_sinks: false,
    recurrence: Recurrence::None,
    hidden_scale_at_layers: None,
};

/// Experts by softmax over all, their weights divided by their sum: src/llama-graph.cpp, `build_moe_ffn`.
const EXPERTS: Experts = Experts {
    gating: Gating::Softmax,
    is_stated: false,
    has_dense_layers: false,
    weighs_inputs: false,
    normalised: true,
    choice_bias: Presence::Absent,
    bias: Presence::Absent,
    shared: SharedExpert::None,
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
    models: "Gemma",
    activation: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::SqrtHiddenSize,
    qkv_bias: Presence::Absent,
    ..HALVES
};

/// src/models/command-r.cpp
const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    models: "Command R and R+",
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

/// src/models/lfm2.cpp
const LFM2: Architecture = Architecture {
    name: "lfm2",
    models: "LFM2",
    qkv_bias: Presence::Absent,
    qk_norm: QkNorm::Heads,
    recurrence: Recurrence::ShortConv,
    ..HALVES
};

/// src/models/qwen35.cpp
const QWEN35: Architecture = Architecture {
    name: "qwen35",
    models: "Qwen 3.5 (text)",
    qkv_bias: Presence::Absent,
    norms: Norms::BeforeByAnotherName,
    qk_norm: QkNorm::Heads,
    recurrence: Recurrence::DeltaNet(KeyHeads::Tiled),
    has_prediction_layers: true,
    ..HALVES
};

/// Every architecture that runs.
pub(super) const TABLE: &[Architecture] = &[
    Architecture {
        experts: Some(EXPERTS),
        ..LLAMA
    },
    // src/models/llama4.cpp; Maverick has 128 experts.
    Architecture {
        name: "llama4",
        models: "Llama 4 Scout and Maverick (text)",
        rope_layers: RopeLayers::AllButEachWarmed(
            4,
            QueryTemperature {
                scale: 0.1,
                tokens: 8192,
                offset: 1,
            },
        ),
        windows: Windows::Chunks {
            period: 4,
            tokens: 8192,
        },
        qk_norm: QkNorm::TurnedWithoutWeight {
            unless_experts: 128,
        },
        other_bias: Presence::Absent,
        experts: Some(Experts {
            gating: Gating::Sigmoid,
            has_dense_layers: true,
            weighs_inputs: true,
            normalised: false,
            shared: SharedExpert::AsExpert,
            ..EXPERTS
        }),
        ..LLAMA
    },
    // src/models/qwen2.cpp
    Architecture {
        name: "qwen2",
        models: "Qwen 2 and 2.5",
        qkv_bias: Presence::Required,
        other_bias: Presence::Optional,
        ..HALVES
    },
    // src/models/qwen3.cpp
    Architecture {
        name: "qwen3",
        models: "Qwen 3",
        qk_norm: QkNorm::Heads,
        ..HALVES
    },
    // src/models/qwen2moe.cpp
    Architecture {
        name: "qwen2moe",
        models: "Qwen 1.5 and 2 (mixtures of experts)",
        qkv_bias: Presence::Required,
        experts: Some(Experts {
            normalised: false,
            shared: SharedExpert::Gated,
            ..EXPERTS
        }),
        ..HALVES
    },
    // src/models/qwen3moe.cpp
    Architecture {
        name: "qwen3moe",
        models: "Qwen 3 (mixtures of experts)",
        qk_norm: QkNorm::Heads,
        experts: Some(EXPERTS),
        ..HALVES
    },
    // src/models/olmoe.cpp
    Architecture {
        name: "olmoe",
        models: "OLMoE",
        qkv_bias: Presence::Absent,
        qk_norm: QkNorm::Rows,
        experts: Some(Experts {
            normalised: false,
            ..EXPERTS
        }),
        ..HALVES
    },
    // src/models/openai-moe.cpp; the softmax over the chosen logits alone is what the normalised one over all gives.
    Architecture {
        name: "gpt-oss",
        models: "gpt-oss",
        activation: Activation::ClampedSwiglu,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        norms: Norms::BeforeByAnotherName,
        windows: Windows::Periodic {
            period: 2,
            default: DefaultWindow::Refused,
            at_layers: None,
        },
        has_sinks: true,
        experts: Some(Experts {
            bias: Presence::Required,
            ..EXPERTS
        }),
        ..HALVES
    },
    // src/models/glm4-moe.cpp
    Architecture {
        name: "glm4moe",
        models: "GLM-4.5",
        norms: Norms::BeforeByAnotherName,
        qk_norm: QkNorm::OptionalHeads,
        has_prediction_layers: true,
        experts: Some(Experts {
            gating: Gating::Sigmoid,
            is_stated: true,
            has_dense_layers: true,
            normalised: false,
            choice_bias: Presence::Optional,
            shared: SharedExpert::Plain,
            ..EXPERTS
        }),
        ..HALVES
    },
    // src/models/deepseek2.cpp
    Architecture {
        name: "deepseek2",
        models: "DeepSeek V2, V2-Lite, V3 and R1",
        attention: Attention::Latent,
        has_prediction_layers: true,
        rope_divisors: RopeDivisors::None,
        other_bias: Presence::Absent,
        experts: Some(Experts {
            is_stated: true,
            normalised: false,
            has_dense_layers: true,
            choice_bias: Presence::Optional,
            shared: SharedExpert::Plain,
            ..EXPERTS
        }),
        ..LLAMA
    },
    // src/models/ernie4-5-moe.cpp
    Architecture {
        name: "ernie4_5-moe",
        models: "ERNIE 4.5 (mixtures of experts)",
        rope_divisors: RopeDivisors::None,
        experts: Some(Experts {
            has_dense_layers: true,
            choice_bias: Presence::Optional,
            shared: SharedExpert::Plain,
            ..EXPERTS
        }),
        ..LLAMA
    },
    GEMMA,
    // src/models/gemma2.cpp, and src/llama-hparams.h for the caps; the 27B model has 46 layers.
    Architecture {
        name: "gemma2",
        models: "Gemma 2",
        windows: Windows::Periodic {
            period: 2,
            default: DefaultWindow::Tokens(4096),
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
        models: "Gemma 3 (text)",
        local_rope: LocalRope::OwnBase(10000.0),
        windows: Windows::Periodic {
            period: 6,
            default: DefaultWindow::None,
            at_layers: None,
        },
        norms: Norms::BeforeAndAfter,
        qk_norm: QkNorm::Heads,
        logit_soft_cap: SoftCap::Stated(0.0),
        hidden_scale_at_layers: Some(62),
        ..GEMMA
    },
    // src/models/gemma4.cpp; a window must be stated.
    Architecture {
        name: "gemma4",
        models: "Gemma 4 (text): dense, mixtures of experts, E2B and E4B",
        family: Family::Gemma4,
        rope_divisors: RopeDivisors::Fixed,
        local_rope: LocalRope::OwnBase(10000.0),
        windows: Windows::Periodic {
            period: 6,
            default: DefaultWindow::Refused,
            at_layers: None,
        },
        experts: Some(EXPERTS),
        norms: Norms::BeforeAndAfter,
        qk_norm: QkNorm::Heads,
        logit_soft_cap: SoftCap::Stated(0.0),
        ..GEMMA
    },
    // src/models/phi3.cpp
    Architecture {
        name: "phi3",
        models: "Phi-3, Phi-3.5 and Phi-4, LongRoPE included",
        rope_divisors: RopeDivisors::ByContext,
        feed_forward: FeedForward::FusedGate,
        windows: Windows::Unused,
        ..HALVES
    },
    // src/models/mistral3.cpp
    Architecture {
        name: "mistral3",
        models: "Ministral 3",
        states_yarn_ramp: true,
        has_query_temperature: true,
        experts: Some(EXPERTS),
        ..LLAMA
    },
    // src/models/smollm3.cpp
    Architecture {
        name: "smollm3",
        models: "SmolLM3",
        rope_layers: RopeLayers::AllButEach(4),
        rope_divisors: RopeDivisors::None,
        ..LLAMA
    },
    // src/models/internlm2.cpp
    Architecture {
        name: "internlm2",
        models: "InternLM 2 and 2.5",
        rope_divisors: RopeDivisors::None,
        ..LLAMA
    },
    // src/models/exaone.cpp
    Architecture {
        name: "exaone",
        models: "EXAONE 3 and 3.5",
        rope_divisors: RopeDivisors::Fixed,
        ..HALVES
    },
    // src/models/exaone4.cpp: the 32B model has 64 layers and is the one with windows.
    Architecture {
        name: "exaone4",
        models: "EXAONE 4",
        rope_divisors: RopeDivisors::Fixed,
        rope_layers: RopeLayers::Windowed,
        windows: Windows::Periodic {
            period: 4,
            default: DefaultWindow::Tokens(4096),
            at_layers: Some(64),
        },
        norms: Norms::After,
        qk_norm: QkNorm::Heads,
        ..HALVES
    },
    // src/models/seed-oss.cpp
    Architecture {
        name: "seed_oss",
        models: "Seed-OSS",
        qkv_bias: Presence::Required,
        norms: Norms::BeforeByAnotherName,
        ..HALVES
    },
    // src/models/hunyuan-vl.cpp
    Architecture {
        name: "hunyuan-dense",
        models: "Hunyuan (dense)",
        qk_norm: QkNorm::HeadsAfterRope,
        ..HALVES
    },
    // src/models/olmo2.cpp: OLMo 3 states a window, and scales the rope of the other layers only.
    Architecture {
        name: "olmo2",
        models: "OLMo 2 and 3",
        local_rope: LocalRope::Unscaled,
        windows: Windows::Periodic {
            period: 4,
            default: DefaultWindow::None,
            at_layers: None,
        },
        norms: Norms::After,
        qk_norm: QkNorm::Rows,
        ..HALVES
    },
    // src/models/glm4.cpp
    Architecture {
        name: "glm4",
        models: "GLM-4",
        rope_divisors: RopeDivisors::None,
        feed_forward: FeedForward::FusedGate,
        norms: Norms::BeforeAndAfter,
        other_bias: Presence::Absent,
        ..LLAMA
    },
    // src/models/granite.cpp
    Architecture {
        name: "granite",
        models: "Granite 3 (dense)",
        embedding_scale: EmbeddingScale::Stated(1.0),
        residual_scale: ResidualScale::Stated,
        logit_scale: LogitScale::Divides,
        ..LLAMA
    },
    // src/models/granite.cpp
    Architecture {
        name: "granitemoe",
        models: "Granite 3 (mixtures of experts)",
        embedding_scale: EmbeddingScale::Stated(1.0),
        residual_scale: ResidualScale::Stated,
        logit_scale: LogitScale::Divides,
        experts: Some(Experts {
            shared: SharedExpert::Plain,
            ..EXPERTS
        }),
        ..LLAMA
    },
    // src/models/minicpm.cpp; without `logit_scale` arXiv:2404.06395, section 4.1
    Architecture {
        name: "minicpm",
        models: "MiniCPM",
        embedding_scale: EmbeddingScale::Stated(12.0),
        residual_scale: ResidualScale::StatedOrByDepth(1.4),
        logit_scale: LogitScale::DividesOrByWidth(256.0),
        ..LLAMA
    },
    COMMAND_R,
    // src/models/cohere2.cpp
    Architecture {
        name: "cohere2",
        models: "Command R7B and Command A",
        rope_layers: RopeLayers::Windowed,
        windows: Windows::Periodic {
            period: 4,
            default: DefaultWindow::Refused,
            at_layers: None,
        },
        qk_norm: QkNorm::None,
        ..COMMAND_R
    },
    // src/models/stablelm.cpp
    Architecture {
        name: "stablelm",
        models: "StableLM 2",
        activation: Activation::Silu,
        feed_forward: FeedForward::Gated,
        block: Block::ParallelWithoutNorm,
        qk_norm: QkNorm::OptionalByHead,
        ..BIASED
    },
    // src/models/starcoder2.cpp
    Architecture {
        name: "starcoder2",
        models: "StarCoder2",
        ..BIASED
    },
    // src/models/phi2.cpp
    Architecture {
        name: "phi2",
        models: "Phi-1, Phi-1.5 and Phi-2",
        block: Block::Parallel,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/gptneox.cpp
    Architecture {
        name: "gptneox",
        models: "GPT-NeoX, Pythia",
        block: Block::ParallelWhereStated,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/falcon.cpp
    Architecture {
        name: "falcon",
        models: "Falcon 7B and 40B",
        block: Block::ParallelSecondNorm,
        qkv_bias: Presence::Absent,
        other_bias: Presence::Absent,
        ..BIASED
    },
    // src/models/gpt2.cpp
    Architecture {
        name: "gpt2",
        models: "GPT-2",
        positions: Positions::Learned,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/bert.cpp
    Architecture {
        name: "bert",
        models: "BERT encoders: BGE, E5, MiniLM, GTE, mxbai-embed and others",
        family: Family::Encoder,
        positions: Positions::Learned,
        embedding_norm: true,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        norms: Norms::After,
        ..BIASED
    },
    // src/models/bert.cpp
    Architecture {
        name: "nomic-bert",
        models: "Nomic Embed 1 and 1.5 (encoders)",
        family: Family::Encoder,
        activation: Activation::Silu,
        feed_forward: FeedForward::Gated,
        embedding_norm: true,
        norms: Norms::After,
        ..BIASED
    },
    // src/models/bloom.cpp
    Architecture {
        name: "bloom",
        models: "BLOOM",
        positions: Positions::Alibi,
        embedding_norm: true,
        qkv_bias: Presence::Required,
        other_bias: Presence::Required,
        ..BIASED
    },
    // src/models/nemotron.cpp
    Architecture {
        name: "nemotron",
        models: "Nemotron 4, Minitron",
        activation: Activation::ReluSquared,
        ..BIASED
    },
    LFM2,
    Architecture {
        name: "lfm2moe",
        models: "LFM2 (mixtures of experts)",
        experts: Some(Experts {
            gating: Gating::Sigmoid,
            is_stated: true,
            has_dense_layers: true,
            choice_bias: Presence::Required,
            ..EXPERTS
        }),
        ..LFM2
    },
    // src/models/mamba.cpp
    Architecture {
        name: "mamba",
        models: "Mamba",
        recurrence: Recurrence::Mamba,
        ..LLAMA
    },
    // src/models/mamba2.cpp
    Architecture {
        name: "mamba2",
        models: "Mamba 2",
        recurrence: Recurrence::Mamba2,
        ..LLAMA
    },
    // src/models/granite-hybrid.cpp
    Architecture {
        name: "granitehybrid",
        models: "Granite 4",
        rope_layers: RopeLayers::UnlessStated,
        rope_divisors: RopeDivisors::None,
        embedding_scale: EmbeddingScale::Stated(1.0),
        residual_scale: ResidualScale::Stated,
        logit_scale: LogitScale::Divides,
        experts: Some(Experts {
            shared: SharedExpert::Plain,
            ..EXPERTS
        }),
        recurrence: Recurrence::Mamba2,
        ..LLAMA
    },
    QWEN35,
    // src/models/qwen35moe.cpp
    Architecture {
        name: "qwen35moe",
        models: "Qwen 3.5 (mixtures of experts, text)",
        experts: Some(Experts {
            shared: SharedExpert::Gated,
            ..EXPERTS
        }),
        ..QWEN35
    },
    // src/models/qwen3next.cpp
    Architecture {
        name: "qwen3next",
        models: "Qwen 3 Next",
        experts: Some(Experts {
            shared: SharedExpert::Gated,
            ..EXPERTS
        }),
        recurrence: Recurrence::DeltaNet(KeyHeads::Grouped),
        ..QWEN35
    },
];
