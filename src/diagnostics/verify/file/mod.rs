//! The tensors of a file: whether what they hold can be right at all, and by what hash they are known.
//!
//! A file whose structure is sound may still hold damaged bytes. Most damage to the integers of a
//! block changes weights a little and is seen by the hash alone; damage to its scales changes them
//! beyond what any model has.

mod report;
mod scan;
#[cfg(test)]
mod tests;

pub use report::{BlockScale, FileReport, TensorFault, TensorReport};

use super::depth::Depth;
use crate::gguf::{Gguf, TensorInfo, WeightType};
use rayon::prelude::*;
use scan::{Rows, Scan, constant, hole};
use std::ops::Range;
use xxhash_rust::xxh64::Xxh64;

const EMBEDDING: &str = "token_embd.weight";

/// Looks at every tensor of a file, on all cores.
pub(crate) fn check_file(gguf: &Gguf, depth: Depth) -> FileReport {
    let tensors = gguf.tensors();
    let known_tokens = known_tokens(gguf);
    let mut largest_first: Vec<usize> = (0..tensors.len()).collect();
    largest_first.sort_by_key(|&index| std::cmp::Reverse(tensors[index].n_bytes));
    let mut reports: Vec<(usize, TensorReport)> = largest_first
        .into_iter()
        .par_bridge()
        .map(|index| {
            let tensor = &tensors[index];
            let mut report = check_tensor(gguf, tensor, depth);
            if tensor.name == EMBEDDING {
                report
                    .faults
                    .extend(token_faults(gguf, tensor, &known_tokens));
            }
            if depth == Depth::Full {
                gguf.release(tensor);
            }
            (index, report)
        })
        .collect();
    reports.sort_unstable_by_key(|(index, _)| *index);
    FileReport {
        depth,
        tensors: reports.into_iter().map(|(_, report)| report).collect(),
    }
}

/// The rows of a tensor; `None` for a type that the engine does not compute with.
fn rows<'a>(gguf: &'a Gguf, tensor: &TensorInfo) -> Option<Rows<'a>> {
    let ty = WeightType::try_from(tensor.ty).ok()?;
    Some(Rows {
        ty,
        n_cols: tensor.n_cols(),
        bytes: gguf.tensor_bytes(tensor),
    })
}

fn check_tensor(gguf: &Gguf, tensor: &TensorInfo, depth: Depth) -> TensorReport {
    let mut report = TensorReport {
        name: tensor.name.clone(),
        ty: tensor.ty.name(),
        shape: tensor.shape.clone(),
        n_bytes: tensor.n_bytes,
        checked_bytes: 0,
        hash: None,
        n_zero_rows: 0,
        faults: Vec::new(),
    };
    let hex = |hash: u64| Some(format!("{hash:016x}"));
    let Some(rows) = rows(gguf, tensor) else {
        if depth == Depth::Full {
            report.hash = hex(gguf.tensor_hash(tensor));
        }
        return report;
    };
    let n_rows = tensor.n_rows();
    let runs = depth.rows(n_rows, rows.row_bytes(), gguf.tensors().len());
    let n_checked: usize = runs.iter().map(Range::len).sum();
    report.checked_bytes = (n_checked * rows.row_bytes()) as u64;
    let scan = if n_checked == n_rows {
        let mut hash = Xxh64::new(0);
        let scan = Scan::new(rows, &runs, Some(&mut hash));
        report.hash = hex(hash.digest());
        scan
    } else {
        Scan::new(rows, &runs, None)
    };
    report.n_zero_rows = scan.n_zero_rows;

    let is_matrix = n_rows > 1 && rows.n_cols > 1;
    // Vectors, biases above all, may have a few weights that are far beyond the others; and the
    // divisors of RoPE are huge where a dimension is not to turn.
    let is_bounded = !tensor.name.contains("rope_");
    report.faults = scan.faults(rows, &runs, is_matrix, is_bounded);
    match constant(rows, &runs) {
        // Biases may be there without a use.
        Some(0.0) if is_matrix || !tensor.name.ends_with(".bias") => {
            report.faults.push(TensorFault::AllZero);
        }
        Some(value) if is_matrix && value.is_finite() => {
            report.faults.push(TensorFault::Constant { value });
        }
        _ if is_matrix && scan.n_zero_rows > n_checked / 2 => {
            report.faults.push(TensorFault::ZeroRows {
                count: scan.n_zero_rows,
                n_rows: n_checked,
            });
        }
        _ if is_matrix => {
            let fault = |hole: Range<u64>| TensorFault::Hole {
                offset: hole.start,
                n_bytes: hole.end - hole.start,
            };
            let hole = hole(rows, &runs, tensor.offset);
            report.faults.extend(hole.map(fault));
        }
        _ => {}
    }
    report
}

/// Tokens whose embedding must be something: those of the beginning and the end of a text, and some of
/// those that are pieces of ordinary text. Padding and tokens without a use may be zero.
fn known_tokens(gguf: &Gguf) -> Vec<u32> {
    /// `LLAMA_TOKEN_TYPE_NORMAL` of llama.h.
    const NORMAL: i32 = 1;
    let metadata = gguf.metadata();
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        metadata.u32(&key).ok().flatten()
    };
    let mut tokens: Vec<u32> = ["bos", "eos"].into_iter().filter_map(id).collect();
    if let Ok(Some(kinds)) = metadata.i32s("tokenizer.ggml.token_type") {
        let normal = (0..).zip(kinds).filter(|(_, kind)| *kind == NORMAL);
        let normal: Vec<u32> = normal.map(|(id, _)| id).collect();
        if let Some(last) = normal.len().checked_sub(1) {
            tokens.extend((0..=4).map(|quarter| normal[quarter * last / 4]));
        }
    }
    let padding = id("padding");
    tokens.retain(|token| Some(*token) != padding);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// What is wrong with the embedding of some tokens.
fn token_faults(gguf: &Gguf, tensor: &TensorInfo, tokens: &[u32]) -> Vec<TensorFault> {
    let Some(rows) = rows(gguf, tensor) else {
        return Vec::new();
    };
    let decode = |&token_id: &u32| {
        let row = token_id as usize;
        (row < tensor.n_rows()).then(|| {
            let mut values = vec![0.0; rows.n_cols];
            rows.ty.decode(rows.bytes(row..row + 1), &mut values);
            (token_id, values)
        })
    };
    let decoded: Vec<(u32, Vec<f32>)> = tokens.iter().filter_map(decode).collect();
    let is_zero = |values: &[f32]| values.iter().all(|&value| value == 0.0);
    let mut faults = Vec::new();
    for (index, (token_id, values)) in decoded.iter().enumerate() {
        if is_zero(values) {
            let token_id = *token_id;
            faults.push(TensorFault::ZeroToken { token_id });
            continue;
        }
        let same = decoded[..index].iter().find(|(_, other)| other == values);
        if let Some((other, _)) = same {
            let token_ids = [*other, *token_id];
            faults.push(TensorFault::SameTokens { token_ids });
        }
    }
    faults
}
