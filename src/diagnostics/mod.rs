//! Telling whether a running model is right, and where it is not.

mod verify;

pub(crate) use verify::verify;
pub use verify::{Divergence, Finding, Phase, VerifyOptions, VerifyReport};
