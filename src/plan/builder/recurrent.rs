//! Steps that carry a state from batch to batch.

use super::PlanBuilder;
use crate::model::WeightId;
use crate::plan::{Activation, BufferId, Columns, Extent, Op, State, StateId};

impl PlanBuilder<'_> {
    /// A state of the step `name`, `[len] f32`.
    fn state(&mut self, name: &str, len: usize) -> StateId {
        self.states.push(State {
            name: format!("{}{name}", self.prefix),
            len,
        });
        StateId(self.states.len() - 1)
    }

    pub(crate) fn width(&self, id: BufferId) -> usize {
        self.buffers[id.0].width
    }

    /// As [`PlanBuilder::add`], to a buffer of another name: where `b` is what the step of this name wrote in the layer before.
    pub(crate) fn add_into(
        &mut self,
        name: &str,
        buffer: &str,
        a: BufferId,
        b: BufferId,
    ) -> BufferId {
        let dst = self.like(buffer, a);
        self.push(name, Op::Add { a, b, dst });
        dst
    }

    pub(crate) fn causal_conv(
        &mut self,
        name: &str,
        src: BufferId,
        (weight, bias): (WeightId, Option<WeightId>),
        n_taps: usize,
        activation: Activation,
    ) -> BufferId {
        let dst = self.like(name, src);
        let state = self.state(name, (n_taps - 1) * self.buffers[src.0].width);
        self.push(
            name,
            Op::CausalConv {
                src,
                weight,
                bias,
                n_taps,
                activation,
                state,
                dst,
            },
        );
        dst
    }

    /// `a` and `d` are those of [`Op::StateScan`], as are `x`, `b` and `c`.
    pub(crate) fn state_scan(
        &mut self,
        name: &str,
        [x, b, c]: [Columns; 3],
        dt: BufferId,
        [a, d]: [WeightId; 2],
        [n_elements, n_state, n_group]: [usize; 3],
    ) -> BufferId {
        let dst = self.buffer(name, n_elements, Extent::Tokens);
        let state = self.state(name, n_elements * n_state);
        self.push(
            name,
            Op::StateScan {
                x,
                dt,
                b,
                c,
                a,
                d,
                n_group,
                state,
                dst,
            },
        );
        dst
    }

    /// `alpha`, `beta`, `a` and `bias` are those of [`Op::DeltaRule`].
    pub(crate) fn delta_rule(
        &mut self,
        name: &str,
        qkv: BufferId,
        [alpha, beta]: [BufferId; 2],
        [a, bias]: [WeightId; 2],
        (n_head_k, n_state, is_tiled): (usize, usize, bool),
        eps: f32,
    ) -> BufferId {
        let n_elements = self.buffers[alpha.0].width * n_state;
        let dst = self.buffer(name, n_elements, Extent::Tokens);
        let state = self.state(name, n_elements * n_state);
        self.push(
            name,
            Op::DeltaRule {
                qkv,
                alpha,
                beta,
                a,
                bias,
                n_head_k,
                is_tiled,
                eps,
                state,
                dst,
            },
        );
        dst
    }

    pub(crate) fn group_norm(
        &mut self,
        name: &str,
        src: BufferId,
        weight: WeightId,
        group: usize,
        eps: f32,
    ) -> BufferId {
        let dst = self.like(name, src);
        self.push(
            name,
            Op::GroupNorm {
                src,
                weight,
                group,
                eps,
                dst,
            },
        );
        dst
    }

    /// Of each `period` columns `length`, from `first` on.
    pub(crate) fn take_columns(
        &mut self,
        name: &str,
        src: BufferId,
        first: usize,
        [length, period]: [usize; 2],
    ) -> BufferId {
        let width = self.buffers[src.0].width / period * length;
        let dst = self.buffer(name, width, self.buffers[src.0].extent);
        self.push(
            name,
            Op::TakeColumns {
                src,
                first,
                length,
                period,
                dst,
            },
        );
        dst
    }
}
