//! What steps carry from one batch to the next beside the cache, and what is wrong with their shapes.

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
            Op::CausalConv { state, .. } => Some(state),
            _ => None,
        }
    }
}

/// What is wrong with a step that has a state, if anything.
pub(super) fn mismatch(plan: &Plan, weights: &Weights, op: &Op) -> Option<String> {
    let width = |id: BufferId| plan.buffer(id).width;
    let columns = |id: WeightId| weights.get(id).n_cols;
    let unequal = |what: &str, found: usize, expected: usize| {
        (found != expected).then(|| format!("{what} {found}, expected {expected}"))
    };
    let of_tokens = |id: BufferId| {
        (plan.buffer(id).extent != Extent::Tokens).then(|| "is not a step over tokens".to_owned())
    };
    let state_len = |id: super::StateId| plan.states.get(id.0).map_or(0, |state| state.len);
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
        _ => None,
    }
}
