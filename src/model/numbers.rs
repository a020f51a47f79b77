//! Whether the constants of a model are numbers that it can compute with, wherever they came from.

use super::rope::{RopeDivisors, RopeSpec};
use super::spec::DecoderSpec;
use crate::error::{Error, Result};

/// Refuses factors that are not finite, and angles that are not.
///
/// # Errors
/// `InvalidModel` naming the value, and the layer where it is one's.
pub(super) fn check(spec: &DecoderSpec) -> Result<()> {
    for (name, value) in [
        ("embedding scale", spec.embedding_scale),
        ("residual scale", spec.residual_scale),
        ("logit scale", spec.logit_scale),
        ("logit soft cap", spec.logit_soft_cap.unwrap_or(0.0)),
        ("norm epsilon", spec.norm_eps),
    ] {
        finite(value).map_err(|what| invalid(format!("{name}: {what}")))?;
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let in_layer = |name: &str, what: String| invalid(format!("layer {index}: {name}: {what}"));
        for (name, value) in [
            ("attention scale", layer.attention_scale),
            ("attention soft cap", layer.soft_cap.unwrap_or(0.0)),
            ("output scale", layer.output_scale),
        ] {
            finite(value).map_err(|what| in_layer(name, what))?;
        }
        let seen = index > 0 && spec.layers[index - 1].rope == layer.rope;
        if let Some(rope) = layer.rope.as_ref().filter(|_| !seen) {
            check_rope(rope).map_err(|(name, what)| in_layer(name, what))?;
        }
    }
    Ok(())
}

/// What is wrong, and with what.
fn check_rope(rope: &RopeSpec) -> Result<(), (&'static str, String)> {
    let theta = rope.theta;
    if !(theta > 1.0 && theta.is_finite()) {
        let what = format!("{theta}, expected a finite number above 1");
        return Err(("base of rope", what));
    }
    // The longest context has the divisors that the shortest has not.
    let contexts: &[usize] = match rope.divisors {
        RopeDivisors::ByContext { .. } => &[1, usize::MAX],
        RopeDivisors::None | RopeDivisors::Fixed(_) => &[1],
    };
    for &context_length in contexts {
        let table = rope.table(context_length);
        finite(table.magnitude as f32).map_err(|what| ("magnitude of rope", what))?;
        for frequency in table.inverse_frequency {
            finite(frequency as f32).map_err(|what| ("frequency of rope", what))?;
        }
    }
    Ok(())
}

fn finite(value: f32) -> Result<(), String> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(format!("{value}, expected a finite number")),
    }
}

fn invalid(message: String) -> Error {
    Error::InvalidModel { message }
}
