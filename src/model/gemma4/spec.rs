//! What Gemma 4's files state beside what all decoders' do.

use super::super::hyperparameters::Hyperparameters;
use super::super::rope::{RopeDivisors, RopeSpec};
use super::super::spec::{DecoderSpec, MAX_COUNT, in_range};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::MAX_HEAD_DIM;

const PATTERN: &str = "attention.sliding_window_pattern";
const SHARED: &str = "attention.shared_kv_layers";
const INPUT_SIZE: &str = "embedding_length_per_layer_input";

/// Makes a spec of what all decoders state Gemma 4's: windowed layers have heads of their own size, the last layers
/// the cache of others, and each layer a scale. Products of queries and keys are not scaled.
///
/// # Errors
/// [`Error::InvalidModel`] naming the key or tensor.
pub(in crate::model) fn complete(
    gguf: &Gguf,
    keys: &Hyperparameters<'_>,
    spec: &mut DecoderSpec,
) -> Result<()> {
    if keys.is_absent(PATTERN) {
        return Err(keys.invalid(PATTERN, "missing"));
    }
    let input_size = keys.usize(INPUT_SIZE)?.filter(|&size| size > 0);
    spec.layer_input_size = match input_size {
        Some(size) => Some(in_range(keys, INPUT_SIZE, Some(size), MAX_COUNT)?),
        None => None,
    };
    let local = local_heads(keys)?;
    let n_layer = spec.layers.len();
    let n_own = match keys.usize(SHARED)?.unwrap_or(0) {
        n if n < n_layer => n_layer - n,
        n => {
            let what = format!("{n}, expected fewer than the {n_layer} layers");
            return Err(keys.invalid(SHARED, what));
        }
    };
    let is_windowed: Vec<bool> = spec.layers.iter().map(|l| l.window.is_some()).collect();
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        layer.attention_scale = 1.0;
        layer.output_scale = output_scale(gguf, index)?;
        if let (true, Some((head_dim, n_dims))) = (is_windowed[index], local) {
            layer.head_dim = head_dim;
            layer.rope = layer.rope.take().map(|rope| RopeSpec { n_dims, ..rope });
        }
        if is_windowed[index] {
            let divisors = RopeDivisors::None;
            layer.rope = layer.rope.take().map(|rope| RopeSpec { divisors, ..rope });
        }
        if index >= n_own {
            let same_kind = |other: &usize| is_windowed[*other] == is_windowed[index];
            let Some(source) = (0..n_own).rev().find(same_kind) else {
                let what = format!("no layer before has the keys that layer {index} needs");
                return Err(keys.invalid(SHARED, what));
            };
            layer.cache_layer = source;
        }
    }
    Ok(())
}

/// The head size of windowed layers, and how many of its dimensions turn, where they have their own.
fn local_heads(keys: &Hyperparameters<'_>) -> Result<Option<(usize, usize)>> {
    const KEY: &str = "attention.key_length_swa";
    const VALUE: &str = "attention.value_length_swa";
    const TURNED: &str = "rope.dimension_count_swa";
    let stated = keys.usize(VALUE)?;
    let turned = keys.usize(TURNED)?;
    let Some(head_dim) = keys.usize(KEY)? else {
        return match (stated, turned) {
            (None, None) => Ok(None),
            _ => Err(keys.invalid(KEY, "missing")),
        };
    };
    if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(4) {
        let what = format!("{head_dim}, expected a multiple of 4 up to {MAX_HEAD_DIM}");
        return Err(keys.invalid(KEY, what));
    }
    if let Some(value_length) = stated.filter(|&length| length != head_dim) {
        let what = format!("{value_length}, expected the key length {head_dim}");
        return Err(keys.invalid(VALUE, what));
    }
    let n_dims = turned.unwrap_or(head_dim);
    if n_dims == 0 || n_dims > head_dim || !n_dims.is_multiple_of(2) {
        let what = format!("{n_dims}, expected an even number up to the head's {head_dim}");
        return Err(keys.invalid(TURNED, what));
    }
    Ok(Some((head_dim, n_dims)))
}

/// The name of a layer's scale.
pub(super) fn scale_name(layer: usize) -> String {
    format!("blk.{layer}.layer_output_scale.weight")
}

/// The factor on a layer's result; 1 where the file has none.
fn output_scale(gguf: &Gguf, layer: usize) -> Result<f32> {
    let name = scale_name(layer);
    let Some(tensor) = gguf.tensor(&name) else {
        return Ok(1.0);
    };
    let invalid = |what: String| Error::InvalidModel {
        message: format!("tensor `{name}`: {what}"),
    };
    let ty = tensor.weight_type()?;
    if tensor.shape != [1] || ty.block_len() != 1 {
        let what = format!(
            "shape {:?} of {}, expected one float",
            tensor.shape,
            ty.name()
        );
        return Err(invalid(what));
    }
    let mut scale = [0.0];
    ty.decode(gguf.tensor_bytes(tensor), &mut scale);
    match scale[0] {
        scale if scale.is_finite() => Ok(scale),
        scale => Err(invalid(format!("{scale}, expected a finite number"))),
    }
}
