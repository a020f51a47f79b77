//! What mixes the tokens of a hybrid model's layer.

use super::super::decoder::norm;
use super::super::layers::AttentionWeights;
use super::super::spec::{DecoderSpec, LayerSpec};
use super::spec::RecurrentSpec;
use super::weights::{
    DeltaNetWeights, Mamba2Weights, MambaWeights, Mixer, Rates, ShortConvWeights,
};
use crate::error::{Error, Result};
use crate::plan::{Activation, AttentionParams, BufferId, Columns, PlanBuilder};

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
            (Mixer::GatedAttention(w), None) => Ok(self.gated_attention(b, layer, w, x)),
            (Mixer::ShortConv(w), Some(RecurrentSpec::ShortConv { n_taps })) => {
                Ok(short_conv(b, w, *n_taps, x))
            }
            (
                Mixer::Mamba(w),
                Some(RecurrentSpec::Mamba {
                    n_taps, state_size, ..
                }),
            ) => Ok(mamba(b, w, *n_taps, *state_size, x)),
            (
                Mixer::Mamba2(w),
                &Some(RecurrentSpec::Mamba2 {
                    n_taps,
                    inner_size,
                    state_size,
                    n_group,
                    ..
                }),
            ) => Ok(self.mamba2(b, w, n_taps, [inner_size, state_size, n_group], x)),
            (
                Mixer::DeltaNet(w),
                &Some(RecurrentSpec::DeltaNet {
                    n_taps,
                    state_size,
                    n_head_k,
                    n_head,
                    is_tiled,
                }),
            ) => {
                let heads = ([n_head, n_head_k], state_size, is_tiled);
                Ok(self.delta_net(b, w, n_taps, heads, x))
            }
            (_, spec) => {
                let layer = self.index;
                let message = format!("layer {layer}: the weights of another kind than {spec:?}");
                Err(Error::InvalidModel { message })
            }
        }
    }

    fn attention(
        &self,
        b: &mut PlanBuilder<'_>,
        layer: &LayerSpec,
        w: &AttentionWeights,
        x: BufferId,
    ) -> BufferId {
        let q = b.matmul("attn_q", x, w.q);
        let attended = self.attended(b, layer, w, q, x);
        b.matmul("attn_output", attended, w.output)
    }

    /// Attention whose result is multiplied by the sigmoid of a gate (llama.cpp, src/models/qwen35.cpp).
    fn gated_attention(
        &self,
        b: &mut PlanBuilder<'_>,
        layer: &LayerSpec,
        w: &AttentionWeights,
        x: BufferId,
    ) -> BufferId {
        let both = b.matmul("attn_q_gate", x, w.q);
        let columns = [layer.head_dim, 2 * layer.head_dim];
        let q = b.take_columns("attn_q", both, 0, columns);
        let gate = b.take_columns("attn_gate", both, layer.head_dim, columns);
        let attended = self.attended(b, layer, w, q, x);
        let gated = b.gated_activation("attn_gated", gate, attended, Activation::Sigmoid);
        b.matmul("attn_output", gated, w.output)
    }

    /// What the queries `q` of `x` attend to.
    fn attended(
        &self,
        b: &mut PlanBuilder<'_>,
        layer: &LayerSpec,
        w: &AttentionWeights,
        q: BufferId,
        x: BufferId,
    ) -> BufferId {
        let eps = self.spec.norm_eps;
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
            chunk: layer.chunk,
            value_dim: layer.head_dim,
            soft_cap: layer.soft_cap,
            alibi: layer.alibi,
            sinks: None,
        };
        b.attention("kqv_out", q, params)
    }

    /// llama.cpp, src/models/mamba-base.cpp
    fn mamba2(
        &self,
        b: &mut PlanBuilder<'_>,
        w: &Mamba2Weights,
        n_taps: usize,
        [inner_size, state_size, n_group]: [usize; 3],
        x: BufferId,
    ) -> BufferId {
        let eps = self.spec.norm_eps;
        let z = b.matmul("ssm_z", x, w.z);
        let projected = b.matmul("ssm_x_b_c", x, w.x_b_c);
        let dt = b.matmul("ssm_dt", x, w.dt);
        let buffer = b.causal_conv("ssm_conv", projected, w.conv, n_taps, Activation::Silu);
        let part = |first| Columns { buffer, first };
        let parts = [0, inner_size, inner_size + n_group * state_size].map(part);
        let sizes = [inner_size, state_size, n_group];
        let scanned = b.state_scan("ssm_scan", parts, dt, [w.a, w.d], sizes);
        let gated = b.gated_activation("ssm_gated", z, scanned, Activation::Silu);
        let normed = match n_group {
            1 => b.rms_norm("ssm_norm", gated, w.norm, eps),
            _ => b.group_norm("ssm_norm", gated, w.norm, inner_size / n_group, eps),
        };
        b.matmul("ssm_out", normed, w.out)
    }

    /// llama.cpp, src/models/qwen35.cpp, qwen3next.cpp and delta-net-base.cpp
    fn delta_net(
        &self,
        b: &mut PlanBuilder<'_>,
        w: &DeltaNetWeights,
        n_taps: usize,
        ([n_head, n_head_k], state_size, is_tiled): ([usize; 2], usize, bool),
        x: BufferId,
    ) -> BufferId {
        let eps = self.spec.norm_eps;
        let qkv = b.matmul("attn_qkv", x, w.qkv);
        let z = b.matmul("attn_z", x, w.gate);
        let rates = match w.rates {
            Rates::Apart { alpha, beta } => [
                b.matmul("ssm_alpha", x, alpha),
                b.matmul("ssm_beta", x, beta),
            ],
            Rates::Together(together) => {
                let both = b.matmul("ssm_beta_alpha", x, together);
                let each = n_head / n_head_k;
                [
                    b.take_columns("ssm_alpha", both, each, [each, 2 * each]),
                    b.take_columns("ssm_beta", both, 0, [each, 2 * each]),
                ]
            }
        };
        let conv = b.causal_conv("ssm_conv", qkv, (w.conv, None), n_taps, Activation::Silu);
        let heads = (n_head_k, state_size, is_tiled);
        let out = b.delta_rule("ssm_delta", conv, rates, [w.a, w.bias], heads, eps);
        let normed = b.rms_norm("ssm_norm", out, w.norm, eps);
        let gated = b.gated_activation("ssm_gated", z, normed, Activation::Silu);
        b.matmul("ssm_out", gated, w.out)
    }
}

/// llama.cpp, src/models/mamba-base.cpp
fn mamba(
    b: &mut PlanBuilder<'_>,
    w: &MambaWeights,
    n_taps: usize,
    state_size: usize,
    x: BufferId,
) -> BufferId {
    let projected = b.matmul("ssm_x", x, w.x);
    let z = b.matmul("ssm_z", x, w.z);
    let conv = b.causal_conv("ssm_conv", projected, w.conv, n_taps, Activation::Silu);
    let low = b.matmul("ssm_dt_low", conv, w.low);
    let b_c = b.matmul("ssm_b_c", conv, w.b_c);
    let dt = b.matmul("ssm_dt", low, w.dt);
    let columns = |buffer, first| Columns { buffer, first };
    let parts = [columns(conv, 0), columns(b_c, 0), columns(b_c, state_size)];
    let sizes = [b.width(conv), state_size, 1];
    let scanned = b.state_scan("ssm_scan", parts, dt, [w.a, w.d], sizes);
    let gated = b.gated_activation("ssm_gated", z, scanned, Activation::Silu);
    b.matmul("ssm_out", gated, w.out)
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
