//! The table of architectures: what a file of each does not say and llama.cpp's code does.
//!
//! Sources are file names of llama.cpp at commit 0c1e57098; see docs/ADDING-AN-ARCHITECTURE.md.

mod table;

use self::table::TABLE;
use crate::error::{Error, Result};
use crate::plan::{Activation, Gating, QueryTemperature, RopePairing};

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
    /// The file must state it, as where it divides.
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
    /// All but each `period`-th layer see chunks of so many tokens, whatever window the file states.
    Chunks {
        period: usize,
        tokens: usize,
    },
    /// All but each `period`-th layer, where the model has a window.
    Periodic {
        period: usize,
        /// The window of a file that states none.
        default: DefaultWindow,
        /// The one number of layers that has windows; `None` for any.
        at_layers: Option<usize>,
    },
}

/// The window of a file that states none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultWindow {
    /// No layer has one.
    None,
    Tokens(usize),
    /// The file is refused, as one whose window is 0 is.
    Refused,
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeLayers {
    All,
    /// All but each `n`-th.
    AllButEach(usize),
    /// The same; queries of the others have a temperature.
    AllButEachWarmed(usize, QueryTemperature),
    /// All, unless `rope.scaling.finetuned` is false.
    UnlessStated,
    /// The windowed ones; all where the model has no window.
    Windowed,
}

/// How a model knows positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// Queries and keys turn.
    Rope,
    /// `position_embd` has a row for each.
    Learned,
    /// Distance lowers scores.
    Alibi,
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
    /// Each head, before rope, where there are weights.
    OptionalHeads,
    /// Each head with weights of its own, before rope, where there are any.
    OptionalByHead,
    /// Each head, after rope and without weights, in layers that turn; in none of a model with so many experts.
    TurnedWithoutWeight {
        unless_experts: usize,
    },
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

/// The experts that all tokens have, beside those that are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SharedExpert {
    None,
    /// Added as it is, where the file states its width.
    Plain,
    /// Times the sigmoid of a product of its own.
    Gated,
    /// Added as it is, always, as wide as the others.
    AsExpert,
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// Keys and values of heads.
    Heads,
    /// Latents, which keys and values are made of.
    Latent,
}

/// How a mixture of experts, which has `expert_count` of them, differs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Experts {
    /// Makes scores of logits, where the file does not state it.
    pub(super) gating: Gating,
    /// Whether the file states how scores become weights (`expert_gating_func`, `expert_weights_norm` and
    /// `expert_weights_scale`), and groups of experts.
    pub(super) is_stated: bool,
    /// Whether layers may be dense: the first `leading_dense_block_count`, and all but each
    /// `interleave_moe_layer_step`-th.
    pub(super) has_dense_layers: bool,
    /// Whether weights multiply what experts take in.
    pub(super) weighs_inputs: bool,
    /// Whether weights are divided by their sum, where the file does not state it.
    pub(super) normalised: bool,
    /// The bias of scores for the choice alone.
    pub(super) choice_bias: Presence,
    /// The biases of the router and of all experts.
    pub(super) bias: Presence,
    pub(super) shared: SharedExpert,
}

/// The heads of keys that the heads of values of a gated delta net have, where these are more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyHeads {
    /// In turn, over and over.
    Tiled,
    /// Neighbours have one; the products that give their decays and rates are one matrix.
    Grouped,
}

/// What layers without attention compute instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recurrence {
    /// There are none.
    None,
    /// Layers without key-value heads are short convolutions; the last norm is called `token_embd_norm`.
    ShortConv,
    /// Layers without key-value heads are selective state spaces.
    Mamba,
    /// Likewise, with one decay a head.
    Mamba2,
    /// All but each so-many-th layer are gated delta nets, and the others' attention is gated.
    DeltaNet(KeyHeads),
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Whose files have it.
    pub(super) models: &'static str,
    pub(super) positions: Positions,
    /// src/llama-model.cpp, `llama_model_rope_type`.
    pub(super) rope_pairing: RopePairing,
    pub(super) rope_layers: RopeLayers,
    pub(super) rope_divisors: RopeDivisors,
    pub(super) local_rope: LocalRope,
    /// Whether YaRN's ramp is what the file states (`rope.scaling.yarn_beta_fast` and `_slow`).
    pub(super) states_yarn_ramp: bool,
    /// Whether queries grow with the position by `attention.temperature_scale`.
    pub(super) has_query_temperature: bool,
    pub(super) attention: Attention,
    /// Whether the last `nextn_predict_layers` layers predict tokens further ahead: they are left out.
    pub(super) has_prediction_layers: bool,
    pub(super) activation: Activation,
    pub(super) feed_forward: FeedForward,
    /// The experts, where a file has any; `None` where it may not.
    pub(super) experts: Option<Experts>,
    pub(super) embedding_scale: EmbeddingScale,
    /// Whether a norm follows the embedding.
    pub(super) embedding_norm: bool,
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
    /// Whether each head has a score without a value.
    pub(super) has_sinks: bool,
    pub(super) recurrence: Recurrence,
    /// Layers of the one size whose scale is `1 / sqrt(hidden_size / n_head)`.
    pub(super) hidden_scale_at_layers: Option<usize>,
}

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

/// The architectures that run: the name that files have (`general.architecture`), and the models.
pub fn architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|row| (row.name, row.models))
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
