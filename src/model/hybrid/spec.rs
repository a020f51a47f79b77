//! Which layers of a hybrid model attend, and what the others compute.

use super::super::architectures::{Architecture, KeyHeads, Recurrence, RopeLayers};
use super::super::expert_spec;
use super::super::hyperparameters::Hyperparameters;
use super::super::rope_spec;
use super::super::spec::{LayerSpec, MAX_COUNT, in_range};
use crate::error::Result;
use crate::gguf::Gguf;
use crate::kv_cache::MAX_HEAD_DIM;
use crate::plan::{MAX_STATE_SIZE, MAX_TAPS};

/// What a layer computes in place of attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecurrentSpec {
    /// A convolution between two gates (arXiv:2511.23404, section 2).
    ShortConv {
        /// Tokens that a result is made of, its own included.
        n_taps: usize,
    },
    /// A selective state space (arXiv:2312.00752).
    Mamba {
        /// Tokens that the convolution in front sees.
        n_taps: usize,
        /// Width of what the state space takes in.
        inner_size: usize,
        /// Elements that each of its columns keeps.
        state_size: usize,
        /// Rank of the projection that steps come from.
        step_rank: usize,
    },
    /// A selective state space of heads (arXiv:2405.21060).
    Mamba2 {
        /// Tokens that the convolution in front sees.
        n_taps: usize,
        /// Width of what the state space takes in.
        inner_size: usize,
        /// Elements that each of its columns keeps.
        state_size: usize,
        /// Heads, each with one decay.
        n_head: usize,
        /// Groups of heads with inputs and outputs of the state in common.
        n_group: usize,
    },
    /// A gated delta net (arXiv:2412.06464).
    DeltaNet {
        /// Tokens that the convolution in front sees.
        n_taps: usize,
        /// Elements of a head.
        state_size: usize,
        /// Heads of queries and of keys.
        n_head_k: usize,
        /// Heads of values.
        n_head: usize,
        /// Whether head `h` of values has the keys of head `h % n_head_k`, else those of `h / (n_head / n_head_k)`.
        is_tiled: bool,
    },
}

/// The layers of a file.
pub(in super::super) fn layers(
    gguf: &Gguf,
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    n_layer: usize,
    hidden_size: usize,
) -> Result<Vec<LayerSpec>> {
    let counts = |key: &str| -> Result<Vec<usize>> {
        let counts = keys.per_layer(key, n_layer)?;
        let counts = counts.ok_or_else(|| keys.invalid(key, "missing"))?;
        match counts.iter().find(|&&count| count > MAX_COUNT) {
            Some(count) => Err(keys.invalid(key, format!("{count}, expected at most {MAX_COUNT}"))),
            None => Ok(counts),
        }
    };
    let n_head = counts("attention.head_count")?;
    let n_head_kv = match keys.per_layer("attention.head_count_kv", n_layer)? {
        Some(_) => counts("attention.head_count_kv")?,
        None => n_head.clone(),
    };
    // Files of which every layer has experts say nothing of dense layers (qwen35moe).
    let has_experts =
        architecture.experts.is_some() && keys.usize("expert_count")?.unwrap_or(0) > 0;
    let intermediate_size = match keys.per_layer("feed_forward_length", n_layer)? {
        None if has_experts => vec![0; n_layer],
        _ => counts("feed_forward_length")?,
    };
    let experts = expert_spec::read(architecture, keys, &intermediate_size)?;
    let recurrent = recurrent_layers(architecture, keys, &n_head_kv)?;
    let most_heads = n_head.iter().copied().max().unwrap_or(0);
    let attention = match recurrent.iter().all(Option::is_some) {
        true => None,
        false => Some(attention(
            gguf,
            architecture,
            keys,
            (hidden_size, most_heads),
        )?),
    };
    (0..n_layer)
        .map(|layer| {
            let common = LayerSpec {
                n_head: 0,
                n_head_kv: 0,
                head_dim: 0,
                latent: None,
                intermediate_size: intermediate_size[layer],
                experts: experts[layer].clone(),
                attention_scale: 1.0,
                window: None,
                chunk: None,
                soft_cap: None,
                alibi: false,
                rope: None,
                recurrent: recurrent[layer].clone(),
                cache_layer: layer,
                output_scale: 1.0,
            };
            let Some(attention) = attention.as_ref().filter(|_| recurrent[layer].is_none()) else {
                return Ok(common);
            };
            let (n_head, n_head_kv) = (n_head[layer], n_head_kv[layer]);
            if n_head_kv == 0 || n_head == 0 || !n_head.is_multiple_of(n_head_kv) {
                let what = format!(
                    "{n_head_kv} in layer {layer}, expected a divisor of the {n_head} query heads"
                );
                return Err(keys.invalid("attention.head_count_kv", what));
            }
            Ok(LayerSpec {
                n_head,
                n_head_kv,
                ..LayerSpec {
                    intermediate_size: common.intermediate_size,
                    experts: common.experts,
                    cache_layer: layer,
                    ..attention.clone()
                }
            })
        })
        .collect()
}

/// What all layers with attention have in common.
fn attention(
    gguf: &Gguf,
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    (hidden_size, n_head): (usize, usize),
) -> Result<LayerSpec> {
    let head_dim = match keys.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size / n_head.max(1),
    };
    if keys
        .usize("attention.value_length")?
        .is_some_and(|n| n != head_dim)
    {
        let what = format!("not the key length {head_dim}");
        return Err(keys.invalid("attention.value_length", what));
    }
    if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(4) {
        let what = format!("{head_dim}, expected a multiple of 4 up to {MAX_HEAD_DIM}");
        return Err(keys.invalid("attention.key_length", what));
    }
    let rope = rope_spec::read(gguf, architecture, keys, head_dim)?;
    // Parts of the pairs, for positions in pictures; those of text are the same in all.
    keys.per_layer("rope.dimension_sections", 4)?;
    let finetuned = keys.bool("rope.scaling.finetuned")?;
    let turns = architecture.rope_layers != RopeLayers::UnlessStated || finetuned != Some(false);
    let stated = keys.f32("attention.scale")?.filter(|&scale| scale != 0.0);
    Ok(LayerSpec {
        n_head,
        n_head_kv: n_head,
        head_dim,
        latent: None,
        intermediate_size: 0,
        experts: None,
        attention_scale: stated.unwrap_or(1.0 / (head_dim as f32).sqrt()),
        window: None,
        chunk: None,
        soft_cap: None,
        alibi: false,
        rope: turns.then_some(rope),
        recurrent: None,
        cache_layer: 0,
        output_scale: 1.0,
    })
}

fn divides(keys: &Hyperparameters<'_>, key: &str, count: usize, of: usize) -> Result<()> {
    if of.is_multiple_of(count) {
        return Ok(());
    }
    Err(keys.invalid(key, format!("{count}, expected a divisor of {of}")))
}

/// What each layer computes in place of attention; `None` for those that attend.
fn recurrent_layers(
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    n_head_kv: &[usize],
) -> Result<Vec<Option<RecurrentSpec>>> {
    let taps = |key: &str| match keys.require_usize(key)? {
        n_taps if (2..=MAX_TAPS).contains(&n_taps) => Ok(n_taps),
        n_taps => Err(keys.invalid(key, format!("{n_taps}, expected 2 to {MAX_TAPS}"))),
    };
    let count = |key: &str, most: usize| in_range(keys, key, None, most);
    let without_heads = |spec: &RecurrentSpec| {
        let spec = |&n_head_kv: &usize| (n_head_kv == 0).then(|| spec.clone());
        n_head_kv.iter().map(spec).collect::<Vec<_>>()
    };
    Ok(match architecture.recurrence {
        Recurrence::None => vec![None; n_head_kv.len()],
        Recurrence::ShortConv => without_heads(&RecurrentSpec::ShortConv {
            n_taps: taps("shortconv.l_cache")?,
        }),
        Recurrence::Mamba => {
            // As in Falcon Mamba.
            if keys.bool("ssm.dt_b_c_rms")? == Some(true) {
                return Err(keys.invalid("ssm.dt_b_c_rms", "true, expected false"));
            }
            without_heads(&RecurrentSpec::Mamba {
                n_taps: taps("ssm.conv_kernel")?,
                inner_size: count("ssm.inner_size", MAX_COUNT)?,
                state_size: count("ssm.state_size", MAX_STATE_SIZE)?,
                step_rank: count("ssm.time_step_rank", MAX_COUNT)?,
            })
        }
        Recurrence::Mamba2 => {
            let inner_size = count("ssm.inner_size", MAX_COUNT)?;
            let n_head = count("ssm.time_step_rank", inner_size)?;
            let n_group = count("ssm.group_count", n_head)?;
            divides(keys, "ssm.time_step_rank", n_head, inner_size)?;
            divides(keys, "ssm.group_count", n_group, n_head)?;
            without_heads(&RecurrentSpec::Mamba2 {
                n_taps: taps("ssm.conv_kernel")?,
                inner_size,
                state_size: count("ssm.state_size", MAX_STATE_SIZE)?,
                n_head,
                n_group,
            })
        }
        Recurrence::DeltaNet(heads) => {
            let state_size = count("ssm.state_size", MAX_STATE_SIZE)?;
            let n_head = count("ssm.time_step_rank", MAX_COUNT)?;
            let n_head_k = count("ssm.group_count", n_head)?;
            divides(keys, "ssm.group_count", n_head_k, n_head)?;
            let inner_size = count("ssm.inner_size", MAX_COUNT)?;
            if n_head * state_size != inner_size {
                let what = format!("{inner_size}, expected {n_head} heads of {state_size}");
                return Err(keys.invalid("ssm.inner_size", what));
            }
            let spec = RecurrentSpec::DeltaNet {
                n_taps: taps("ssm.conv_kernel")?,
                state_size,
                n_head_k,
                n_head,
                is_tiled: heads == KeyHeads::Tiled,
            };
            // The layers that the file names, or all but each so-many-th.
            let period = keys.usize("full_attention_interval")?.unwrap_or(4);
            let n_layer = n_head_kv.len();
            let are = keys.windowed_layers("attention.recurrent_layers", period, n_layer)?;
            are.into_iter().map(|is| is.then(|| spec.clone())).collect()
        }
    })
}
