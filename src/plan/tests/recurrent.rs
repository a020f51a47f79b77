//! Steps that carry a state, and those beside them.

use super::{Case, assert_refused};
use crate::plan::check::check;
use crate::plan::{Activation, BufferId, Columns, Op, State, StateId};

impl Case {
    fn new_state(&mut self, len: usize) -> StateId {
        self.plan.states.push(State {
            name: "new".to_owned(),
            len,
        });
        StateId(self.plan.states.len() - 1)
    }

    fn columns(&self, step: &str, first: usize) -> Columns {
        Columns {
            buffer: self.written_by(step),
            first,
        }
    }
}

/// Of keys, which are 32 wide, with 64 numbers for taps.
fn conv(case: &mut Case, n_taps: usize, state_len: usize) -> Op {
    Op::CausalConv {
        src: case.written_by("blk.0.attn_k"),
        weight: case.weight("attn_norm"),
        bias: None,
        n_taps,
        activation: Activation::Silu,
        state: case.new_state(state_len),
        dst: case.written_by("blk.0.Kcur"),
    }
}

/// Of 64 heads of one element.
fn scan(case: &mut Case, n_group: usize, state_len: usize, first_of_b: usize) -> Op {
    Op::StateScan {
        x: case.columns("blk.0.attn_q", 0),
        dt: case.written_by("blk.0.attn_q"),
        b: case.columns("blk.0.attn_k", first_of_b),
        c: case.columns("blk.0.attn_k", 2),
        a: case.weight("attn_norm"),
        d: case.weight("attn_norm"),
        n_group,
        state: case.new_state(state_len),
        dst: case.written_by("blk.0.Qcur"),
    }
}

/// Of 32 heads of two elements.
fn delta(case: &mut Case, n_head_k: usize, state_len: usize) -> Op {
    Op::DeltaRule {
        qkv: case.written_by("blk.0.attn_q"),
        alpha: case.written_by("blk.0.attn_k"),
        beta: case.written_by("blk.0.attn_k"),
        a: case.weight("attn_norm"),
        bias: case.weight("attn_norm"),
        n_head_k,
        is_tiled: true,
        eps: 1e-6,
        state: case.new_state(state_len),
        dst: case.written_by("blk.0.Qcur"),
    }
}

fn norm(case: &mut Case, group: usize) -> Op {
    Op::GroupNorm {
        src: case.written_by("blk.0.attn_q"),
        weight: case.weight("attn_norm"),
        group,
        eps: 1e-6,
        dst: case.written_by("blk.0.Qcur"),
    }
}

fn columns(case: &mut Case, first: usize, [length, period]: [usize; 2]) -> Op {
    Op::TakeColumns {
        src: case.written_by("blk.0.attn_q"),
        first,
        length,
        period,
        dst: case.written_by("blk.0.Kcur"),
    }
}

#[track_caller]
fn assert_accepted(step: &str, op: impl FnOnce(&mut Case) -> Op) {
    let mut case = Case::new();
    let op = op(&mut case);
    let index = case.index(step);
    case.plan.steps[index].op = op;
    check(&case.plan, &case.model.weights, &case.kv).unwrap();
}

#[test]
fn steps_with_states_are_accepted() {
    assert_accepted("blk.0.Kcur", |case| conv(case, 2, 32));
    assert_accepted("blk.0.Qcur", |case| scan(case, 1, 128, 0));
    assert_accepted("blk.0.Qcur", |case| norm(case, 16));
    assert_accepted("blk.0.Kcur", |case| columns(case, 1, [1, 2]));
}

#[test]
fn convolution_is_refused_with_taps_or_a_state_of_another_size() {
    let refused = |what, n_taps, state_len| {
        assert_refused("blk.0.Kcur", what, |case| conv(case, n_taps, state_len));
    };
    refused("5 taps, expected 2 to 4", 5, 128);
    refused("taps 64, expected 96", 3, 64);
    refused("state 31, expected 32", 2, 31);
}

#[test]
fn state_space_is_refused_with_sizes_that_do_not_fit() {
    let refused = |what, n_group, state_len, first| {
        assert_refused("blk.0.Qcur", what, |case| {
            scan(case, n_group, state_len, first)
        });
    };
    refused("state 129, expected 128", 1, 129, 0);
    refused("rows of 0 states, expected 1 to 256", 1, 0, 0);
    refused("rows of 257 states, expected 1 to 256", 1, 64 * 257, 0);
    refused("has no groups", 0, 128, 0);
    refused("partial group 1, expected 0", 3, 128, 0);
    refused("b up to column 33 of 32", 1, 128, 31);
}

#[test]
fn delta_rule_is_refused_with_sizes_that_do_not_fit() {
    let refused = |what, n_head_k, state_len| {
        assert_refused("blk.0.Qcur", what, |case| delta(case, n_head_k, state_len));
    };
    refused("state 127, expected 128", 16, 127);
    refused("has no keys", 0, 128);
    refused("partial group 2, expected 0", 5, 128);
    refused("input 64, expected 128", 16, 128);
}

#[test]
fn groups_and_columns_are_refused_where_they_do_not_fit_the_row() {
    let of_norm = |what, group| {
        assert_refused("blk.0.Qcur", what, |case| norm(case, group));
    };
    of_norm("has empty groups", 0);
    of_norm("partial group 4, expected 0", 5);
    let of_columns = |what, first, sizes| {
        assert_refused("blk.0.Kcur", what, |case| columns(case, first, sizes));
    };
    of_columns("takes 1 columns from 2 on, of 2", 2, [1, 2]);
    of_columns("takes 0 columns from 0 on, of 2", 0, [0, 2]);
    of_columns("partial group 4, expected 0", 0, [1, 5]);
    of_columns("width 32, expected 16", 0, [1, 4]);
}

#[test]
fn two_steps_do_not_keep_one_state() {
    let mut case = Case::new();
    let op = conv(&mut case, 2, 32);
    let index = case.index("blk.0.Kcur");
    case.plan.steps[index].op = op.clone();
    let index = case.index("blk.1.Kcur");
    case.plan.steps[index].op = op;
    case.assert_refused("blk.1.Kcur", "keeps the state of another step");
}

#[test]
fn states_are_counted_in_bytes() {
    let mut case = Case::new();
    assert_eq!(case.plan.state_bytes(), 0);
    let ids = [5, 7].map(|len| case.new_state(len));
    assert_eq!(ids, [StateId(0), StateId(1)]);
    assert_eq!(case.plan.state_bytes(), 48);
    let op = conv(&mut case, 2, 32);
    assert_eq!((op.state(), op.dst().is_some()), (Some(StateId(2)), true));
    assert_eq!(columns(&mut case, 0, [1, 2]).state(), None);
    let sources: Vec<BufferId> = scan(&mut case, 1, 128, 0).sources();
    assert_eq!(sources.len(), 4);
}
