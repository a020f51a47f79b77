//! Writes a plan one step at a time, checking widths as it goes.

mod recurrent;

use super::{
    Activation, Buffer, BufferId, EmbedIndex, ExpertGroups, Extent, Function, Gating, Op, Plan,
    RopeTable, RopeTableId, State, Step, check::check,
};
use crate::error::Result;
use crate::kv_cache::KvLayer;
use crate::model::{WeightId, Weights};

/// Builds a [`Plan`]. Each method adds a step called `prefix` + `name` and returns the buffer it writes.
pub(crate) struct PlanBuilder<'a> {
    weights: &'a Weights,
    prefix: String,
    buffers: Vec<Buffer>,
    rope_tables: Vec<RopeTable>,
    states: Vec<State>,
    steps: Vec<Step>,
    layer_outputs: Vec<usize>,
}

/// One key-value source of an attention: the layer that owns the cache and the query heads that read it.
#[derive(Clone, Copy)]
pub(crate) struct AttentionParams {
    pub(crate) layer: usize,
    pub(crate) n_head: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) chunk: Option<usize>,
    /// Elements of a value.
    pub(crate) value_dim: usize,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) alibi: bool,
    pub(crate) sinks: Option<WeightId>,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Router {
    pub(crate) n_chosen: usize,
    pub(crate) gating: Gating,
    pub(crate) groups: Option<ExpertGroups>,
    pub(crate) normalised: bool,
    pub(crate) scale: f32,
    pub(crate) factors: Option<WeightId>,
}

impl<'a> PlanBuilder<'a> {
    pub(crate) fn new(weights: &'a Weights) -> Self {
        PlanBuilder {
            weights,
            prefix: String::new(),
            buffers: Vec::new(),
            rope_tables: Vec::new(),
            states: Vec::new(),
            steps: Vec::new(),
            layer_outputs: Vec::new(),
        }
    }

    /// Steps from here on are named `blk.{layer}.NAME`, or plain `NAME` for `None`. The last one before was
    /// the result of its layer, if it was in one.
    pub(crate) fn layer(&mut self, layer: Option<usize>) {
        if !self.prefix.is_empty() {
            self.layer_outputs.extend(self.steps.len().checked_sub(1));
        }
        self.prefix = layer.map_or_else(String::new, |layer| format!("blk.{layer}."));
    }

    /// The id of a table; equal tables are one.
    pub(crate) fn rope_table(&mut self, table: RopeTable) -> RopeTableId {
        let found = self.rope_tables.iter().position(|known| *known == table);
        RopeTableId(found.unwrap_or_else(|| {
            self.rope_tables.push(table);
            self.rope_tables.len() - 1
        }))
    }

    fn buffer(&mut self, name: &str, width: usize, extent: Extent) -> BufferId {
        let wanted = Buffer {
            name: name.to_owned(),
            width,
            extent,
        };
        let found = self.buffers.iter().position(|known| *known == wanted);
        BufferId(found.unwrap_or_else(|| {
            self.buffers.push(wanted);
            self.buffers.len() - 1
        }))
    }

    fn like(&mut self, name: &str, src: BufferId) -> BufferId {
        let Buffer { width, extent, .. } = self.buffers[src.0];
        self.buffer(name, width, extent)
    }

    fn push(&mut self, name: &str, op: Op) {
        self.steps.push(Step {
            name: format!("{}{name}", self.prefix),
            op,
        });
    }

    pub(crate) fn embed(
        &mut self,
        name: &str,
        weight: WeightId,
        index: EmbedIndex,
        scale: f32,
    ) -> BufferId {
        let dst = self.buffer(name, self.weights.get(weight).n_cols, Extent::Tokens);
        self.push(
            name,
            Op::Embed {
                weight,
                index,
                scale,
                dst,
            },
        );
        dst
    }

    pub(crate) fn rms_norm(
        &mut self,
        name: &str,
        src: BufferId,
        weight: WeightId,
        eps: f32,
    ) -> BufferId {
        let dst = self.like(name, src);
        self.push(
            name,
            Op::RmsNorm {
                src,
                weight: Some(weight),
                group: self.weights.get(weight).n_cols,
                eps,
                dst,
            },
        );
        dst
    }

    /// The norm of groups without a weight.
    pub(crate) fn unit_norm(
        &mut self,
        name: &str,
        src: BufferId,
        group: usize,
        eps: f32,
    ) -> BufferId {
        let dst = self.like(name, src);
        self.push(
            name,
            Op::RmsNorm {
                src,
                weight: None,
                group,
                eps,
                dst,
            },
        );
        dst
    }

    pub(crate) fn layer_norm(
        &mut self,
        name: &str,
        src: BufferId,
        (weight, bias): (WeightId, Option<WeightId>),
        group: usize,
        eps: f32,
    ) -> BufferId {
        let dst = self.like(name, src);
        self.push(
            name,
            Op::LayerNorm {
                src,
                weight,
                bias,
                group,
                eps,
                dst,
            },
        );
        dst
    }

    pub(crate) fn matmul(
        &mut self,
        name: &str,
        src: BufferId,
        (weight, bias): (WeightId, Option<WeightId>),
    ) -> BufferId {
        let extent = self.buffers[src.0].extent;
        let dst = self.buffer(name, self.weights.get(weight).n_rows, extent);
        self.push(
            name,
            Op::MatMul {
                src,
                weight,
                bias,
                dst,
                int8_rows: 0,
            },
        );
        dst
    }

    pub(crate) fn rope(
        &mut self,
        name: &str,
        src: BufferId,
        table: RopeTableId,
        head_dim: usize,
    ) -> BufferId {
        let dst = self.like(name, src);
        self.push(
            name,
            Op::Rope {
                src,
                table,
                head_dim,
                dst,
            },
        );
        dst
    }

    pub(crate) fn store_kv(&mut self, name: &str, k: BufferId, v: BufferId, layer: usize) {
        self.push(name, Op::StoreKv { k, v, layer });
    }

    pub(crate) fn attention(
        &mut self,
        name: &str,
        q: BufferId,
        params: AttentionParams,
    ) -> BufferId {
        let dst = self.buffer(name, params.n_head * params.value_dim, Extent::Tokens);
        let AttentionParams {
            layer,
            n_head,
            scale,
            causal,
            window,
            chunk,
            soft_cap,
            alibi,
            sinks,
            ..
        } = params;
        self.push(
            name,
            Op::Attention {
                q,
                layer,
                n_head,
                scale,
                causal,
                window,
                chunk,
                soft_cap,
                alibi,
                sinks,
                dst,
            },
        );
        dst
    }

    pub(crate) fn gated_activation(
        &mut self,
        name: &str,
        gate: BufferId,
        up: BufferId,
        activation: Activation,
    ) -> BufferId {
        let dst = self.like(name, gate);
        self.push(
            name,
            Op::GatedActivation {
                gate,
                up,
                activation,
                dst,
            },
        );
        dst
    }

    pub(crate) fn map(&mut self, name: &str, src: BufferId, function: Function) -> BufferId {
        let dst = self.like(name, src);
        self.push(name, Op::Map { src, function, dst });
        dst
    }

    pub(crate) fn add(&mut self, name: &str, a: BufferId, b: BufferId) -> BufferId {
        let dst = self.like(name, a);
        self.push(name, Op::Add { a, b, dst });
        dst
    }

    /// The ids of the experts of each token, and what their results count. `normalised` and the factor behind it
    /// are those of [`Op::ExpertWeights`].
    pub(crate) fn route(
        &mut self,
        logits: BufferId,
        bias: Option<WeightId>,
        router: Router,
    ) -> [BufferId; 2] {
        let Router {
            n_chosen,
            gating,
            groups,
            normalised,
            scale,
            factors,
        } = router;
        let chosen = self.buffer("ffn_moe_topk", n_chosen, Extent::Tokens);
        self.push(
            "ffn_moe_topk",
            Op::ChooseExperts {
                logits,
                bias,
                gating,
                groups,
                dst: chosen,
            },
        );
        let dst = self.buffer("ffn_moe_weights", n_chosen, Extent::Tokens);
        self.push(
            "ffn_moe_weights",
            Op::ExpertWeights {
                logits,
                chosen,
                gating,
                normalised,
                scale,
                factors,
                dst,
            },
        );
        [chosen, dst]
    }

    pub(crate) fn expert_matmul(
        &mut self,
        name: &str,
        src: BufferId,
        chosen: BufferId,
        (weight, bias): (WeightId, Option<WeightId>),
        n_expert: usize,
    ) -> BufferId {
        let n_out = self.weights.get(weight).n_rows / n_expert;
        let extent = Extent::Chosen(self.buffers[chosen.0].width);
        let dst = self.buffer(name, n_out, extent);
        self.push(
            name,
            Op::ExpertMatMul {
                src,
                chosen,
                weight,
                bias,
                n_expert,
                int8_rows: 0,
                dst,
            },
        );
        dst
    }

    /// `src` is `n_head` heads.
    pub(crate) fn head_matmul(
        &mut self,
        name: &str,
        src: BufferId,
        weight: WeightId,
        n_head: usize,
    ) -> BufferId {
        let (matrices, src_width) = (self.weights.get(weight), self.buffers[src.0].width);
        let n_rest = src_width.saturating_sub(n_head * matrices.n_cols);
        let dst = self.buffer(name, n_rest + matrices.n_rows, Extent::Tokens);
        self.push(
            name,
            Op::HeadMatMul {
                src,
                weight,
                n_head,
                dst,
            },
        );
        dst
    }

    pub(crate) fn weigh_slots(&mut self, name: &str, src: BufferId, weights: BufferId) -> BufferId {
        let extent = Extent::Chosen(self.buffers[weights.0].width);
        let dst = self.buffer(name, self.buffers[src.0].width, extent);
        self.push(name, Op::WeighSlots { src, weights, dst });
        dst
    }

    pub(crate) fn weighted_sum(
        &mut self,
        name: &str,
        src: BufferId,
        weights: Option<BufferId>,
    ) -> BufferId {
        let dst = self.buffer(name, self.buffers[src.0].width, Extent::Tokens);
        self.push(name, Op::WeightedSum { src, weights, dst });
        dst
    }

    /// `width` columns from `first` on.
    pub(crate) fn columns(
        &mut self,
        name: &str,
        src: BufferId,
        first: usize,
        width: usize,
    ) -> BufferId {
        let period = self.buffers[src.0].width;
        self.take_columns(name, src, first, [width, period])
    }

    pub(crate) fn select_outputs(&mut self, name: &str, src: BufferId) -> BufferId {
        let dst = self.buffer(name, self.buffers[src.0].width, Extent::Outputs);
        self.push(name, Op::SelectOutputs { src, dst });
        dst
    }

    /// The finished plan for batches of at most `max_rows` tokens and `max_outputs` rows of logits.
    pub(crate) fn finish(
        self,
        logits: BufferId,
        kv: &[KvLayer],
        max_rows: usize,
        max_outputs: usize,
    ) -> Result<Plan> {
        let PlanBuilder {
            weights,
            buffers,
            rope_tables,
            states,
            steps,
            layer_outputs,
            ..
        } = self;
        let plan = Plan {
            max_rows,
            max_outputs,
            buffers,
            rope_tables,
            states,
            steps,
            logits,
            layer_outputs,
        };
        check(&plan, weights, kv)?;
        Ok(plan)
    }
}
