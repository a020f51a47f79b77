//! Steps that carry a state from batch to batch.

use super::PlanBuilder;
use crate::model::WeightId;
use crate::plan::{Activation, BufferId, Op, State, StateId};

impl PlanBuilder<'_> {
    /// A state of the step `name`, `[len] f32`.
    fn state(&mut self, name: &str, len: usize) -> StateId {
        self.states.push(State {
            name: format!("{}{name}", self.prefix),
            len,
        });
        StateId(self.states.len() - 1)
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
}
