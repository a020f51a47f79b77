//! Telling whether a running model is right, and where it is not; and where its time goes.

mod profile;
mod verify;

pub use profile::{Profile, ProfiledDispatch};
pub use verify::{
    BlockScale, Depth, Divergence, FileReport, Finding, Phase, TensorFault, TensorReport,
    UploadReport, VerifyOptions, VerifyReport,
};
pub(crate) use verify::{check_file, check_upload, verify};
