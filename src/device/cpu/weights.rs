//! The weights as the kernels read them: in the mapped file, or converted to the type asked for.

use crate::device::held::{Held, HeldDifference, first_difference};
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
    /// All rows, where they are not as in the file.
    converted: Option<Vec<u8>>,
    /// The values of a vector; empty for a matrix.
    vector: Vec<f32>,
}

fn is_converted(weight: &Weight) -> bool {
    weight.n_rows > 1 && !weight.is_as_in_file()
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

    /// Compares the rows of a weight that are not read from the file where it lies.
    pub(super) fn compare(&self, id: WeightId, runs: &[Range<usize>]) -> Held {
        let (weight, entry) = (self.get(id), &self.entries[id.0]);
        let held: &[u8] = match &entry.converted {
            Some(bytes) => bytes,
            None if weight.n_rows == 1 => bytemuck::cast_slice(&entry.vector),
            None => return Held::InFile,
        };
        let row_bytes = weight.ty.row_bytes(weight.n_cols);
        let bytes_of = |rows: &Range<usize>| &held[rows.start * row_bytes..rows.end * row_bytes];
        let first = runs
            .par_iter()
            .flat_map(|run| {
                run.clone()
                    .into_par_iter()
                    .step_by(ROWS_PER_TASK)
                    .map(|start| start..run.end.min(start + ROWS_PER_TASK))
            })
            .filter_map(|rows| {
                let expected = self.weights.stored_rows(id, rows.clone());
                let difference = first_difference(bytes_of(&rows), &expected)?;
                Some((rows.start, difference))
            })
            .min_by_key(|(row, _)| *row);
        let Some((row, difference)) = first else {
            let bytes = runs.iter().map(|run| bytes_of(run).len() as u64).sum();
            return Held::Same { bytes };
        };
        let byte = difference.word * 4 + difference.bit / 8;
        Held::Differs(HeldDifference {
            name: weight.name.clone(),
            row: row + byte / row_bytes,
            plane: 0,
            word: row * row_bytes / 4 + difference.word,
            found: difference.found,
            expected: difference.expected,
            all_zero: runs
                .iter()
                .all(|run| bytes_of(run).iter().all(|&byte| byte == 0)),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::WeightType;
    use crate::model::{DecoderModel, WeightStorage};
    use crate::tiny;
    use std::sync::Arc;

    fn weights(ty: WeightType, storage: WeightStorage) -> CpuWeights {
        let gguf = Arc::new(tiny::gguf(ty, None));
        let weights = DecoderModel::from_gguf(gguf, storage).unwrap().weights;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        CpuWeights::new(weights, &pool.unwrap(), None, &mut |_, _| ()).unwrap()
    }

    fn find(weights: &CpuWeights, name: &str) -> WeightId {
        let mut all = weights.weights.iter();
        all.find(|(_, weight)| weight.name == name).unwrap().0
    }

    fn compare(weights: &CpuWeights, id: WeightId) -> Held {
        weights.compare(id, std::slice::from_ref(&(0..weights.get(id).n_rows)))
    }

    #[test]
    fn matrices_of_the_files_type_are_read_where_they_lie() {
        for ty in WeightType::ALL {
            let weights = weights(ty, WeightStorage::Native);
            for (id, weight) in weights.weights.iter() {
                match compare(&weights, id) {
                    Held::InFile if weight.n_rows > 1 => {}
                    Held::Same { bytes } if weight.n_rows == 1 => {
                        assert_eq!(bytes, weight.stored_bytes());
                    }
                    other => panic!("{ty:?}, {}: {other:?}", weight.name),
                }
            }
        }
    }

    #[test]
    fn damage_to_converted_weights_is_named_with_weight_and_row() {
        for ty in WeightType::ALL {
            for storage in [WeightStorage::F16, WeightStorage::F32] {
                let mut weights = weights(ty, storage);
                let id = find(&weights, "token_embd.weight");
                if !is_converted(weights.get(id)) {
                    continue;
                }
                assert!(matches!(compare(&weights, id), Held::Same { .. }), "{ty:?}");
                let row_bytes = weights.get(id).ty.row_bytes(weights.get(id).n_cols);
                for row in [319, 200, 65, 0] {
                    let bytes = weights.entries[id.0].converted.as_mut().unwrap();
                    bytes[(row + 1) * row_bytes - 1] ^= 0x10;
                    let Held::Differs(found) = compare(&weights, id) else {
                        panic!("{ty:?}, row {row}");
                    };
                    assert_eq!((found.name.as_str(), found.row), ("token_embd.weight", row));
                    assert_eq!(found.found ^ found.expected, 0x1000_0000);
                    assert!(!found.all_zero);
                }
                let bytes = weights.entries[id.0].converted.as_mut().unwrap();
                bytes.fill(0);
                let found = compare(&weights, id);
                assert!(matches!(found, Held::Differs(found) if found.all_zero && found.row == 0));
            }
        }
    }

    #[test]
    fn damage_to_a_vector_is_named_with_its_element() {
        let mut weights = weights(WeightType::Q4_K, WeightStorage::Native);
        let id = find(&weights, "blk.1.ffn_norm.weight");
        weights.entries[id.0].vector[130] += 1.0;
        let found = compare(&weights, id);
        assert!(
            matches!(&found, Held::Differs(found) if found.word == 130 && found.row == 0),
            "{found:?}"
        );
    }
}
