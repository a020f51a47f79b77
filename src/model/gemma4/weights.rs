//! The weights of Gemma 4, found and checked.

use super::super::architectures::Presence;
use super::super::expert_spec::ExpertSpec;
use super::super::layers::{DenseWeights, Linear, linear};
use super::super::spec::{DecoderSpec, LayerSpec};
use super::super::weights::{WeightFinder, WeightId};
use super::spec::scale_name;
use crate::error::Result;

/// All weights.
pub(in crate::model) struct Gemma4Weights {
    pub(super) token_embd: WeightId,
    pub(super) inputs: Option<LayerInputs>,
    pub(in crate::model) layers: Vec<Layer>,
    pub(super) output_norm: WeightId,
    pub(super) output: Linear,
}

/// What makes the inputs of all layers.
pub(super) struct LayerInputs {
    /// `[vocab_size, n_layer * layer_input_size]`.
    pub(super) token_embd: WeightId,
    /// `[n_layer * layer_input_size, hidden_size]`.
    pub(super) projection: Linear,
    /// `[layer_input_size]`.
    pub(super) norm: WeightId,
}

pub(in crate::model) struct Layer {
    pub(super) attn_norm: WeightId,
    pub(super) attention: AttentionWeights,
    pub(super) attn_post_norm: WeightId,
    pub(super) ffn_norm: WeightId,
    pub(super) feed_forward: FeedForward,
    pub(super) ffn_post_norm: WeightId,
    pub(super) input: Option<LayerInput>,
}

pub(super) struct AttentionWeights {
    pub(super) q: Linear,
    pub(super) q_norm: WeightId,
    /// `None` where the layer reads the cache of another.
    pub(super) own: Option<OwnKeys>,
    pub(super) output: Linear,
}

/// What gives a layer keys and values of its own.
pub(super) struct OwnKeys {
    pub(super) k: Linear,
    pub(super) k_norm: WeightId,
    /// `None` where keys before their norm are the values.
    pub(super) v: Option<Linear>,
}

pub(super) struct FeedForward {
    pub(super) dense: DenseWeights,
    pub(super) experts: Option<ExpertBlock>,
}

/// The experts beside a dense block.
pub(super) struct ExpertBlock {
    pub(super) dense_post_norm: WeightId,
    /// The norm of what the router takes in.
    pub(super) router_norm: WeightId,
    pub(super) router: Linear,
    pub(super) pre_norm: WeightId,
    pub(super) gate_up: GateUp,
    pub(super) down: WeightId,
    /// On the result of each expert.
    pub(super) factors: Option<WeightId>,
    pub(super) post_norm: WeightId,
}

/// The inner projections of all experts.
pub(super) enum GateUp {
    /// `[n_expert, 2 * intermediate_size, hidden_size]`: of each expert the gate, then the other.
    Fused(WeightId),
    Apart {
        gate: WeightId,
        up: WeightId,
    },
}

/// What a layer makes of its input.
pub(super) struct LayerInput {
    pub(super) gate: Linear,
    pub(super) projection: Linear,
    pub(super) post_norm: WeightId,
}

/// A matrix without a bias.
fn matrix(find: &mut WeightFinder, name: &str, n_out: usize, n_in: usize) -> Result<Linear> {
    linear(find, name, n_out, n_in, Presence::Absent)
}

impl Gemma4Weights {
    pub(in crate::model) fn find(find: &mut WeightFinder, spec: &DecoderSpec) -> Result<Self> {
        let (hidden, n_layer) = (spec.hidden_size, spec.layers.len());
        let token_embd = find.matrix("token_embd.weight", spec.vocab_size, hidden)?;
        let inputs = match spec.layer_input_size {
            None => None,
            Some(size) => {
                let width = n_layer * size;
                Some(LayerInputs {
                    token_embd: find.matrix(
                        "per_layer_token_embd.weight",
                        spec.vocab_size,
                        width,
                    )?,
                    projection: matrix(find, "per_layer_model_proj", width, hidden)?,
                    norm: find.vector("per_layer_proj_norm.weight", size)?,
                })
            }
        };
        let layers = spec.layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| Layer::find(find, spec, index, layer));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let output_norm = find.vector("output_norm.weight", hidden)?;
        let output = match find.has("output.weight") {
            true => matrix(find, "output", spec.vocab_size, hidden)?,
            // Adapters of the embedding are trained on what it looks up, not on the logits.
            false => (find.without_added(token_embd), None),
        };
        Ok(Gemma4Weights {
            token_embd,
            inputs,
            layers,
            output_norm,
            output,
        })
    }
}

impl Layer {
    fn find(
        find: &mut WeightFinder,
        spec: &DecoderSpec,
        index: usize,
        layer: &LayerSpec,
    ) -> Result<Layer> {
        let hidden = spec.hidden_size;
        let name = |name: &str| format!("blk.{index}.{name}");
        let norm = |find: &mut WeightFinder, of: &str, n: usize| {
            find.vector(&format!("blk.{index}.{of}.weight"), n)
        };
        // Read into the spec.
        find.mark_used(&scale_name(index));
        let (n_q, n_kv) = (
            layer.n_head * layer.head_dim,
            layer.n_head_kv * layer.head_dim,
        );
        let own = match layer.cache_layer == index {
            false => {
                // Older files have them although nothing reads them.
                for unused in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                    find.mark_used(&name(unused));
                }
                None
            }
            true => Some(OwnKeys {
                k: matrix(find, &name("attn_k"), n_kv, hidden)?,
                k_norm: norm(find, "attn_k_norm", layer.head_dim)?,
                v: match find.has(&name("attn_v.weight")) {
                    true => Some(matrix(find, &name("attn_v"), n_kv, hidden)?),
                    false => None,
                },
            }),
        };
        let attention = AttentionWeights {
            q: matrix(find, &name("attn_q"), n_q, hidden)?,
            q_norm: norm(find, "attn_q_norm", layer.head_dim)?,
            own,
            output: matrix(find, &name("attn_output"), hidden, n_q)?,
        };
        let n_ffn = layer.intermediate_size;
        let dense = DenseWeights {
            gate: Some(matrix(find, &name("ffn_gate"), n_ffn, hidden)?),
            up: matrix(find, &name("ffn_up"), n_ffn, hidden)?,
            down: matrix(find, &name("ffn_down"), hidden, n_ffn)?,
        };
        let experts = match &layer.experts {
            Some(experts) => Some(ExpertBlock::find(find, experts, index, hidden)?),
            None => None,
        };
        let input = match spec.layer_input_size {
            None => None,
            Some(size) => Some(LayerInput {
                gate: matrix(find, &name("inp_gate"), size, hidden)?,
                projection: matrix(find, &name("proj"), hidden, size)?,
                post_norm: norm(find, "post_norm", hidden)?,
            }),
        };
        Ok(Layer {
            attn_norm: norm(find, "attn_norm", hidden)?,
            attention,
            attn_post_norm: norm(find, "post_attention_norm", hidden)?,
            ffn_norm: norm(find, "ffn_norm", hidden)?,
            feed_forward: FeedForward { dense, experts },
            ffn_post_norm: norm(find, "post_ffw_norm", hidden)?,
            input,
        })
    }
}

impl ExpertBlock {
    fn find(
        find: &mut WeightFinder,
        spec: &ExpertSpec,
        index: usize,
        hidden: usize,
    ) -> Result<ExpertBlock> {
        let name = |name: &str| format!("blk.{index}.{name}");
        let (n_expert, n_ffn) = (spec.n_expert, spec.intermediate_size);
        let fused = name("ffn_gate_up_exps.weight");
        let gate_up = match find.has(&fused) {
            true => GateUp::Fused(find.matrices(&fused, [n_expert, 2 * n_ffn, hidden])?),
            false => GateUp::Apart {
                gate: find.matrices(&name("ffn_gate_exps.weight"), [n_expert, n_ffn, hidden])?,
                up: find.matrices(&name("ffn_up_exps.weight"), [n_expert, n_ffn, hidden])?,
            },
        };
        let factors = name("ffn_down_exps.scale");
        Ok(ExpertBlock {
            dense_post_norm: find.vector(&name("post_ffw_norm_1.weight"), hidden)?,
            router_norm: find.vector(&name("ffn_gate_inp.scale"), hidden)?,
            router: matrix(find, &name("ffn_gate_inp"), n_expert, hidden)?,
            pre_norm: find.vector(&name("pre_ffw_norm_2.weight"), hidden)?,
            gate_up,
            down: find.matrices(&name("ffn_down_exps.weight"), [n_expert, hidden, n_ffn])?,
            factors: match find.has(&factors) {
                true => Some(find.vector(&factors, n_expert)?),
                false => None,
            },
            post_norm: find.vector(&name("post_ffw_norm_2.weight"), hidden)?,
        })
    }
}
