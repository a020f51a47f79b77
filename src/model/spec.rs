//! The shape and constants of a decoder, read from the file.

use super::architectures::{
    self, Architecture, Block, EmbeddingScale, LocalRope, LogitScale, NormKind, ResidualScale,
    RopeDivisors as Divisors, RopeLayers, SoftCap, Windows,
};
use super::hyperparameters::Hyperparameters;
use super::rope::{RopeDivisors, RopeScaling, RopeSpec};
use super::weights;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, WeightType};
use crate::kv_cache::{KvLayer, MAX_HEAD_DIM};
use crate::plan::{Activation, QueryTemperature};

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
    /// Factor on what each block adds to the residual.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// The cap on the logits.
    pub logit_soft_cap: Option<f32>,
    /// Of each feed-forward block.
    pub activation: Activation,
    /// Whether the file says that attention and feed-forward blocks stand beside each other; `None` where it
    /// need not.
    pub states_parallel: Option<bool>,
    /// Each layer.
    pub layers: Vec<LayerSpec>,
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
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Multiplies query-key products.
    pub attention_scale: f32,
    /// Tokens a query sees, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// The cap on scaled query-key products.
    pub soft_cap: Option<f32>,
    /// The rotary embedding; `None` for a layer that has none.
    pub rope: Option<RopeSpec>,
}

impl DecoderSpec {
    /// Reads the spec of a file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture or a hyper-parameter that is not known,
    /// [`Error::InvalidModel`] for one that is missing or contradicts another.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
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
        let spec = DecoderSpec {
            architecture: name.to_owned(),
            name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
            vocab_size: embedding.n_rows(),
            hidden_size,
            context_length: in_range(&keys, "context_length", None, u32::MAX as usize)?,
            norm_eps: norm_eps(architecture, &keys)?,
            embedding_scale: match architecture.embedding_scale {
                EmbeddingScale::One => 1.0,
                EmbeddingScale::SqrtHiddenSize => (hidden_size as f32).sqrt(),
                EmbeddingScale::Stated(default) => factor(&keys, "embedding_scale", default)?,
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
                LogitScale::Multiplies => factor(&keys, "logit_scale", 1.0)?,
                LogitScale::Divides => 1.0 / factor(&keys, "logit_scale", 1.0)?,
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
                Block::ParallelWhereStated | Block::ParallelWithoutNorm => {
                    keys.bool("use_parallel_residual")?
                }
                Block::Sequential | Block::Parallel | Block::ParallelSecondNorm => None,
            },
            activation: architecture.activation,
            layers: layers(gguf, architecture, &keys, n_layer, hidden_size)?,
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
        Ok(spec)
    }

    /// Layers of the decoder.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// What each layer's cache holds for a position.
    pub fn kv_layers(&self) -> Vec<KvLayer> {
        let layer = |layer: &LayerSpec| KvLayer {
            n_head_kv: layer.n_head_kv,
            head_dim: layer.head_dim,
        };
        self.layers.iter().map(layer).collect()
    }
}

/// The most that a count may be: far above any model, and products of two fit in `usize`.
const MAX_COUNT: usize = 1 << 24;

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
fn in_range(
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
    let global_rope = rope(gguf, architecture, keys, head_dim)?;
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
        RopeLayers::All => true,
        RopeLayers::AllButEach(n) => !(layer + 1).is_multiple_of(n),
        RopeLayers::Windowed => windowed[layer] || window.is_none(),
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
                intermediate_size: intermediate_size[layer],
                attention_scale: scale,
                window: window.filter(|_| windowed[layer]),
                soft_cap,
                rope: turns(layer).then(|| match windowed[layer] {
                    true => local_rope.clone(),
                    false => global_rope.clone(),
                }),
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
    let nowhere = vec![false; n_layer];
    let (period, default, at_layers) = match architecture.windows {
        Windows::None => return Ok((None, nowhere)),
        Windows::Unused => {
            keys.usize("attention.sliding_window")?;
            return Ok((None, nowhere));
        }
        Windows::Periodic {
            period,
            default,
            at_layers,
        } => (period, default, at_layers),
    };
    // No window is what a window of 0 says.
    let window = keys.usize("attention.sliding_window")?.or(default);
    let window = window.filter(|&window| window > 0 && at_layers.is_none_or(|n| n == n_layer));
    let windowed = keys.windowed_layers(PATTERN, period, n_layer)?;
    Ok((window, if window.is_some() { windowed } else { nowhere }))
}

fn rope(
    gguf: &Gguf,
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    head_dim: usize,
) -> Result<RopeSpec> {
    let n_dims = keys.usize("rope.dimension_count")?.unwrap_or(head_dim);
    if n_dims == 0 || n_dims > head_dim || !n_dims.is_multiple_of(2) {
        let what = format!("{n_dims}, expected an even number up to the head's {head_dim}");
        return Err(keys.invalid("rope.dimension_count", what));
    }
    let theta = keys.f32("rope.freq_base")?.unwrap_or(10000.0);
    // `rope.scale_linear` is the older name of the factor.
    let older = keys.f32("rope.scale_linear")?;
    let factor = keys.f32("rope.scaling.factor")?.or(older).unwrap_or(1.0);
    if theta <= 1.0 {
        return Err(keys.invalid("rope.freq_base", format!("{theta}, expected more than 1")));
    }
    let factor = if factor == 0.0 { 1.0 } else { factor };
    if factor < 0.0 {
        return Err(keys.invalid(
            "rope.scaling.factor",
            format!("{factor}, expected more than 0"),
        ));
    }
    let original_context_length = keys.usize("rope.scaling.original_context_length")?;
    let log_multiplier = keys.f32("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    let scaling = match keys.str("rope.scaling.type")? {
        Some("none") => RopeScaling::None,
        None | Some("linear") if factor == 1.0 => RopeScaling::None,
        None | Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => RopeScaling::Yarn {
            factor,
            original_context_length: match original_context_length {
                Some(length) if length > 0 => length,
                _ => keys.require_usize("context_length")?,
            },
            log_multiplier,
            ramp: match architecture.states_yarn_ramp {
                true => [
                    keys.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    keys.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                ],
                false => [32.0, 1.0],
            },
        },
        Some(other) => {
            return Err(Error::Unsupported {
                kind: "rope scaling",
                name: other.to_owned(),
                supported: "none, linear, yarn".to_owned(),
            });
        }
    };
    Ok(RopeSpec {
        pairing: architecture.rope_pairing,
        n_dims,
        theta,
        scaling,
        attention_factor: keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0),
        divisors: match architecture.rope_divisors {
            Divisors::None => RopeDivisors::None,
            Divisors::Fixed => rope_divisors(gguf, weights::ROPE_DIVISORS, n_dims)?
                .map_or(RopeDivisors::None, RopeDivisors::Fixed),
            Divisors::ByContext => {
                let [short, long] = weights::LONG_ROPE_DIVISORS;
                let short = rope_divisors(gguf, short, n_dims)?;
                match (short, rope_divisors(gguf, long, n_dims)?) {
                    (Some(short), Some(long)) => RopeDivisors::ByContext {
                        most_short: match original_context_length {
                            Some(length) => length,
                            None => keys.require_usize("context_length")?,
                        },
                        short,
                        long,
                    },
                    _ => RopeDivisors::None,
                }
            }
        },
        query_temperature: match architecture.has_query_temperature {
            true => query_temperature(keys, original_context_length, n_dims == head_dim)?,
            false => None,
        },
    })
}

fn query_temperature(
    keys: &Hyperparameters<'_>,
    original_context_length: Option<usize>,
    turns_whole_heads: bool,
) -> Result<Option<QueryTemperature>> {
    const KEY: &str = "attention.temperature_scale";
    let scale = keys.f32(KEY)?.filter(|&scale| scale != 0.0);
    let Some(scale) = scale else { return Ok(None) };
    let tokens = match original_context_length {
        Some(length) if length > 0 => length,
        _ => keys.require_usize("context_length")?,
    };
    if !turns_whole_heads {
        let what = format!("{scale}, but rope turns a part of each head");
        return Err(keys.invalid(KEY, what));
    }
    Ok(Some(QueryTemperature {
        scale: f64::from(scale),
        tokens,
    }))
}

fn rope_divisors(gguf: &Gguf, name: &str, n_dims: usize) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = gguf.tensor(name) else {
        return Ok(None);
    };
    let invalid = |what: String| Error::InvalidModel {
        message: format!("tensor `{}`: {what}", tensor.name),
    };
    if tensor.shape != [n_dims / 2] {
        return Err(invalid(format!(
            "shape {:?}, expected [{}]",
            tensor.shape,
            n_dims / 2
        )));
    }
    let mut divisors = vec![0.0; n_dims / 2];
    WeightType::try_from(tensor.ty)?.decode(gguf.tensor_bytes(tensor), &mut divisors);
    match divisors.iter().find(|d| !(d.is_finite() && **d != 0.0)) {
        Some(bad) => Err(invalid(format!(
            "{bad}, expected finite divisors other than 0"
        ))),
        None => Ok(Some(divisors)),
    }
}
