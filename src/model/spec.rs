//! The shape and constants of a decoder, read from the file.

use super::architectures::{
    self, Architecture, Attention, Block, DefaultWindow, EmbeddingScale, LocalRope, LogitScale,
    NormKind, Positions, Recurrence, ResidualScale, RopeLayers, SoftCap, Windows,
};
use super::expert_spec::{self, ExpertSpec};
use super::hybrid::{self, RecurrentSpec};
use super::hyperparameters::Hyperparameters;
use super::latent::{self, LatentSpec};
use super::rope::RopeSpec;
use super::{numbers, rope_spec, weights};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::{KvLayer, MAX_HEAD_DIM};
use crate::plan::Activation;

/// Everything about a decoder model that is not a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, empty where absent.
    pub name: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream (GGUF `embedding_length`).
    pub hidden_size: usize,
    /// Tokens the model was trained for.
    pub context_length: usize,
    /// Added to the mean square, or the variance, in every norm.
    pub norm_eps: f32,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// Positions that have an embedding, where positions are learned: the longest context.
    pub n_positions: Option<usize>,
    /// Factor on what each block adds to the residual.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// The cap on the logits.
    pub logit_soft_cap: Option<f32>,
    /// Of each feed-forward block.
    pub activation: Activation,
    /// Whether the file says that feed-forward blocks stand beside attention; `None` where it is not the one to
    /// say it.
    pub states_parallel: Option<bool>,
    /// Each layer.
    pub layers: Vec<LayerSpec>,
    /// Layers that the file has behind them: they predict tokens further ahead, and nothing here runs them.
    pub n_layer_unused: usize,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Query heads.
    pub n_head: usize,
    /// Key-value heads.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Latent attention: `head_dim` is then that of the keys that it stands for, and the cache has latents.
    pub latent: Option<LatentSpec>,
    /// Width of the feed-forward block, where it is no mixture of experts.
    pub intermediate_size: usize,
    /// The experts that the feed-forward block is a mixture of; `None` where it is dense.
    pub experts: Option<ExpertSpec>,
    /// Multiplies query-key products.
    pub attention_scale: f32,
    /// Tokens a query sees, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// Tokens of a chunk, where a query sees those of its own chunk alone.
    pub chunk: Option<usize>,
    /// The cap on scaled query-key products.
    pub soft_cap: Option<f32>,
    /// Whether distance lowers scores (ALiBi).
    pub alibi: bool,
    /// The rotary embedding; `None` for a layer that has none.
    pub rope: Option<RopeSpec>,
    /// What the layer computes in place of attention, of which it has nothing then: no heads.
    pub recurrent: Option<RecurrentSpec>,
}

impl DecoderSpec {
    /// Reads the spec of a file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture or a hyper-parameter that is not known,
    /// [`Error::InvalidModel`] for one that is missing or contradicts another.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        if gguf.tensors().is_empty() {
            let message = "the file has no tensors: it is a vocabulary without a model".to_owned();
            return Err(Error::InvalidModel { message });
        }
        let name = metadata.require_str("general.architecture")?;
        let architecture = architectures::find(name)?;
        let keys = Hyperparameters::new(metadata, name);

        let n_layer = in_range(&keys, "block_count", None, gguf.tensors().len())?;
        let hidden_size = in_range(&keys, "embedding_length", None, MAX_COUNT)?;
        let embedding = gguf
            .tensor("token_embd.weight")
            .ok_or_else(|| Error::InvalidModel {
                message: "tensor `token_embd.weight` is missing".to_owned(),
            })?;
        let vocab_size = embedding.n_rows();
        let mut layers = match architecture.attention {
            _ if architecture.recurrence != Recurrence::None => {
                hybrid::layers(gguf, architecture, &keys, n_layer, hidden_size)?
            }
            Attention::Heads => layers(gguf, architecture, &keys, n_layer, hidden_size)?,
            Attention::Latent => latent::layers(gguf, architecture, &keys, n_layer, vocab_size)?,
        };
        let n_layer_unused = match architecture.has_prediction_layers {
            true => keys.usize(PREDICTION_LAYERS)?.unwrap_or(0),
            false => 0,
        };
        if n_layer_unused >= n_layer {
            let what = format!("{n_layer_unused}, expected fewer than the {n_layer} layers");
            return Err(keys.invalid(PREDICTION_LAYERS, what));
        }
        layers.truncate(n_layer - n_layer_unused);
        let spec = DecoderSpec {
            architecture: name.to_owned(),
            name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
            vocab_size,
            hidden_size,
            context_length: in_range(&keys, "context_length", None, u32::MAX as usize)?,
            norm_eps: norm_eps(architecture, &keys)?,
            embedding_scale: match architecture.embedding_scale {
                EmbeddingScale::One => 1.0,
                EmbeddingScale::SqrtHiddenSize => (hidden_size as f32).sqrt(),
                EmbeddingScale::Stated(default) => factor(&keys, "embedding_scale", default)?,
            },
            n_positions: match architecture.positions {
                Positions::Rope | Positions::Alibi => None,
                Positions::Learned => gguf.tensor(weights::POSITIONS).map(|t| t.n_rows()),
            },
            residual_scale: match architecture.residual_scale {
                ResidualScale::One => 1.0,
                ResidualScale::Stated => factor(&keys, "residual_scale", 1.0)?,
                ResidualScale::StatedOrByDepth(depth) => {
                    factor(&keys, "residual_scale", depth / (n_layer as f32).sqrt())?
                }
            },
            logit_scale: match architecture.logit_scale {
                LogitScale::None => 1.0,
                LogitScale::Multiplies => required_factor(&keys, "logit_scale")?,
                LogitScale::Divides => 1.0 / required_factor(&keys, "logit_scale")?,
                LogitScale::DividesOrByWidth(width) => {
                    1.0 / factor(&keys, "logit_scale", hidden_size as f32 / width)?
                }
            },
            logit_soft_cap: soft_cap(
                &keys,
                "final_logit_softcapping",
                architecture.logit_soft_cap,
            )?,
            states_parallel: match architecture.block {
                Block::ParallelWhereStated => match keys.bool(PARALLEL)? {
                    None => return Err(keys.invalid(PARALLEL, "missing")),
                    stated => stated,
                },
                // The norm that is absent says it.
                Block::ParallelWithoutNorm => keys.bool(PARALLEL)?.and(None),
                Block::Sequential | Block::Parallel | Block::ParallelSecondNorm => None,
            },
            activation: architecture.activation,
            layers,
            n_layer_unused,
        };
        if let Some(stated) = keys.usize("vocab_size")?
            && stated != spec.vocab_size
        {
            let what = format!(
                "{stated}, but `token_embd.weight` has {} rows",
                spec.vocab_size
            );
            return Err(keys.invalid("vocab_size", what));
        }
        keys.refuse_unread()?;
        numbers::check(&spec)?;
        Ok(spec)
    }

    /// Layers of the decoder.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// What each layer's cache holds for a position.
    pub fn kv_layers(&self) -> Vec<KvLayer> {
        let layer = |layer: &LayerSpec| match &layer.latent {
            Some(latent) => latent.kv_layer(),
            None => KvLayer::separate(layer.n_head_kv, layer.head_dim),
        };
        self.layers.iter().map(layer).collect()
    }
}

/// The most that a count may be: far above any model, and products of two fit in `usize`.
pub(super) const MAX_COUNT: usize = 1 << 24;

const PARALLEL: &str = "use_parallel_residual";

const PREDICTION_LAYERS: &str = "nextn_predict_layers";

fn norm_eps(architecture: &Architecture, keys: &Hyperparameters<'_>) -> Result<f32> {
    let key = match architecture.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer(_) => "attention.layer_norm_epsilon",
    };
    match keys.require_f32(key)? {
        eps if eps >= 0.0 => Ok(eps),
        eps => Err(keys.invalid(key, format!("{eps}, expected at least 0"))),
    }
}

/// A factor that the file states; one of 0 says that there is none.
fn factor(keys: &Hyperparameters<'_>, key: &str, default: f32) -> Result<f32> {
    let stated = keys.f32(key)?.filter(|&factor| factor != 0.0);
    Ok(stated.unwrap_or(default))
}

/// As [`factor`], of a key that must be there.
fn required_factor(keys: &Hyperparameters<'_>, key: &str) -> Result<f32> {
    keys.require_f32(key)?;
    factor(keys, key, 1.0)
}

fn soft_cap(keys: &Hyperparameters<'_>, key: &str, cap: SoftCap) -> Result<Option<f32>> {
    let SoftCap::Stated(default) = cap else {
        return Ok(None);
    };
    let cap = keys.f32(key)?.unwrap_or(default);
    if cap < 0.0 {
        return Err(keys.invalid(key, format!("{cap}, expected at least 0")));
    }
    Ok((cap != 0.0).then_some(cap))
}

/// A count from 1 to `most`; `value` where it has been read already.
pub(super) fn in_range(
    keys: &Hyperparameters<'_>,
    key: &str,
    value: Option<usize>,
    most: usize,
) -> Result<usize> {
    let value = value.map_or_else(|| keys.require_usize(key), Ok)?;
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(keys.invalid(key, format!("{value}, expected 1 to {most}")))
}

fn layers(
    gguf: &Gguf,
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    n_layer: usize,
    hidden_size: usize,
) -> Result<Vec<LayerSpec>> {
    let optional = |key: &str| -> Result<Option<Vec<usize>>> {
        let counts = keys.per_layer(key, n_layer)?;
        for &count in counts.iter().flatten() {
            in_range(keys, key, Some(count), MAX_COUNT)?;
        }
        Ok(counts)
    };
    let required = |key: &str| optional(key)?.ok_or_else(|| keys.invalid(key, "missing"));
    let n_head = required("attention.head_count")?;
    let n_head_kv = optional("attention.head_count_kv")?.unwrap_or_else(|| n_head.clone());
    let intermediate_size = required("feed_forward_length")?;
    let experts = expert_spec::read(architecture, keys, &intermediate_size)?;
    let head_dim = match keys.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size / n_head[0],
    };
    if let Some(value_length) = keys.usize("attention.value_length")?
        && value_length != head_dim
    {
        let what = format!("{value_length}, expected the key length {head_dim}");
        return Err(keys.invalid("attention.value_length", what));
    }
    if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(4) {
        let what = format!("{head_dim}, expected a multiple of 4 up to {MAX_HEAD_DIM}");
        return Err(keys.invalid("attention.key_length", what));
    }
    let global_rope = rope_spec::read(gguf, architecture, keys, head_dim)?;
    let (window, windowed) = windows(architecture, keys, n_layer)?;
    let local_rope = match architecture.local_rope {
        LocalRope::Same => global_rope.clone(),
        _ if window.is_none() => global_rope.clone(),
        LocalRope::Unscaled => global_rope.unscaled(global_rope.theta),
        LocalRope::OwnBase(theta) => {
            global_rope.unscaled(keys.f32("rope.freq_base_swa")?.unwrap_or(theta))
        }
    };
    let turns = |layer: usize| match architecture.rope_layers {
        _ if architecture.positions != Positions::Rope => false,
        RopeLayers::All | RopeLayers::UnlessStated => true,
        RopeLayers::AllButEach(n) | RopeLayers::AllButEachWarmed(n, _) => {
            !(layer + 1).is_multiple_of(n)
        }
        RopeLayers::Windowed => windowed[layer] || window.is_none(),
    };
    let still_rope = match architecture.rope_layers {
        RopeLayers::AllButEachWarmed(_, temperature) => Some(RopeSpec {
            n_dims: head_dim,
            query_temperature: Some(temperature),
            ..global_rope.still()
        }),
        RopeLayers::All
        | RopeLayers::AllButEach(_)
        | RopeLayers::UnlessStated
        | RopeLayers::Windowed => None,
    };
    let chunk = match architecture.windows {
        Windows::Chunks { tokens, .. } => Some(tokens),
        Windows::None | Windows::Unused | Windows::Periodic { .. } => None,
    };
    let scale = match keys.f32("attention.scale")? {
        Some(scale) if scale != 0.0 => scale,
        _ => architecture.attention_scale(n_layer, hidden_size, n_head[0], head_dim),
    };
    let soft_cap = soft_cap(
        keys,
        "attn_logit_softcapping",
        architecture.attention_soft_cap,
    )?;
    (0..n_layer)
        .map(|layer| {
            let (n_head, n_head_kv) = (n_head[layer], n_head_kv[layer]);
            if !n_head.is_multiple_of(n_head_kv) {
                let what = format!(
                    "{n_head_kv} in layer {layer}, expected a divisor of the {n_head} query heads"
                );
                return Err(keys.invalid("attention.head_count_kv", what));
            }
            Ok(LayerSpec {
                n_head,
                n_head_kv,
                head_dim,
                latent: None,
                intermediate_size: intermediate_size[layer],
                experts: experts[layer].clone(),
                attention_scale: scale,
                window: window.filter(|_| windowed[layer]),
                chunk: chunk.filter(|_| windowed[layer]),
                soft_cap,
                alibi: architecture.positions == Positions::Alibi,
                rope: match turns(layer) {
                    true if windowed[layer] => Some(local_rope.clone()),
                    true => Some(global_rope.clone()),
                    false => still_rope.clone(),
                },
                recurrent: None,
            })
        })
        .collect()
}

/// The window of a model, and which layers have it.
fn windows(
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    n_layer: usize,
) -> Result<(Option<usize>, Vec<bool>)> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    const WINDOW: &str = "attention.sliding_window";
    let nowhere = vec![false; n_layer];
    let (period, default, at_layers) = match architecture.windows {
        Windows::None => return Ok((None, nowhere)),
        Windows::Unused => {
            keys.usize(WINDOW)?;
            return Ok((None, nowhere));
        }
        Windows::Chunks { period, .. } => {
            if keys.usize(WINDOW)? == Some(0) {
                let what = "0, expected layers with chunks";
                return Err(keys.invalid(WINDOW, what));
            }
            return Ok((None, keys.windowed_layers(PATTERN, period, n_layer)?));
        }
        Windows::Periodic {
            period,
            default,
            at_layers,
        } => (period, default, at_layers),
    };
    let window = match (keys.usize(WINDOW)?, default) {
        (Some(0) | None, DefaultWindow::Refused) => {
            return Err(keys.invalid(WINDOW, "0 or missing, expected at least 1"));
        }
        (None, DefaultWindow::Tokens(tokens)) => Some(tokens),
        (stated, _) => stated,
    };
    // No window is what a window of 0 says.
    let window = window.filter(|&window| window > 0 && at_layers.is_none_or(|n| n == n_layer));
    let windowed = keys.windowed_layers(PATTERN, period, n_layer)?;
    Ok((window, if window.is_some() { windowed } else { nowhere }))
}
