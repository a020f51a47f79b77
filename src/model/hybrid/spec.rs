//! Which layers of a hybrid model attend, and what the others compute.

use super::super::architectures::{Architecture, Recurrence};
use super::super::expert_spec;
use super::super::hyperparameters::Hyperparameters;
use super::super::rope_spec;
use super::super::spec::{LayerSpec, MAX_COUNT};
use crate::error::Result;
use crate::gguf::Gguf;
use crate::kv_cache::MAX_HEAD_DIM;
use crate::plan::MAX_TAPS;

/// What a layer computes in place of attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecurrentSpec {
    /// A convolution between two gates (arXiv:2511.23404, section 2).
    ShortConv {
        /// Tokens that a result is made of, its own included.
        n_taps: usize,
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
    let intermediate_size = counts("feed_forward_length")?;
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
                intermediate_size: intermediate_size[layer],
                experts: experts[layer].clone(),
                attention_scale: 1.0,
                window: None,
                soft_cap: None,
                alibi: false,
                rope: None,
                recurrent: recurrent[layer].clone(),
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
    let stated = keys.f32("attention.scale")?.filter(|&scale| scale != 0.0);
    Ok(LayerSpec {
        n_head,
        n_head_kv: n_head,
        head_dim,
        intermediate_size: 0,
        experts: None,
        attention_scale: stated.unwrap_or(1.0 / (head_dim as f32).sqrt()),
        window: None,
        soft_cap: None,
        alibi: false,
        rope: Some(rope),
        recurrent: None,
    })
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
    let without_heads = |spec: &RecurrentSpec| {
        let spec = |&n_head_kv: &usize| (n_head_kv == 0).then(|| spec.clone());
        n_head_kv.iter().map(spec).collect::<Vec<_>>()
    };
    Ok(match architecture.recurrence {
        Recurrence::None => vec![None; n_head_kv.len()],
        Recurrence::ShortConv => without_heads(&RecurrentSpec::ShortConv {
            n_taps: taps("shortconv.l_cache")?,
        }),
    })
}
