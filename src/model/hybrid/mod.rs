//! Models with layers that carry a state from token to token in place of attention: their spec, weights and plan.

mod mixers;
mod plan;
mod spec;
mod weights;

pub use spec::RecurrentSpec;

pub(super) use plan::hybrid_plan;
pub(super) use spec::layers;
pub(super) use weights::{HybridWeights, hybrid_weights};
