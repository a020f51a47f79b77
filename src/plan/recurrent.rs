//! What steps carry from one batch to the next beside the cache, and what is wrong with the shapes of such steps and of
//! those that stand beside them.

use super::{BufferId, Extent, Op, Plan};
use crate::model::{WeightId, Weights};

/// A state of a [`Plan`], by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub(crate) usize);

/// What a step keeps of all tokens before a batch, `[len] f32`. It is zero in front of position 0, and each batch
/// replaces it: a session that goes back has to run again what it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The name of the step that keeps it.
    pub name: String,
    /// Elements.
    pub len: usize,
}

/// Columns of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// `[n_rows, width]`.
    pub buffer: BufferId,
    /// The first of them.
    pub first: usize,
}

/// The most taps of a convolution: kernels hold those of a channel in registers.
pub(crate) const MAX_TAPS: usize = 4;

/// The most columns of a state's matrix: so many invocations as share a row hold 16 each.
pub(crate) const MAX_STATE_SIZE: usize = 256;

impl Plan {
    /// The states of a session, in bytes.
    pub fn state_bytes(&self) -> u64 {
        self.states.iter().map(|state| state.len as u64 * 4).sum()
    }
}

impl Op {
    /// The state that this op reads and replaces.
    pub fn state(&self) -> Option<StateId> {
        match *self {
            Op::CausalConv { state, .. }
            | Op::StateScan { state, .. }
            | Op::DeltaRule { state, .. } => Some(state),
            _ => None,
        }
    }
}

/// What is wrong with a step that has a state, or stands beside one, if anything.
pub(super) fn mismatch(plan: &Plan, weights: &Weights, op: &Op) -> Option<String> {
    let width = |id: BufferId| plan.buffer(id).width;
    let columns = |id: WeightId| weights.get(id).n_cols;
    let unequal = |what: &str, found: usize, expected: usize| {
        (found != expected).then(|| format!("{what} {found}, expected {expected}"))
    };
    let of_tokens = |id: BufferId| {
        (plan.buffer(id).extent != Extent::Tokens).then(|| "is not a step over tokens".to_owned())
    };
    let size = |n_state: usize| {
        let fits = (1..=MAX_STATE_SIZE).contains(&n_state);
        (!fits).then(|| format!("rows of {n_state} states, expected 1 to {MAX_STATE_SIZE}"))
    };
    let state_len = |id: StateId| plan.states.get(id.0).map_or(0, |state| state.len);
    match *op {
        Op::CausalConv {
            src,
            weight,
            bias,
            n_taps,
            state,
            dst,
            ..
        } => unequal("width", width(dst), width(src))
            .or_else(|| {
                let fits = (2..=MAX_TAPS).contains(&n_taps);
                (!fits).then(|| format!("{n_taps} taps, expected 2 to {MAX_TAPS}"))
            })
            .or_else(|| unequal("taps", columns(weight), n_taps * width(src)))
            .or_else(|| bias.and_then(|bias| unequal("bias", columns(bias), width(src))))
            .or_else(|| unequal("state", state_len(state), (n_taps - 1) * width(src)))
            .or_else(|| of_tokens(src))
            .or_else(|| of_tokens(dst)),
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
        } => {
            let (n_elements, n_head) = (width(dst), width(dt));
            let n_state = state_len(state) / n_elements.max(1);
            let reaches = |what: &str, from: Columns, len: usize| {
                let end = from.first + len;
                let all = width(from.buffer);
                (end > all).then(|| format!("{what} up to column {end} of {all}"))
            };
            let of_each = [n_head, n_head * n_state];
            unequal("partial head", n_elements % n_head, 0)
                .or_else(|| unequal("state", state_len(state), n_elements * n_state))
                .or_else(|| size(n_state))
                .or_else(|| (n_group == 0).then(|| "has no groups".to_owned()))
                .or_else(|| unequal("partial group", n_head % n_group, 0))
                .or_else(|| reaches("input", x, n_elements))
                .or_else(|| reaches("b", b, n_group * n_state))
                .or_else(|| reaches("c", c, n_group * n_state))
                .or_else(|| {
                    let n = columns(a);
                    (!of_each.contains(&n)).then(|| format!("a {n}, expected one of {of_each:?}"))
                })
                .or_else(|| unequal("d", columns(d), n_head))
                .or_else(|| op.sources().into_iter().find_map(of_tokens))
                .or_else(|| of_tokens(dst))
        }
        Op::DeltaRule {
            qkv,
            alpha,
            beta,
            a,
            bias,
            n_head_k,
            state,
            dst,
            ..
        } => {
            let (n_elements, n_head) = (width(dst), width(alpha));
            let n_state = n_elements / n_head;
            unequal("partial head", n_elements % n_head, 0)
                .or_else(|| unequal("state", state_len(state), n_elements * n_state))
                .or_else(|| size(n_state))
                .or_else(|| (n_head_k == 0).then(|| "has no keys".to_owned()))
                .or_else(|| unequal("partial group", n_head % n_head_k, 0))
                .or_else(|| unequal("input", width(qkv), (2 * n_head_k + n_head) * n_state))
                .or_else(|| unequal("beta", width(beta), n_head))
                .or_else(|| unequal("a", columns(a), n_head))
                .or_else(|| unequal("bias", columns(bias), n_head))
                .or_else(|| op.sources().into_iter().find_map(of_tokens))
                .or_else(|| of_tokens(dst))
        }
        Op::GroupNorm {
            src,
            weight,
            group,
            dst,
            ..
        } => unequal("width", width(dst), width(src))
            .or_else(|| unequal("weights", columns(weight), width(src)))
            .or_else(|| (group == 0).then(|| "has empty groups".to_owned()))
            .or_else(|| unequal("partial group", width(src) % group, 0))
            .or_else(|| of_tokens(src))
            .or_else(|| of_tokens(dst)),
        _ => None,
    }
}
