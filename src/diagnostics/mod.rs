//! Telling whether a running model is right, and where it is not; and where its time goes.

pub mod compare;
mod profile;
mod verify;

pub use profile::{Profile, ProfiledDispatch};
pub(crate) use verify::verify;
pub use verify::{Divergence, Finding, Phase, VerifyOptions, VerifyReport};
