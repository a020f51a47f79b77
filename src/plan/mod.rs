//! The forward pass as data: buffers and named steps that every executor runs in the same order.
//!
//! A [`Plan`] is written once for a model family (`model/decoder.rs`) and run by each
//! device. All activations are `f32`; a buffer is `[n_rows, width]`, rows outermost.

mod builder;
mod check;
mod experts;
#[cfg(test)]
mod latent_tests;
mod recurrent;
#[cfg(test)]
mod tests;

pub(crate) use builder::{AttentionParams, PlanBuilder, Router};
pub use experts::{ExpertGroups, Gating};
pub use recurrent::{Columns, State, StateId};
pub(crate) use recurrent::{MAX_STATE_SIZE, MAX_TAPS};

use crate::model::{WeightId, Weights};
use std::borrow::Cow;

/// A buffer of a [`Plan`], by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub(crate) usize);

/// A rope table of a [`Plan`], by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeTableId(pub(crate) usize);

/// Which rows a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One row for each token of the batch.
    Tokens,
    /// One row for each token whose logits are wanted.
    Outputs,
    /// So many rows for each token of the batch, one for each expert chosen for it, in the order of choice.
    Chosen(usize),
}

impl Extent {
    /// Rows for each token, or output.
    pub fn n_slots(self) -> usize {
        match self {
            Extent::Tokens | Extent::Outputs => 1,
            Extent::Chosen(n) => n,
        }
    }
}

/// An activation, `[n_rows, width] f32`. Steps of different layers share it by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// The name without a layer, e.g. `attn_norm`.
    pub name: String,
    /// Elements in a row.
    pub width: usize,
    /// Which rows there are.
    pub extent: Extent,
}

/// Which dimensions of a head a rotation pairs (RoFormer, arXiv:2104.09864, and the two layouts in use).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Dimensions `2i` and `2i + 1`.
    Adjacent,
    /// Dimensions `i` and `i + n_dims / 2`.
    Halves,
}

/// The angles of a rotary position embedding: pair `i` turns by `position * inverse_frequency[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Which dimensions form a pair.
    pub pairing: RopePairing,
    /// Radians for each position, `[n_dims / 2]`; scaling and divisors are already in it.
    pub inverse_frequency: Vec<f64>,
    /// Multiplies sine and cosine (the magnitude of YaRN).
    pub magnitude: f64,
    /// Multiplies them by the position.
    pub temperature: Option<QueryTemperature>,
}

/// A factor that grows with the position: `1 + scale * ln(1 + floor((position + offset) / tokens))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryTemperature {
    /// Of the logarithm.
    pub scale: f64,
    /// Positions that share a factor.
    pub tokens: usize,
    /// Of the first position.
    pub offset: usize,
}

impl QueryTemperature {
    fn factor(self, position: usize) -> f64 {
        let steps = (position + self.offset) / self.tokens.max(1);
        1.0 + self.scale * (1.0 + steps as f64).ln()
    }
}

impl RopeTable {
    /// The dimensions of a head that turn; those behind them pass through.
    pub fn n_dims(&self) -> usize {
        self.inverse_frequency.len() * 2
    }

    /// Cosine and sine of every pair at `position`: `[n_dims / 2, 2] f32`.
    pub fn row(&self, position: usize) -> impl Iterator<Item = [f32; 2]> + '_ {
        let temperature = self.temperature.map_or(1.0, |t| t.factor(position));
        let magnitude = self.magnitude * temperature;
        self.inverse_frequency.iter().map(move |&frequency| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            [(cos * magnitude) as f32, (sin * magnitude) as f32]
        })
    }
}

/// The non-linearity of a feed-forward block: on its gate, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh form (arXiv:1606.08415, section 2).
    GeluTanh,
    /// `max(x, 0)^2` (arXiv:2109.08668, section 3.1).
    ReluSquared,
    /// `g * sigmoid(1.702 * g)` of `g = min(x, 7)`; a block gated by it takes `clamp(up, -7, 7) + 1` for `up`
    /// (gpt-oss; llama.cpp, src/llama-graph.cpp).
    ClampedSwiglu,
    /// `x`: a gate that is a factor.
    Identity,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// What names a row of an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedIndex {
    /// The token.
    Token,
    /// The position.
    Position,
    /// Nothing: each row looks up the first.
    First,
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `x * factor`.
    Scale(f32),
    /// `cap * tanh(x / cap)` (arXiv:2408.00118, section 2).
    SoftCap(f32),
    /// A non-linearity.
    Activation(Activation),
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// What a step computes. Closed on purpose: every executor matches it without a wildcard.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `dst[row] = weight[index(row)] * scale`.
    Embed {
        /// `[n_indices, hidden_size]`.
        weight: WeightId,
        /// What a row looks up.
        index: EmbedIndex,
        /// Factor on the embedding.
        scale: f32,
        /// `[n_rows, hidden_size]`.
        dst: BufferId,
    },
    /// `dst = src / sqrt(mean(src^2) + eps) (* weight)` over each group of `group` elements
    /// (arXiv:1910.07467, equation 4; llama.cpp puts eps inside the root).
    RmsNorm {
        /// `[n_rows, n_groups * group]`; a row has one group (a layer's norm) or several (a norm of each head).
        src: BufferId,
        /// `[group]`.
        weight: Option<WeightId>,
        /// Elements that are normalised together.
        group: usize,
        /// Added to the mean square.
        eps: f32,
        /// As `src`.
        dst: BufferId,
    },
    /// `dst = (src - mean) / sqrt(variance + eps) * weight (+ bias)` over each group of `group` elements
    /// (arXiv:1607.06450, equation 4).
    LayerNorm {
        /// `[n_rows, n_groups * group]`.
        src: BufferId,
        /// `[group]`, or several of them, which the groups of a row take in turn.
        weight: WeightId,
        /// As `weight`.
        bias: Option<WeightId>,
        /// Elements that are normalised together.
        group: usize,
        /// Added to the variance.
        eps: f32,
        /// As `src`.
        dst: BufferId,
    },
    /// `dst[row, j] = sum_i src[row, i] * weight[j, i] (+ bias[j])`, on activations that batches of
    /// few rows round to int8.
    MatMul {
        /// `[n_rows, n_cols]`.
        src: BufferId,
        /// `[n_out, n_cols]`.
        weight: WeightId,
        /// `[n_out]`.
        bias: Option<WeightId>,
        /// Batches of at most this many rows round `src` to int8 with a scale for each 32 elements
        /// (`kernels/quantize.rs`); 0 for none.
        int8_rows: usize,
        /// `[n_rows, n_out]`.
        dst: BufferId,
    },
    /// The experts of a token: the best `n_chosen`, best first, by their scores plus `bias`, of equal ones the
    /// first. Ids are whole numbers, as floats.
    ChooseExperts {
        /// `[n_rows, n_expert]`.
        logits: BufferId,
        /// `[n_expert]`, added to scores for the choice alone.
        bias: Option<WeightId>,
        /// Makes scores of logits.
        gating: Gating,
        /// The groups that experts are chosen from.
        groups: Option<ExpertGroups>,
        /// `[n_rows, n_chosen]`.
        dst: BufferId,
    },
    /// What the result of each chosen expert counts: its score, divided by the sum of the chosen ones' where
    /// `normalised` (a sum of at least 2^-14), times `scale`.
    ExpertWeights {
        /// `[n_rows, n_expert]`.
        logits: BufferId,
        /// `[n_rows, n_chosen]`: ids.
        chosen: BufferId,
        /// Makes scores of logits.
        gating: Gating,
        /// Whether scores are divided by their sum.
        normalised: bool,
        /// A factor on all.
        scale: f32,
        /// `[n_expert]`: a factor on each expert's.
        factors: Option<WeightId>,
        /// `[n_rows, n_chosen]`.
        dst: BufferId,
    },
    /// The product of each token with the matrices of its experts: for expert `e` of slot `s`
    /// `dst[row, s, j] = sum_i src[row(, s), i] * weight[e, j, i] (+ bias[e, j])`.
    ExpertMatMul {
        /// `[n_rows, n_cols]`, or a row of each slot `[n_rows, n_chosen, n_cols]`.
        src: BufferId,
        /// `[n_rows, n_chosen]`: ids.
        chosen: BufferId,
        /// `[n_expert * n_out, n_cols]`.
        weight: WeightId,
        /// `[n_expert * n_out]`.
        bias: Option<WeightId>,
        /// Matrices in `weight`.
        n_expert: usize,
        /// As of [`Op::MatMul`], counted in tokens.
        int8_rows: usize,
        /// `[n_rows, n_chosen, n_out]`.
        dst: BufferId,
    },
    /// The product of each head with a matrix of its own: behind the elements of a head that no column meets come the
    /// products of the others, `dst[row, h] = [src[row, h, n_cols..], weight[h] src[row, h, ..n_cols]]`.
    HeadMatMul {
        /// `[n_rows, n_head * src_dim]`.
        src: BufferId,
        /// `[n_head * n_out, n_cols]`.
        weight: WeightId,
        /// Heads.
        n_head: usize,
        /// `[n_rows, n_head * (src_dim - n_cols + n_out)]`.
        dst: BufferId,
    },
    /// `dst[row, s] = weights[row, s] * src[row]`.
    WeighSlots {
        /// `[n_rows, width]`.
        src: BufferId,
        /// `[n_rows, n_slots]`.
        weights: BufferId,
        /// `[n_rows, n_slots, width]`.
        dst: BufferId,
    },
    /// `dst[row] = sum_s weights[row, s] * src[row, s]`.
    WeightedSum {
        /// `[n_rows, n_slots, width]`.
        src: BufferId,
        /// `[n_rows, n_slots]`; ones where there are none.
        weights: Option<BufferId>,
        /// `[n_rows, width]`.
        dst: BufferId,
    },
    /// Turns each head of `src` by its row's position.
    Rope {
        /// `[n_rows, n_head * head_dim]`.
        src: BufferId,
        /// The angles.
        table: RopeTableId,
        /// Elements in a head.
        head_dim: usize,
        /// As `src`.
        dst: BufferId,
    },
    /// Appends the batch's keys and values to a layer's cache, rounded to the cache's type.
    StoreKv {
        /// `[n_rows, n_head_kv * head_dim]`.
        k: BufferId,
        /// `[n_rows, n_head_kv * value_dim]`.
        v: BufferId,
        /// The layer.
        layer: usize,
    },
    /// Attention over a layer's cache: head `h` reads key-value head
    /// `h / (n_head / n_head_kv)` (grouped queries, arXiv:2305.13245).
    Attention {
        /// `[n_rows, n_head * query_dim]`: a head is as long as a key, the value included where it ends the key.
        q: BufferId,
        /// The layer whose cache is read.
        layer: usize,
        /// Query heads.
        n_head: usize,
        /// Multiplies the dot products.
        scale: f32,
        /// Whether no query sees a key behind its own; where not, each sees all up to the end of the batch, which
        /// must hold the whole text.
        causal: bool,
        /// Key `j` is visible to query `i` where `0 <= i - j < window`.
        window: Option<usize>,
        /// And where it is no earlier than the last multiple of this up to `i`.
        chunk: Option<usize>,
        /// The cap on scaled dot products (arXiv:2408.00118, section 2).
        soft_cap: Option<f32>,
        /// Whether distance lowers scores, by a slope of each head (ALiBi, arXiv:2108.12409).
        alibi: bool,
        /// `[n_head]`: a score of each head that has a share of the softmax and no value (arXiv:2309.17453).
        sinks: Option<WeightId>,
        /// `[n_rows, n_head * value_dim]`.
        dst: BufferId,
    },
    /// `dst = activation(gate) * up` (arXiv:2002.05202).
    GatedActivation {
        /// `[n_rows, intermediate_size]`.
        gate: BufferId,
        /// `[n_rows, intermediate_size]`.
        up: BufferId,
        /// On the gate.
        activation: Activation,
        /// `[n_rows, intermediate_size]`.
        dst: BufferId,
    },
    /// `dst = function(src)`, of each element for itself.
    Map {
        /// `[n_rows, width]`.
        src: BufferId,
        /// Of an element.
        function: Function,
        /// `[n_rows, width]`.
        dst: BufferId,
    },
    /// `dst[row, c] = f(sum_t weight[c, t] * src[row + t + 1 - n_taps, c] (+ bias[c]))`, each channel for itself. The rows
    /// in front of the batch are those of the state, which has the last `n_taps - 1` of all.
    CausalConv {
        /// `[n_rows, n_channels]`.
        src: BufferId,
        /// `[n_channels, n_taps]`.
        weight: WeightId,
        /// `[n_channels]`.
        bias: Option<WeightId>,
        /// Rows that a result is made of, its own included.
        n_taps: usize,
        /// `f`.
        activation: Activation,
        /// `[n_taps - 1, n_channels]`.
        state: StateId,
        /// `[n_rows, n_channels]`.
        dst: BufferId,
    },
    /// The selective state space of each head (arXiv:2312.00752, algorithm 2; arXiv:2405.21060, section 2). Row by row, with
    /// `step = softplus(dt[h])` and group `g = h / (n_head / n_group)`: `state[h, i, n]` becomes
    /// `state[h, i, n] * exp(step * a[h, n]) + step * x[h, i] * b[g, n]`, and
    /// `dst[h, i] = sum_n state[h, i, n] * c[g, n] + d[h] * x[h, i]`.
    StateScan {
        /// `[n_rows, n_head * head_dim]`.
        x: Columns,
        /// `[n_rows, n_head]`.
        dt: BufferId,
        /// `[n_rows, n_group * n_state]`.
        b: Columns,
        /// `[n_rows, n_group * n_state]`.
        c: Columns,
        /// `[n_head, n_state]`, or `[n_head]` for all of a head.
        a: WeightId,
        /// `[n_head]`.
        d: WeightId,
        /// Groups of heads.
        n_group: usize,
        /// `[n_head, head_dim, n_state]`.
        state: StateId,
        /// `[n_rows, n_head * head_dim]`.
        dst: BufferId,
    },
    /// The gated delta rule of each head (arXiv:2412.06464, equation 10). Row by row, with queries and keys divided by the root of
    /// their sum of squares plus `eps`: `state *= exp(a[h] * softplus(alpha[h] + bias[h]))`,
    /// `state += sigmoid(beta[h]) * (v - state k) k^T` and `dst = state q / sqrt(n_state)`.
    DeltaRule {
        /// `[n_rows, (2 * n_head_k + n_head) * n_state]`: queries, keys, values.
        qkv: BufferId,
        /// `[n_rows, n_head]`.
        alpha: BufferId,
        /// `[n_rows, n_head]`.
        beta: BufferId,
        /// `[n_head]`.
        a: WeightId,
        /// `[n_head]`.
        bias: WeightId,
        /// Heads of queries and of keys.
        n_head_k: usize,
        /// Whether head `h` has the keys of head `h % n_head_k`, else those of `h / (n_head / n_head_k)`.
        is_tiled: bool,
        /// Added to sums of squares.
        eps: f32,
        /// `[n_head, n_state, n_state]`.
        state: StateId,
        /// `[n_rows, n_head * n_state]`.
        dst: BufferId,
    },
    /// `dst = src / sqrt(mean(src^2) + eps) * weight` over each group of `group` elements, each with weights of its own.
    GroupNorm {
        /// `[n_rows, n_groups * group]`.
        src: BufferId,
        /// `[n_groups * group]`.
        weight: WeightId,
        /// Elements that are normalised together.
        group: usize,
        /// Added to the mean square.
        eps: f32,
        /// As `src`.
        dst: BufferId,
    },
    /// `dst[row, g * length + i] = src[row, g * period + first + i]`, `i < length`.
    TakeColumns {
        /// `[n_rows, n_groups * period]`.
        src: BufferId,
        /// Of the columns of each group the first that is taken.
        first: usize,
        /// How many are taken.
        length: usize,
        /// Columns of a group.
        period: usize,
        /// `[n_rows, n_groups * length]`.
        dst: BufferId,
    },
    /// `dst = a + b`.
    Add {
        /// `[n_rows, width]`.
        a: BufferId,
        /// `[n_rows, width]`.
        b: BufferId,
        /// `[n_rows, width]`.
        dst: BufferId,
    },
    /// Keeps the rows whose logits are wanted: the last `n_outputs` of the batch.
    SelectOutputs {
        /// `[n_rows, width]`.
        src: BufferId,
        /// `[n_outputs, width]`.
        dst: BufferId,
    },
}

impl Op {
    /// The buffer this op writes; none for [`Op::StoreKv`], which writes the cache.
    pub fn dst(&self) -> Option<BufferId> {
        match *self {
            Op::Embed { dst, .. }
            | Op::RmsNorm { dst, .. }
            | Op::LayerNorm { dst, .. }
            | Op::MatMul { dst, .. }
            | Op::ChooseExperts { dst, .. }
            | Op::ExpertWeights { dst, .. }
            | Op::ExpertMatMul { dst, .. }
            | Op::HeadMatMul { dst, .. }
            | Op::WeighSlots { dst, .. }
            | Op::WeightedSum { dst, .. }
            | Op::Rope { dst, .. }
            | Op::Attention { dst, .. }
            | Op::GatedActivation { dst, .. }
            | Op::Map { dst, .. }
            | Op::CausalConv { dst, .. }
            | Op::StateScan { dst, .. }
            | Op::DeltaRule { dst, .. }
            | Op::GroupNorm { dst, .. }
            | Op::TakeColumns { dst, .. }
            | Op::Add { dst, .. }
            | Op::SelectOutputs { dst, .. } => Some(dst),
            Op::StoreKv { .. } => None,
        }
    }

    /// The buffers this op reads.
    pub fn sources(&self) -> Vec<BufferId> {
        match *self {
            Op::Embed { .. } => vec![],
            Op::RmsNorm { src, .. }
            | Op::LayerNorm { src, .. }
            | Op::Map { src, .. }
            | Op::CausalConv { src, .. }
            | Op::GroupNorm { src, .. }
            | Op::TakeColumns { src, .. }
            | Op::MatMul { src, .. }
            | Op::HeadMatMul { src, .. }
            | Op::Rope { src, .. }
            | Op::SelectOutputs { src, .. } => vec![src],
            Op::StoreKv { k, v, .. } => vec![k, v],
            Op::Attention { q, .. } => vec![q],
            Op::GatedActivation { gate, up, .. } => vec![gate, up],
            Op::Add { a, b, .. } => vec![a, b],
            Op::ChooseExperts { logits, .. } => vec![logits],
            Op::ExpertWeights { logits, chosen, .. } => vec![logits, chosen],
            Op::ExpertMatMul { src, chosen, .. } => vec![src, chosen],
            Op::WeighSlots { src, weights, .. } => vec![src, weights],
            Op::WeightedSum { src, weights, .. } => [src].into_iter().chain(weights).collect(),
            Op::StateScan { x, dt, b, c, .. } => vec![x.buffer, dt, b.buffer, c.buffer],
            Op::DeltaRule {
                qkv, alpha, beta, ..
            } => vec![qkv, alpha, beta],
        }
    }
}

/// An [`Op`] with the name that trace, verify, profile and errors use, e.g. `blk.3.attn_norm`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Unique in its plan.
    pub name: String,
    /// What it computes.
    pub op: Op,
}

impl Step {
    /// The layer it belongs to; none for those before and behind all layers.
    pub fn layer(&self) -> Option<usize> {
        layer_and_name(&self.name).0
    }

    /// The name without the layer, e.g. `attn_norm`.
    pub fn name_in_layer(&self) -> &str {
        layer_and_name(&self.name).1
    }
}

/// A step's name as its layer and the name in it: `blk.3.attn_norm` is layer 3 and `attn_norm`, `embd` no layer and
/// `embd`.
pub fn layer_and_name(step: &str) -> (Option<usize>, &str) {
    let of_layer = || {
        let (layer, name) = step.strip_prefix("blk.")?.split_once('.')?;
        Some((Some(layer.parse().ok()?), name))
    };
    of_layer().unwrap_or((None, step))
}

/// A forward pass: run the steps in order and the last buffer holds the logits, or what an encoder makes of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The most tokens in a batch.
    pub max_rows: usize,
    /// The most rows of logits in a batch.
    pub max_outputs: usize,
    /// Every buffer, by [`BufferId`].
    pub buffers: Vec<Buffer>,
    /// Every rope table, by [`RopeTableId`].
    pub rope_tables: Vec<RopeTable>,
    /// Every state, by [`StateId`].
    pub states: Vec<State>,
    /// In the order of execution.
    pub steps: Vec<Step>,
    /// `[n_outputs, vocab_size]`; of an encoder `[n_outputs, hidden_size]`.
    pub logits: BufferId,
    /// The last step of each layer, whose result is the layer's: what sentinels look at.
    pub layer_outputs: Vec<usize>,
}

impl Plan {
    /// The plan with the inputs of every product with quantised weights rounded to int8 in batches of
    /// at most `max_rows` rows.
    pub(crate) fn with_int8_activations(mut self, weights: &Weights, max_rows: usize) -> Plan {
        for step in &mut self.steps {
            if let Op::MatMul {
                weight, int8_rows, ..
            }
            | Op::ExpertMatMul {
                weight, int8_rows, ..
            } = &mut step.op
                && weights.get(*weight).ty.is_quantised()
            {
                *int8_rows = max_rows;
            }
        }
        self
    }

    /// Whether a batch may follow another: no row sees what is behind it. Else each batch is a text of its own.
    pub fn is_causal(&self) -> bool {
        let sees_behind = |step: &Step| matches!(step.op, Op::Attention { causal: false, .. });
        !self.steps.iter().any(sees_behind)
    }

    /// Where a step stands among those that give the result of a layer, and the buffer of its result.
    pub(crate) fn layer_output(&self, step: usize) -> Option<(usize, BufferId)> {
        let place = self.layer_outputs.binary_search(&step).ok()?;
        Some((place, self.steps.get(step)?.op.dst()?))
    }

    /// The buffer of an id of this plan.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }

    /// The most rows that a buffer holds.
    pub fn max_rows_of(&self, id: BufferId) -> usize {
        match self.buffer(id).extent {
            Extent::Tokens => self.max_rows,
            Extent::Outputs => self.max_outputs,
            Extent::Chosen(n) => self.max_rows * n,
        }
    }

    /// Elements of a buffer for each token, or output.
    pub fn token_width(&self, id: BufferId) -> usize {
        let buffer = self.buffer(id);
        buffer.width * buffer.extent.n_slots()
    }

    /// The rows of a buffer in one batch.
    pub fn rows_of(&self, id: BufferId, batch: &Batch<'_>) -> usize {
        match self.buffer(id).extent {
            Extent::Tokens => batch.n_rows(),
            Extent::Outputs => batch.n_outputs(),
            Extent::Chosen(n) => batch.n_rows() * n,
        }
    }
}

/// Which rows of a batch get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: the batch only fills the cache.
    None,
    /// The last token.
    Last,
    /// Every token.
    All,
}

/// Tokens to run at consecutive positions.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The token of each row, at most [`Plan::max_rows`].
    pub tokens: &'a [u32],
    /// The position of the first row: the number of tokens already in the cache.
    pub position: usize,
    /// Which rows get logits, at most [`Plan::max_outputs`].
    pub outputs: Outputs,
}

impl Batch<'_> {
    /// What each row looks up in an embedding.
    pub(crate) fn indices(&self, index: EmbedIndex) -> Cow<'_, [u32]> {
        match index {
            EmbedIndex::Token => Cow::Borrowed(self.tokens),
            EmbedIndex::Position => {
                let positions = self.position..self.position + self.n_rows();
                positions.map(|position| position as u32).collect()
            }
            EmbedIndex::First => vec![0; self.n_rows()].into(),
        }
    }

    /// Rows of token-wide buffers.
    pub fn n_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of output-wide buffers.
    pub fn n_outputs(&self) -> usize {
        match self.outputs {
            Outputs::None => 0,
            Outputs::Last => 1.min(self.tokens.len()),
            Outputs::All => self.tokens.len(),
        }
    }
}
