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
    /// A gate beside the query of each head.
    GatedAttention(AttentionWeights),
    ShortConv(ShortConvWeights),
    Mamba(MambaWeights),
    Mamba2(Mamba2Weights),
    DeltaNet(DeltaNetWeights),
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

pub(super) struct MambaWeights {
    pub(super) x: Linear,
    pub(super) z: Linear,
    pub(super) conv: Linear,
    /// What steps are made of.
    pub(super) low: Linear,
    pub(super) b_c: Linear,
    pub(super) dt: Linear,
    pub(super) a: WeightId,
    pub(super) d: WeightId,
    pub(super) out: Linear,
}

pub(super) struct Mamba2Weights {
    pub(super) z: Linear,
    pub(super) x_b_c: Linear,
    pub(super) dt: Linear,
    pub(super) conv: Linear,
    pub(super) a: WeightId,
    pub(super) d: WeightId,
    pub(super) norm: WeightId,
    pub(super) out: Linear,
}

pub(super) struct DeltaNetWeights {
    pub(super) qkv: Linear,
    pub(super) gate: Linear,
    pub(super) conv: WeightId,
    pub(super) rates: Rates,
    pub(super) a: WeightId,
    pub(super) bias: WeightId,
    pub(super) norm: WeightId,
    pub(super) out: Linear,
}

/// What gives the decays (alpha) and the rates (beta) of a gated delta net.
pub(super) enum Rates {
    Apart {
        alpha: Linear,
        beta: Linear,
    },
    /// For each head of keys the betas of its heads, then their alphas.
    Together(Linear),
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
    let is_gated = matches!(architecture.recurrence, Recurrence::DeltaNet(_));
    let mut found = Finder {
        find: &mut *find,
        prefix: &prefix,
        hidden,
    };
    let mixer = match &layer.recurrent {
        None if is_gated => found.gated_attention(architecture, layer)?,
        None => Mixer::Attention(attention_weights(
            found.find,
            architecture,
            &prefix,
            spec,
            layer,
        )?),
        Some(RecurrentSpec::ShortConv { n_taps }) => found.short_conv(*n_taps)?,
        Some(RecurrentSpec::Mamba {
            n_taps,
            inner_size,
            state_size,
            step_rank,
        }) => found.mamba(*n_taps, [*inner_size, *state_size, *step_rank])?,
        Some(RecurrentSpec::Mamba2 {
            n_taps,
            inner_size,
            state_size,
            n_head,
            n_group,
        }) => found.mamba2(*n_taps, [*inner_size, *state_size, *n_head, *n_group])?,
        Some(RecurrentSpec::DeltaNet {
            n_taps,
            state_size,
            n_head_k,
            n_head,
            is_tiled,
        }) => found.delta_net(*n_taps, [*state_size, *n_head_k, *n_head], *is_tiled)?,
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

    fn vector(&mut self, name: &str, n: usize) -> Result<WeightId> {
        let name = self.name(name);
        self.find.vector(&name, n)
    }

    fn flat(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<WeightId> {
        let name = self.name(name);
        self.find.flat(&name, n_rows, n_cols)
    }

    fn conv(&mut self, n_channels: usize, n_taps: usize) -> Result<Linear> {
        let weight = self.flat("ssm_conv1d.weight", [n_channels, n_taps])?;
        Ok((weight, Some(self.vector("ssm_conv1d.bias", n_channels)?)))
    }

    /// Attention whose query projection has a gate behind the query of each head.
    fn gated_attention(&mut self, architecture: &Architecture, layer: &LayerSpec) -> Result<Mixer> {
        let n_kv = layer.n_head_kv * layer.head_dim;
        let n_q = layer.n_head * layer.head_dim;
        let [q_norm, k_norm] = ["attn_q_norm", "attn_k_norm"].map(|name| {
            let name = self.name(name);
            row_norm(self.find, architecture, &name, layer.head_dim)
        });
        Ok(Mixer::GatedAttention(AttentionWeights {
            q: self.linear("attn_q", 2 * n_q, self.hidden)?,
            k: self.linear("attn_k", n_kv, self.hidden)?,
            v: self.linear("attn_v", n_kv, self.hidden)?,
            q_norm: Some(q_norm?),
            k_norm: Some(k_norm?),
            output: self.linear("attn_output", self.hidden, n_q)?,
        }))
    }

    fn mamba(&mut self, n_taps: usize, [inner, n_state, rank]: [usize; 3]) -> Result<Mixer> {
        let projected = [2 * inner, self.hidden];
        let low_b_c = [rank + 2 * n_state, inner];
        let (dt, _) = self.linear("ssm_dt", inner, rank)?;
        Ok(Mixer::Mamba(MambaWeights {
            x: self.rows("ssm_in", projected, 0..inner)?,
            z: self.rows("ssm_in", projected, inner..2 * inner)?,
            conv: self.conv(inner, n_taps)?,
            low: self.rows("ssm_x", low_b_c, 0..rank)?,
            b_c: self.rows("ssm_x", low_b_c, rank..rank + 2 * n_state)?,
            dt: (dt, Some(self.vector("ssm_dt.bias", inner)?)),
            a: self.flat("ssm_a", [inner, n_state])?,
            d: self.vector("ssm_d", inner)?,
            out: self.linear("ssm_out", self.hidden, inner)?,
        }))
    }

    fn mamba2(
        &mut self,
        n_taps: usize,
        [inner, n_state, n_head, n_group]: [usize; 4],
    ) -> Result<Mixer> {
        let n_conv = inner + 2 * n_group * n_state;
        let projected = [inner + n_conv + n_head, self.hidden];
        let (dt, _) = self.rows("ssm_in", projected, inner + n_conv..projected[0])?;
        Ok(Mixer::Mamba2(Mamba2Weights {
            z: self.rows("ssm_in", projected, 0..inner)?,
            x_b_c: self.rows("ssm_in", projected, inner..inner + n_conv)?,
            dt: (dt, Some(self.vector("ssm_dt.bias", n_head)?)),
            conv: self.conv(n_conv, n_taps)?,
            a: self.flat("ssm_a", [n_head, 1])?,
            d: self.flat("ssm_d", [n_head, 1])?,
            norm: self.flat("ssm_norm.weight", [n_group, inner / n_group])?,
            out: self.linear("ssm_out", self.hidden, inner)?,
        }))
    }

    fn delta_net(
        &mut self,
        n_taps: usize,
        [n_state, n_head_k, n_head]: [usize; 3],
        is_tiled: bool,
    ) -> Result<Mixer> {
        let n_qkv = (2 * n_head_k + n_head) * n_state;
        let inner = n_head * n_state;
        Ok(Mixer::DeltaNet(DeltaNetWeights {
            qkv: self.linear("attn_qkv", n_qkv, self.hidden)?,
            gate: self.linear("attn_gate", inner, self.hidden)?,
            conv: self.flat("ssm_conv1d.weight", [n_qkv, n_taps])?,
            rates: match is_tiled {
                true => Rates::Apart {
                    alpha: self.linear("ssm_alpha", n_head, self.hidden)?,
                    beta: self.linear("ssm_beta", n_head, self.hidden)?,
                },
                false => Rates::Together(self.linear("ssm_ba", 2 * n_head, self.hidden)?),
            },
            a: self.vector("ssm_a", n_head)?,
            bias: self.vector("ssm_dt.bias", n_head)?,
            norm: self.vector("ssm_norm.weight", n_state)?,
            out: self.linear("ssm_out", self.hidden, inner)?,
        }))
    }
}
