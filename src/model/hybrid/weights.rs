//! The weights of a hybrid model's layers, found and checked.

use super::super::architectures::{Architecture, Norms, Presence, Recurrence};
use super::super::layers::{
    AttentionWeights, FeedForwardWeights, Linear, Norm, attention_weights, feed_forward_weights,
    linear, row_norm,
};
use super::super::spec::{DecoderSpec, LayerSpec};
use super::super::weights::{WeightFinder, WeightId};
use super::spec::RecurrentSpec;
use crate::error::Result;
use std::ops::Range;

/// What the layers have.
pub(in super::super) struct HybridWeights {
    pub(in super::super) layers: Vec<HybridLayer>,
}

pub(in super::super) struct HybridLayer {
    pub(super) attn_norm: Norm,
    pub(super) mixer: Mixer,
    pub(super) feed_forward: Option<(Norm, FeedForwardWeights)>,
}

/// What mixes tokens.
pub(super) enum Mixer {
    Attention(AttentionWeights),
    ShortConv(ShortConvWeights),
}

pub(super) struct ShortConvWeights {
    /// What goes into the convolution: the product of the first two.
    pub(super) b: Linear,
    pub(super) x: Linear,
    /// The gate behind it.
    pub(super) c: Linear,
    pub(super) conv: WeightId,
    pub(super) out: Linear,
}

/// The layers of a hybrid model; `None` where the architecture is none.
pub(in super::super) fn hybrid_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
) -> Result<Option<HybridWeights>> {
    if architecture.recurrence == Recurrence::None {
        return Ok(None);
    }
    let layers = spec.layers.iter().enumerate();
    let layers = layers.map(|(index, layer)| of_layer(find, architecture, spec, index, layer));
    let layers = layers.collect::<Result<_>>()?;
    Ok(Some(HybridWeights { layers }))
}

fn of_layer(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
    index: usize,
    layer: &LayerSpec,
) -> Result<HybridLayer> {
    let hidden = spec.hidden_size;
    let prefix = format!("blk.{index}.");
    let attn_norm = row_norm(find, architecture, &format!("{prefix}attn_norm"), hidden)?;
    let mut found = Finder {
        find: &mut *find,
        prefix: &prefix,
        hidden,
    };
    let mixer = match &layer.recurrent {
        None => Mixer::Attention(attention_weights(
            found.find,
            architecture,
            &prefix,
            layer,
            hidden,
        )?),
        Some(RecurrentSpec::ShortConv { n_taps }) => found.short_conv(*n_taps)?,
    };
    let ffn_norm = match architecture.norms {
        Norms::BeforeByAnotherName => "post_attention_norm",
        Norms::Before | Norms::After | Norms::BeforeAndAfter => "ffn_norm",
    };
    let has_block = layer.experts.is_some() || layer.intermediate_size > 0;
    let feed_forward = has_block.then(|| -> Result<_> {
        let norm = row_norm(find, architecture, &format!("{prefix}{ffn_norm}"), hidden)?;
        let block = feed_forward_weights(find, architecture, &prefix, layer, hidden)?;
        Ok((norm, block))
    });
    Ok(HybridLayer {
        attn_norm,
        mixer,
        feed_forward: feed_forward.transpose()?,
    })
}

struct Finder<'a> {
    find: &'a mut WeightFinder,
    prefix: &'a str,
    hidden: usize,
}

impl Finder<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The matrix `name`, `[n_out, n_in]`, and no bias.
    fn linear(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Linear> {
        let name = self.name(name);
        linear(self.find, &name, n_out, n_in, Presence::Absent)
    }

    /// Rows of the matrix `name`, `[n_rows, n_cols]`.
    fn rows(
        &mut self,
        name: &str,
        [n_rows, n_cols]: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Linear> {
        let name = self.name(&format!("{name}.weight"));
        Ok((self.find.part(&name, &[n_rows, n_cols], rows)?, None))
    }

    fn short_conv(&mut self, n_taps: usize) -> Result<Mixer> {
        let n = self.hidden;
        let mut part = |rows| self.rows("shortconv.in_proj", [3 * n, n], rows);
        // One kernel multiplies both, where they lie side by side.
        let [b, x, c] = [part(0..n)?, part(2 * n..3 * n)?, part(n..2 * n)?];
        let conv = self.name("shortconv.conv.weight");
        Ok(Mixer::ShortConv(ShortConvWeights {
            b,
            x,
            c,
            conv: self.find.flat(&conv, n, n_taps)?,
            out: self.linear("shortconv.out_proj", n, n)?,
        }))
    }
}
