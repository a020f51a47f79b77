//! The forward pass of encoders: all tokens of a text see each other, and each gets a vector (llama.cpp,
//! src/models/bert.cpp).

use super::architectures::{Architecture, Positions};
use super::decoder::{DecoderModel, feed_forward, norm};
use super::hyperparameters::Hyperparameters;
use super::layers::{DenseWeights, Linear, Norm, attention_inputs, gate_and_up, linear, row_norm};
use super::spec::{DecoderSpec, LayerSpec};
use super::weights::{POSITIONS, WeightFinder, WeightId};
use crate::error::{Error, Result};
use crate::plan::{AttentionParams, EmbedIndex, Plan, PlanBuilder};

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// They do not: each token has its own.
    None,
    /// Their mean.
    Mean,
    /// The first one's, which is that of `[CLS]`.
    Cls,
    /// The last one's.
    Last,
}

/// Makes a spec of what all models state an encoder's. Nothing of a text is kept for the next, so all layers take
/// turns with one cache.
///
/// # Errors
/// [`Error::InvalidModel`] and [`Error::Unsupported`] for a pooling that is none.
pub(super) fn complete(keys: &Hyperparameters<'_>, spec: &mut DecoderSpec) -> Result<()> {
    const POOLING: &str = "pooling_type";
    spec.pooling = Some(match keys.usize(POOLING)? {
        None | Some(0) => Pooling::None,
        Some(1) => Pooling::Mean,
        Some(2) => Pooling::Cls,
        Some(3) => Pooling::Last,
        Some(other) => {
            return Err(Error::Unsupported {
                kind: "pooling type",
                name: other.to_string(),
                supported: "0 (none), 1 (mean), 2 (first token), 3 (last token)".to_owned(),
            });
        }
    });
    let heads = |layer: &LayerSpec| (layer.n_head_kv, layer.head_dim);
    let first = heads(&spec.layers[0]);
    for layer in &mut spec.layers {
        if heads(layer) != first {
            let what = "differs between layers, expected one number";
            return Err(keys.invalid("attention.head_count_kv", what));
        }
        layer.cache_layer = 0;
    }
    Ok(())
}

/// All weights.
pub(super) struct EncoderWeights {
    token_embd: WeightId,
    token_types: Option<WeightId>,
    position_embd: Option<WeightId>,
    embedding_norm: Option<Norm>,
    pub(super) layers: Vec<Layer>,
}

pub(super) struct Layer {
    attn_q: Linear,
    attn_k: Linear,
    attn_v: Linear,
    attn_output: Linear,
    attn_output_norm: Norm,
    feed_forward: DenseWeights,
    output_norm: Norm,
}

impl EncoderWeights {
    pub(super) fn find(
        find: &mut WeightFinder,
        architecture: &Architecture,
        spec: &DecoderSpec,
    ) -> Result<Self> {
        let hidden = spec.hidden_size;
        let token_embd = find.matrix("token_embd.weight", spec.vocab_size, hidden)?;
        // Of the types of tokens a text has the first alone.
        let token_types = match find.n_rows(TOKEN_TYPES) {
            Some(n_types) => Some(find.matrix(TOKEN_TYPES, n_types, hidden)?),
            None => None,
        };
        let position_embd = match architecture.positions {
            Positions::Rope | Positions::Alibi => None,
            Positions::Learned => {
                let n_positions = spec.n_positions.unwrap_or(spec.context_length);
                Some(find.matrix(POSITIONS, n_positions, hidden)?)
            }
        };
        let embedding_norm = match architecture.embedding_norm {
            true => Some(row_norm(find, architecture, "token_embd_norm", hidden)?),
            false => None,
        };
        let layers = spec.layers.iter().enumerate();
        let layers =
            layers.map(|(index, layer)| Layer::find(find, architecture, index, layer, hidden));
        Ok(EncoderWeights {
            token_embd,
            token_types,
            position_embd,
            embedding_norm,
            layers: layers.collect::<Result<Vec<_>>>()?,
        })
    }
}

const TOKEN_TYPES: &str = "token_types.weight";

impl Layer {
    fn find(
        find: &mut WeightFinder,
        architecture: &Architecture,
        index: usize,
        layer: &LayerSpec,
        hidden: usize,
    ) -> Result<Layer> {
        let prefix = format!("blk.{index}.");
        let name = |name: &str| format!("{prefix}{name}");
        let bias = architecture.other_bias;
        let [attn_q, attn_k, attn_v] =
            attention_inputs(find, architecture, &prefix, layer, hidden)?;
        let n_q = layer.n_head * layer.head_dim;
        let n_ffn = layer.intermediate_size;
        let (gate, up) = gate_and_up(find, architecture, &prefix, n_ffn, hidden)?;
        Ok(Layer {
            attn_q,
            attn_k,
            attn_v,
            attn_output: linear(find, &name("attn_output"), hidden, n_q, bias)?,
            attn_output_norm: row_norm(find, architecture, &name("attn_output_norm"), hidden)?,
            feed_forward: DenseWeights {
                gate,
                up,
                down: linear(find, &name("ffn_down"), hidden, n_ffn, bias)?,
            },
            output_norm: row_norm(find, architecture, &name("layer_output_norm"), hidden)?,
        })
    }
}

/// The forward pass for texts of at most `max_rows` tokens, which gives the vectors of `max_outputs` of them.
pub(super) fn plan(
    model: &DecoderModel,
    w: &EncoderWeights,
    max_rows: usize,
    max_outputs: usize,
) -> Result<Plan> {
    let spec = &model.spec;
    let eps = spec.norm_eps;
    let mut b = PlanBuilder::new(&model.weights);
    let mut x = b.embed(
        "embd",
        w.token_embd,
        EmbedIndex::Token,
        spec.embedding_scale,
    );
    if let Some(types) = w.token_types {
        let types = b.embed("type_embd", types, EmbedIndex::First, 1.0);
        x = b.add("inp_typed", x, types);
    }
    if let Some(positions) = w.position_embd {
        let positions = b.embed("pos_embd", positions, EmbedIndex::Position, 1.0);
        x = b.add("inpL", x, positions);
    }
    x = norm(&mut b, "inp_norm", x, w.embedding_norm, eps);
    for (index, (layer, w)) in spec.layers.iter().zip(&w.layers).enumerate() {
        b.layer(Some(index));
        let mut q = b.matmul("attn_q", x, w.attn_q);
        let mut k = b.matmul("attn_k", x, w.attn_k);
        let v = b.matmul("Vcur", x, w.attn_v);
        if let Some(rope) = &layer.rope {
            let table = b.rope_table(rope.table(model.context_length));
            q = b.rope("Qcur", q, table, layer.head_dim);
            k = b.rope("Kcur", k, table, layer.head_dim);
        }
        b.store_kv("kv_cache", k, v, layer.cache_layer);
        let params = AttentionParams {
            layer: layer.cache_layer,
            n_head: layer.n_head,
            scale: layer.attention_scale,
            causal: false,
            window: None,
            chunk: None,
            value_dim: layer.head_dim,
            soft_cap: layer.soft_cap,
            alibi: false,
            sinks: None,
        };
        let attended = b.attention("kqv_out", q, params);
        let attended = b.matmul("attn_output", attended, w.attn_output);
        let sum = b.add("ffn_inp", attended, x);
        let residual = norm(&mut b, "attn_out_norm", sum, Some(w.attn_output_norm), eps);
        let names = ["ffn_gate", "ffn_up", "ffn_act", "ffn_gated", "ffn_out"];
        let fed = feed_forward(&mut b, &w.feed_forward, names, residual, spec.activation);
        let sum = b.add("ffn_sum", fed, residual);
        x = norm(&mut b, "l_out", sum, Some(w.output_norm), eps);
    }
    b.layer(None);
    let vectors = b.select_outputs("result_embd", x);
    b.finish(vectors, &spec.kv_layers(), max_rows, max_outputs)
}

#[cfg(test)]
mod tests {
    use super::super::decoder::decoder_plan;
    use super::super::weights::WeightStorage;
    use super::*;
    use crate::gguf::Gguf;
    use crate::plan::Op;
    use crate::support::shared;
    use std::sync::Arc;

    #[test]
    fn encoders_see_the_whole_batch_and_hold_one_layer() {
        let Some(folder) = shared("arch") else { return };
        for name in ["bert", "nomic-bert"] {
            let gguf = Arc::new(Gguf::open(folder.join(format!("{name}.gguf"))).unwrap());
            let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
            assert_eq!(model.spec.pooling, Some(Pooling::Mean));
            let plan = decoder_plan(&model, 8, 8).unwrap();
            assert!(!plan.is_causal());
            assert_eq!(model.spec.kv_layers().len(), 1);
            assert_eq!(plan.buffer(plan.logits).width, model.spec.hidden_size);
            let is_rope = |op: &Op| matches!(op, Op::Rope { .. });
            let turns = plan.steps.iter().any(|step| is_rope(&step.op));
            assert_eq!(turns, name == "nomic-bert");
        }
    }
}
