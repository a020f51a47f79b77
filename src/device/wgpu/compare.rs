//! What the GPU holds, read back and compared with what it was sent: the file is repacked once more.

use super::StoredTable;
use super::context::Context;
use super::weights::{GpuWeights, WeightShard};
use crate::device::held::{Held, HeldDifference, WordDifference, first_difference};
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::kernels::repack::Shard;
use crate::model::{Weight, WeightId, Weights};
use rayon::prelude::*;
use std::ops::Range;

/// In what pieces weights are read back.
#[derive(Clone, Copy)]
struct Pieces {
    /// Bytes that are read back at a time, unless two rows alone are more.
    batch_bytes: usize,
    /// Bytes that one thread repacks at a time, about.
    part_bytes: usize,
}

const PIECES: Pieces = Pieces {
    batch_bytes: 16 << 20,
    part_bytes: 256 << 10,
};

/// What an error here is about.
const WHAT: &str = "read back of weights";

/// Compares runs of rows of a weight.
pub(super) fn compare_weight(
    context: &Context,
    weights: &GpuWeights,
    id: WeightId,
    runs: &[Range<usize>],
) -> Result<Held> {
    compare(context, weights, id, runs, PIECES)
}

fn compare(
    context: &Context,
    weights: &GpuWeights,
    id: WeightId,
    runs: &[Range<usize>],
    pieces: Pieces,
) -> Result<Held> {
    let parts = parts(weights.shards(id), runs, pieces.part_bytes);
    let mut comparison = Comparison::default();
    let mut rest = parts.as_slice();
    while !rest.is_empty() && comparison.goes_on() {
        let mut bytes = 0;
        let fits = |part: &&Part<'_>| {
            bytes += part.n_bytes();
            bytes <= pieces.batch_bytes
        };
        let n = rest.iter().take_while(fits).count().max(1);
        let batch;
        (batch, rest) = rest.split_at(n);
        let found = read(context, batch)?;
        let source = weights.source();
        comparison.add(&found, compare_batch(source, id, batch, &found));
    }
    weights.source().release(id);
    Ok(comparison.result())
}

/// What was compared so far.
#[derive(Default)]
struct Comparison {
    bytes: u64,
    has_bits: bool,
    difference: Option<HeldDifference>,
}

impl Comparison {
    fn add(&mut self, found: &[u8], difference: Option<HeldDifference>) {
        self.bytes += found.len() as u64;
        self.has_bits |= found.iter().any(|&byte| byte != 0);
        self.difference = self.difference.take().or(difference);
    }

    /// Behind a difference there is one more question: whether all is zero.
    fn goes_on(&self) -> bool {
        self.difference.is_none() || !self.has_bits
    }

    fn result(self) -> Held {
        match self.difference {
            None => Held::Same { bytes: self.bytes },
            Some(difference) => Held::Differs(HeldDifference {
                all_zero: !self.has_bits,
                ..difference
            }),
        }
    }
}

/// Some rows of a shard, as [`Shard::repack_rows`] wants them.
struct Part<'a> {
    place: &'a WeightShard,
    rows: Range<usize>,
}

/// Runs of rows of a weight in parts, in order.
fn parts<'a>(shards: &'a [WeightShard], runs: &[Range<usize>], part_bytes: usize) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for place in shards {
        let shard = &place.shard;
        let step = shard.row_step();
        let step_bytes = shard.part_words(step) * 4;
        let part_rows = (part_bytes / step_bytes).max(1) * step;
        let mut next = 0;
        for run in runs {
            // In the shard, and without the half of a pair of rows that share a word.
            let start = run.start.saturating_sub(shard.first_row) / step * step;
            let end = run.end.saturating_sub(shard.first_row);
            let end = end.next_multiple_of(step).min(shard.n_rows);
            parts.extend((start.max(next)..end).step_by(part_rows).map(|start| Part {
                place,
                rows: start..end.min(start + part_rows),
            }));
            next = next.max(end);
        }
    }
    parts
}

impl Part<'_> {
    /// Bytes on the GPU.
    fn n_bytes(&self) -> usize {
        let runs = self.place.shard.runs(self.rows.clone());
        runs.map(|words| words.len() * 4).sum()
    }

    /// Repacks its rows and compares them with the words of its planes, one after the other.
    fn compare(
        &self,
        weights: &Weights,
        id: WeightId,
        mut found: &[u8],
        scratch: &mut Vec<u32>,
    ) -> Option<HeldDifference> {
        let shard = &self.place.shard;
        let of_weight = shard.first_row + self.rows.start..shard.first_row + self.rows.end;
        let file_bytes = weights.stored_rows(id, of_weight);
        let weight = weights.get(id);
        let mut first: Option<HeldDifference> = None;
        let mut plane = 0;
        shard.repack_rows(self.rows.clone(), &file_bytes, scratch, |offset, words| {
            let expected: &[u8] = bytemuck::cast_slice(words);
            let own;
            (own, found) = found.split_at(expected.len());
            if let Some(difference) = first_difference(own, expected) {
                let difference = of_shard(weight, shard, plane, offset, difference);
                if first
                    .as_ref()
                    .is_none_or(|first| difference.row < first.row)
                {
                    first = Some(difference);
                }
            }
            plane += 1;
        });
        first
    }
}

fn of_shard(
    weight: &Weight,
    shard: &Shard,
    plane: usize,
    offset: usize,
    difference: WordDifference,
) -> HeldDifference {
    let word = offset + difference.word;
    HeldDifference {
        name: weight.name.clone(),
        row: shard.first_row + shard.row_of(plane, word, difference.bit),
        plane,
        word,
        found: difference.found,
        expected: difference.expected,
        all_zero: false,
    }
}

/// The words of some parts as they are on the GPU, part by part and plane by plane.
fn read(context: &Context, parts: &[Part<'_>]) -> Result<Vec<u8>> {
    let runs = parts.iter().flat_map(|part| {
        let runs = part.place.shard.runs(part.rows.clone());
        runs.map(|words| {
            let bytes = words.start as u64 * 4..words.end as u64 * 4;
            (&*part.place.buffer, part.place.offset, bytes)
        })
    });
    let n_bytes = parts.iter().map(|part| part.n_bytes() as u64).sum();
    read_runs(context, runs, n_bytes)
}

/// Runs of bytes of buffers, one after the other: each with the byte that it counts from.
fn read_runs<'a>(
    context: &Context,
    runs: impl Iterator<Item = (&'a wgpu::Buffer, u64, Range<u64>)>,
    n_bytes: u64,
) -> Result<Vec<u8>> {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = context.create_buffer(Purpose::Staging, WHAT, n_bytes, usage)?;
    context.scoped(WHAT, || {
        let mut encoder = context.encoder(WHAT);
        let mut end = 0;
        for (buffer, first, bytes) in runs {
            let n = bytes.end - bytes.start;
            encoder.copy_buffer_to_buffer(buffer, first + bytes.start, &staging, end, n);
            end += n;
        }
        context.queue.submit([encoder.finish()]);
    })?;
    Ok(context.map_staging(WHAT, &staging, n_bytes)?.to_vec())
}

/// The first difference of some parts from what the file gives.
fn compare_batch(
    weights: &Weights,
    id: WeightId,
    parts: &[Part<'_>],
    found: &[u8],
) -> Option<HeldDifference> {
    let starts = parts.iter().scan(0, |end, part| {
        let start = *end;
        *end += part.n_bytes();
        Some(start)
    });
    let placed: Vec<_> = parts.iter().zip(starts).collect();
    placed
        .into_par_iter()
        .map_init(Vec::new, |scratch, (part, start)| {
            part.compare(weights, id, &found[start..], scratch)
        })
        .find_first(Option::is_some)
        .flatten()
}

/// Compares tables of angles with new ones.
pub(super) fn compare_tables(context: &Context, tables: &[StoredTable]) -> Result<Held> {
    let mut bytes = 0;
    for (index, stored) in tables.iter().enumerate() {
        match compare_table(context, index, stored, PIECES)? {
            Held::Same { bytes: compared } => bytes += compared,
            other => return Ok(other),
        }
    }
    Ok(Held::Same { bytes })
}

fn compare_table(
    context: &Context,
    index: usize,
    stored: &StoredTable,
    pieces: Pieces,
) -> Result<Held> {
    let StoredTable {
        table,
        capacity,
        buffer,
    } = stored;
    let row_bytes = table.n_dims() * 4;
    let n_rows = (pieces.batch_bytes / row_bytes.max(1)).max(1);
    let mut comparison = Comparison::default();
    for first in (0..*capacity).step_by(n_rows) {
        if !comparison.goes_on() {
            break;
        }
        let rows = first..(first + n_rows).min(*capacity);
        let bytes = (rows.start * row_bytes) as u64..(rows.end * row_bytes) as u64;
        let n_bytes = bytes.end - bytes.start;
        let found = read_runs(context, std::iter::once((&**buffer, 0, bytes)), n_bytes)?;
        let expected: Vec<[f32; 2]> = rows.flat_map(|position| table.row(position)).collect();
        let difference = first_difference(&found, bytemuck::cast_slice(&expected));
        let difference = difference.map(|difference| HeldDifference {
            name: format!("rope_table[{index}]"),
            row: first + difference.word * 4 / row_bytes,
            plane: 0,
            word: first * row_bytes / 4 + difference.word,
            found: difference.found,
            expected: difference.expected,
            all_zero: false,
        });
        comparison.add(&found, difference);
    }
    Ok(comparison.result())
}

#[cfg(test)]
mod tests;
