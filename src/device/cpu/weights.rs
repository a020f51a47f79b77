//! The weights as the kernels read them: in the mapped file, or converted to the type asked for.

use crate::error::{Error, Result};
use crate::model::{Weight, WeightId, Weights};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::borrow::Cow;
use std::hint::black_box;
use std::ops::Range;

/// Weight rows that one task converts.
const ROWS_PER_TASK: usize = 64;

/// The step in which a mapped file is touched: no page of any system is smaller.
const PAGE_BYTES: usize = 4096;

/// Every weight of a model in the memory of the CPU.
pub(super) struct CpuWeights {
    weights: Weights,
    entries: Vec<Entry>,
}

/// What is held of a weight besides the file.
struct Entry {
    /// All rows, where their type is not the file's.
    converted: Option<Vec<u8>>,
    /// The values of a vector; empty for a matrix.
    vector: Vec<f32>,
}

fn is_converted(weight: &Weight) -> bool {
    weight.n_rows > 1 && weight.ty != weight.file_type
}

impl CpuWeights {
    /// Converts what must be converted and reads the rest of the file once, so that no page of it has
    /// to be waited for when tokens are computed.
    pub(super) fn new(
        weights: Weights,
        pool: &ThreadPool,
        available_bytes: Option<u64>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CpuWeights> {
        let converted = weights
            .iter()
            .map(|(_, weight)| weight)
            .filter(|w| is_converted(w));
        let bytes = converted.map(Weight::stored_bytes).sum();
        if available_bytes.is_some_and(|available| bytes > available) {
            let what = "converted weights".to_owned();
            return Err(Error::OutOfMemory {
                what,
                bytes,
                device: "cpu".to_owned(),
            });
        }
        let total = weights.stored_bytes();
        let mut done = 0;
        progress(done, total);
        let mut entries = Vec::new();
        for (id, weight) in weights.iter() {
            let mut entry = Entry {
                converted: None,
                vector: Vec::new(),
            };
            if weight.n_rows == 1 {
                entry.vector = weights.vector(id);
            } else if is_converted(weight) {
                entry.converted = Some(pool.install(|| convert(&weights, id)));
                weights.release(id);
            } else {
                let bytes = weights.stored_rows(id, 0..weight.n_rows);
                let touch = |sum: u8, &byte: &u8| sum.wrapping_add(byte);
                black_box(bytes.iter().step_by(PAGE_BYTES).fold(0, touch));
            }
            entries.push(entry);
            done += weight.stored_bytes();
            progress(done, total);
        }
        Ok(CpuWeights { weights, entries })
    }

    /// Bytes of memory beside the file's.
    pub(super) fn held_bytes(&self) -> u64 {
        let bytes = |entry: &Entry| {
            let converted = entry.converted.as_ref().map_or(0, Vec::len);
            (converted + size_of_val(&*entry.vector)) as u64
        };
        self.entries.iter().map(bytes).sum()
    }

    pub(super) fn get(&self, id: WeightId) -> &Weight {
        self.weights.get(id)
    }

    /// Some rows of a matrix in its type.
    pub(super) fn rows(&self, id: WeightId, rows: Range<usize>) -> Cow<'_, [u8]> {
        match &self.entries[id.0].converted {
            Some(bytes) => {
                let weight = self.get(id);
                let row_bytes = weight.ty.row_bytes(weight.n_cols);
                Cow::Borrowed(&bytes[rows.start * row_bytes..rows.end * row_bytes])
            }
            None => self.weights.stored_rows(id, rows),
        }
    }

    /// The values of a vector.
    pub(super) fn vector(&self, id: WeightId) -> &[f32] {
        &self.entries[id.0].vector
    }
}

fn convert(weights: &Weights, id: WeightId) -> Vec<u8> {
    let weight = weights.get(id);
    let row_bytes = weight.ty.row_bytes(weight.n_cols);
    let mut bytes = vec![0; weight.n_rows * row_bytes];
    bytes
        .par_chunks_mut(ROWS_PER_TASK * row_bytes)
        .enumerate()
        .for_each(|(task, bytes)| {
            let first = task * ROWS_PER_TASK;
            bytes.copy_from_slice(&weights.stored_rows(id, first..first + bytes.len() / row_bytes));
        });
    bytes
}
