//! The sizes of steps that carry a state, as their kernels and twins take them.

use crate::kernels::{delta_rule, state_scan};
use crate::model::WeightId;
use crate::plan::{Columns, Op, Plan};

/// The sizes of a scan, and the places of `x`, `b` and `c`; `None` for another op.
pub(super) fn scan_shape(
    plan: &Plan,
    columns: impl Fn(WeightId) -> usize,
    op: &Op,
) -> Option<(state_scan::Shape, [state_scan::Place; 3])> {
    let Op::StateScan {
        x,
        dt,
        b,
        c,
        a,
        n_group,
        state,
        dst,
        ..
    } = *op
    else {
        return None;
    };
    let [n_head, n_elements] = [dt, dst].map(|id| plan.buffer(id).width);
    let place = |from: Columns| state_scan::Place {
        width: plan.buffer(from.buffer).width,
        first: from.first,
    };
    let shape = state_scan::Shape {
        n_head,
        head_dim: n_elements / n_head,
        n_state: plan.states[state.0].len / n_elements,
        n_group,
        has_a_of_each: columns(a) != n_head,
    };
    Some((shape, [x, b, c].map(place)))
}

/// The sizes of a delta rule; `None` for another op.
pub(super) fn delta_shape(plan: &Plan, op: &Op) -> Option<delta_rule::Shape> {
    let Op::DeltaRule {
        alpha,
        n_head_k,
        is_tiled,
        eps,
        dst,
        ..
    } = *op
    else {
        return None;
    };
    let [n_head, n_elements] = [alpha, dst].map(|id| plan.buffer(id).width);
    Some(delta_rule::Shape {
        n_head,
        n_head_k,
        n_state: n_elements / n_head,
        is_tiled,
        eps,
    })
}
