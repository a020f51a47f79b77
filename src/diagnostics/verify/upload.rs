//! Whether a device holds the weights that the file gives: they are read back and compared.
//!
//! Memory that ran out, or a copy that was lost, may leave a buffer of zeros without an error.

use super::depth::Depth;
use crate::device::{Backend, Held, HeldDifference};
use crate::error::Result;
use crate::model::{Weight, WeightId, Weights};
use serde::Serialize;
use std::fmt;

/// The outcome of reading a device's weights back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UploadReport {
    /// How much was asked for.
    pub depth: Depth,
    /// Weights of the model.
    pub n_weights: usize,
    /// Weights that adapters add to.
    pub n_merged: usize,
    /// Weights that the device reads from the file where they lie.
    pub n_in_file: usize,
    /// Bytes of all other weights as the device holds them, without padding.
    pub held_bytes: u64,
    /// Bytes of them that were compared, as they lie on the device, padding included.
    pub compared_bytes: u64,
    /// Bytes of tables of angles that were compared.
    pub table_bytes: u64,
    /// The first difference of each weight, and of each table, that has one.
    pub differences: Vec<HeldDifference>,
}

impl UploadReport {
    /// Whether the device holds what the file gives.
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for UploadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UploadReport {
            n_weights,
            n_merged,
            n_in_file,
            held_bytes,
            compared_bytes,
            differences,
            ..
        } = self;
        let sources = match n_merged {
            0 => "the file gives".to_owned(),
            n => format!("the file gives, with adapters added to {n} weights"),
        };
        match differences.as_slice() {
            [] => write!(
                f,
                "the device holds what {sources}: {compared_bytes} bytes of {held_bytes} \
                 read back ({n_weights} weights, {n_in_file} of them read from the file where they lie)"
            ),
            [first, rest @ ..] => {
                write!(f, "{first}")?;
                match rest.len() {
                    0 => Ok(()),
                    more => write!(
                        f,
                        "; and {more} more, of {n_weights} weights and the tables of angles"
                    ),
                }
            }
        }
    }
}

/// Compares the weights of a device, and its tables of angles, with what the file gives.
///
/// # Errors
/// Those of the device.
pub(crate) fn check_upload(
    weights: &Weights,
    backend: &dyn Backend,
    depth: Depth,
) -> Result<UploadReport> {
    let all: Vec<(WeightId, &Weight)> = weights.iter().collect();
    let mut report = UploadReport {
        depth,
        n_weights: all.len(),
        n_merged: all.iter().filter(|(_, weight)| weight.is_merged()).count(),
        n_in_file: 0,
        held_bytes: 0,
        compared_bytes: 0,
        table_bytes: 0,
        differences: Vec::new(),
    };
    for (id, weight) in &all {
        let row_bytes = weight.ty.row_bytes(weight.n_cols);
        let runs = depth.rows(weight.n_rows, row_bytes, all.len());
        let held = backend.compare_weight(*id, &runs)?;
        match held {
            Held::InFile => report.n_in_file += 1,
            _ => report.held_bytes += weight.stored_bytes(),
        }
        report.add(held);
    }
    match backend.compare_rope_tables()? {
        Held::Same { bytes } => report.table_bytes = bytes,
        held => report.add(held),
    }
    Ok(report)
}

impl UploadReport {
    fn add(&mut self, held: Held) {
        match held {
            Held::Same { bytes } => self.compared_bytes += bytes,
            Held::InFile => {}
            Held::Differs(difference) => self.differences.push(difference),
        }
    }
}

#[cfg(test)]
mod tests;
