//! What mixes the tokens of a hybrid model's layer.

use super::super::decoder::norm;
use super::super::layers::AttentionWeights;
use super::super::spec::{DecoderSpec, LayerSpec};
use super::spec::RecurrentSpec;
use super::weights::{Mixer, ShortConvWeights};
use crate::error::{Error, Result};
use crate::plan::{Activation, AttentionParams, BufferId, PlanBuilder};

/// A layer of the model whose plan is written.
pub(super) struct Mixing<'a> {
    pub(super) spec: &'a DecoderSpec,
    /// Tokens of a session's context.
    pub(super) context_length: usize,
    pub(super) index: usize,
}

impl Mixing<'_> {
    /// What the mixer makes of `x`.
    pub(super) fn mix(
        &self,
        b: &mut PlanBuilder<'_>,
        mixer: &Mixer,
        x: BufferId,
    ) -> Result<BufferId> {
        let layer = &self.spec.layers[self.index];
        match (mixer, &layer.recurrent) {
            (Mixer::Attention(w), None) => Ok(self.attention(b, layer, w, x)),
            (Mixer::ShortConv(w), Some(RecurrentSpec::ShortConv { n_taps })) => {
                Ok(short_conv(b, w, *n_taps, x))
            }
            (Mixer::Attention(_) | Mixer::ShortConv(_), spec) => Err(Error::InvalidModel {
                message: format!(
                    "layer {}: the weights of another kind than {spec:?}",
                    self.index
                ),
            }),
        }
    }

    fn attention(
        &self,
        b: &mut PlanBuilder<'_>,
        layer: &LayerSpec,
        w: &AttentionWeights,
        x: BufferId,
    ) -> BufferId {
        let eps = self.spec.norm_eps;
        let q = b.matmul("attn_q", x, w.q);
        let k = b.matmul("attn_k", x, w.k);
        let v = b.matmul("Vcur", x, w.v);
        let mut q = norm(b, "attn_q_norm", q, w.q_norm, eps);
        let mut k = norm(b, "attn_k_norm", k, w.k_norm, eps);
        if let Some(rope) = &layer.rope {
            let table = b.rope_table(rope.table(self.context_length));
            q = b.rope("Qcur", q, table, layer.head_dim);
            k = b.rope("Kcur", k, table, layer.head_dim);
        }
        b.store_kv("kv_cache", k, v, self.index);
        let params = AttentionParams {
            layer: self.index,
            n_head: layer.n_head,
            scale: layer.attention_scale,
            window: layer.window,
            soft_cap: layer.soft_cap,
            alibi: layer.alibi,
            sinks: None,
        };
        let attended = b.attention("kqv_out", q, params);
        b.matmul("attn_output", attended, w.output)
    }
}

/// `out(C * conv(B * X))` of three products with `x` (llama.cpp, src/models/lfm2.cpp).
fn short_conv(
    b: &mut PlanBuilder<'_>,
    w: &ShortConvWeights,
    n_taps: usize,
    x: BufferId,
) -> BufferId {
    let first = b.matmul("shortconv_b", x, w.b);
    let second = b.matmul("shortconv_x", x, w.x);
    let product = b.gated_activation("shortconv_bx", first, second, Activation::Identity);
    let gate = b.matmul("shortconv_c", x, w.c);
    let conv = b.causal_conv(
        "shortconv_conv",
        product,
        (w.conv, None),
        n_taps,
        Activation::Identity,
    );
    let gated = b.gated_activation("shortconv_gated", gate, conv, Activation::Identity);
    b.matmul("shortconv_out", gated, w.out)
}
