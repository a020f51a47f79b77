//! Telling whether a running model is right, and where it is not; and where its time goes.

mod profile;
mod trace;
mod verify;

pub use profile::{Profile, ProfiledDispatch};
pub(crate) use trace::Recorder;
pub use trace::{
    DiffOptions, TensorDiff, Trace, TraceDiff, TraceEntry, TraceFinding, TraceOptions,
};
pub(crate) use verify::verify;
pub use verify::{Divergence, Finding, Phase, VerifyOptions, VerifyReport};
