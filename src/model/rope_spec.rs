//! Rotary position embedding, read from the file.

use super::architectures::{Architecture, RopeDivisors as Divisors};
use super::hyperparameters::Hyperparameters;
use super::rope::{RopeDivisors, RopeScaling, RopeSpec};
use super::weights;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::plan::QueryTemperature;

/// The rope of layers without a window.
pub(super) fn read(
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
                let names = weights::LONG_ROPE_DIVISORS;
                let [short, long] = names.map(|name| rope_divisors(gguf, name, n_dims));
                match (short?, long?) {
                    (Some(short), Some(long)) => RopeDivisors::ByContext {
                        most_short: match original_context_length {
                            Some(length) => length,
                            None => keys.require_usize("context_length")?,
                        },
                        short,
                        long,
                    },
                    (None, None) => RopeDivisors::None,
                    (short, _) => {
                        let missing = names[usize::from(short.is_some())];
                        let message = format!("tensor `{missing}` is missing, the other is there");
                        return Err(Error::InvalidModel { message });
                    }
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
        offset: 0,
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
    tensor
        .weight_type()?
        .decode(gguf.tensor_bytes(tensor), &mut divisors);
    match divisors.iter().find(|d| !(d.is_finite() && **d != 0.0)) {
        Some(bad) => Err(invalid(format!(
            "{bad}, expected finite divisors other than 0"
        ))),
        None => Ok(Some(divisors)),
    }
}
