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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Value, WeightType, Writer};

    /// Four layers, windowed and global in turn, of which the last two have no keys; `changed` keys are others, or absent.
    fn spec(changed: &[(&str, Option<Value>)]) -> Result<DecoderSpec> {
        let keys: [(&str, Value); 16] = [
            ("block_count", 4u32.into()),
            ("context_length", 64u32.into()),
            ("embedding_length", 32u32.into()),
            ("feed_forward_length", 32u32.into()),
            ("attention.head_count", 2u32.into()),
            ("attention.head_count_kv", 1u32.into()),
            ("attention.layer_norm_rms_epsilon", 1e-6f32.into()),
            ("attention.sliding_window", 8u32.into()),
            (PATTERN, vec![true, false, true, false].into()),
            (SHARED, 2u32.into()),
            ("attention.key_length", 24u32.into()),
            ("attention.value_length", 24u32.into()),
            ("attention.key_length_swa", 16u32.into()),
            ("attention.value_length_swa", 16u32.into()),
            ("rope.dimension_count_swa", 8u32.into()),
            (INPUT_SIZE, 0u32.into()),
        ];
        let mut writer = Writer::new().metadata("general.architecture", "gemma4");
        for (key, value) in keys {
            let other = changed.iter().find(|(changed, _)| *changed == key);
            if let Some(value) = other.map_or(Some(value), |(_, value)| value.clone()) {
                writer = writer.metadata(format!("gemma4.{key}"), value);
            }
        }
        let ty = WeightType::F32;
        let mut tensor = |name: String, shape: Vec<usize>| {
            let values = vec![0.5; shape.iter().product()];
            let with = writer.clone();
            writer = with.tensor(name, shape, ty, ty.encode(&values)).unwrap();
        };
        tensor("token_embd.weight".to_owned(), vec![4, 32]);
        for layer in 0..3 {
            tensor(scale_name(layer), vec![1]);
        }
        DecoderSpec::from_gguf(&Gguf::from_bytes(writer.to_bytes()?)?)
    }

    #[test]
    fn layers_of_both_kinds_have_their_own_heads_caches_and_scales() {
        let spec = spec(&[]).unwrap();
        let of = |of: fn(&crate::model::LayerSpec) -> usize| -> Vec<usize> {
            spec.layers.iter().map(of).collect()
        };
        assert_eq!(of(|layer| layer.head_dim), [16, 24, 16, 24]);
        let turned = of(|layer| layer.rope.as_ref().map_or(0, |rope| rope.n_dims));
        assert_eq!(turned, [8, 24, 8, 24]);
        assert_eq!(of(|layer| layer.cache_layer), [0, 1, 0, 1]);
        let scales: Vec<f32> = spec.layers.iter().map(|layer| layer.output_scale).collect();
        assert_eq!(scales, [0.5, 0.5, 0.5, 1.0]);
        assert_eq!(spec.kv_layers().len(), 2);
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        for (key, value, expected) in [
            (PATTERN, None, "missing"),
            (SHARED, Some(4u32), "4, expected fewer than the 4 layers"),
            (
                SHARED,
                Some(3),
                "no layer before has the keys that layer 1 needs",
            ),
            ("attention.key_length_swa", None, "missing"),
            (
                "attention.key_length_swa",
                Some(18),
                "18, expected a multiple of 4 up to 512",
            ),
            (
                "attention.value_length_swa",
                Some(12),
                "12, expected the key length 16",
            ),
            (
                "rope.dimension_count_swa",
                Some(18),
                "18, expected an even number up to the head's 16",
            ),
            (
                "attention.sliding_window",
                None,
                "0 or missing, expected at least 1",
            ),
        ] {
            let error = spec(&[(key, value.map(Value::from))])
                .unwrap_err()
                .to_string();
            let expected = match key {
                SHARED if value == Some(3) => expected.to_owned(),
                _ => format!("key `gemma4.{key}`: {expected}"),
            };
            assert!(error.contains(&expected), "{error}, expected {expected}");
        }
    }
}
