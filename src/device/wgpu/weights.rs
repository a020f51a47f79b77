//! Weights on the GPU: repacked on the way from the mapped file, in shards no larger than a binding.

use super::context::Context;
use crate::error::Result;
use crate::kernels::repack::Shard;
use crate::model::{Weight, WeightId, Weights};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of the file that one thread repacks at a time.
const PART_BYTES: usize = 2 << 20;
/// Bytes in flight to the GPU before the upload waits for it.
const IN_FLIGHT_BYTES: usize = 32 << 20;
/// Words at the end of each shard that are read back after the load.
const SAMPLE_WORDS: usize = 64;

/// Some rows of a weight in a buffer of their own.
pub(super) struct WeightShard {
    pub(super) shard: Shard,
    pub(super) buffer: wgpu::Buffer,
}

/// Every weight of a model, by [`WeightId`]: matrices in shards, vectors as matrices of one row.
pub(super) struct GpuWeights {
    weights: Weights,
    shards: Vec<Vec<WeightShard>>,
}

/// A run of words for a place in a buffer.
struct Write {
    word_offset: usize,
    words: Vec<u32>,
}

impl GpuWeights {
    pub(super) fn upload(
        context: &Context,
        weights: Weights,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let total_bytes = weights.stored_bytes();
        let mut upload = Upload {
            context,
            in_flight_bytes: 0,
            done_bytes: 0,
        };
        let mut shards = Vec::new();
        for (id, weight) in weights.iter() {
            shards.push(upload.weight(&weights, id, weight, |done| progress(done, total_bytes))?);
            weights.release(id);
        }
        upload.flush()?;
        Ok(GpuWeights { weights, shards })
    }

    pub(super) fn get(&self, id: WeightId) -> &Weight {
        self.weights.get(id)
    }

    /// Weights of the whole model.
    pub(super) fn n_elements(&self) -> u64 {
        let elements = |(_, weight): (WeightId, &Weight)| (weight.n_rows * weight.n_cols) as u64;
        self.weights.iter().map(elements).sum()
    }

    pub(super) fn shards(&self, id: WeightId) -> &[WeightShard] {
        &self.shards[id.0]
    }

    /// The buffer of a vector, padded with zeros to whole units.
    pub(super) fn vector(&self, id: WeightId) -> &wgpu::Buffer {
        &self.shards[id.0][0].buffer
    }
}

/// An upload under way.
struct Upload<'a> {
    context: &'a Context,
    in_flight_bytes: usize,
    done_bytes: u64,
}

impl Upload<'_> {
    fn weight(
        &mut self,
        weights: &Weights,
        id: WeightId,
        weight: &Weight,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<WeightShard>> {
        let max_bytes = self.context.max_binding_bytes() as usize;
        let shards = Shard::split(weight.ty, weight.n_rows, weight.n_cols, max_bytes);
        if shards.is_empty() {
            let what = format!("a row of tensor `{}`", weight.name);
            let bytes = weight.ty.row_bytes(weight.n_cols) as u64;
            return Err(self.context.out_of_memory(what, bytes));
        }
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        shards
            .into_iter()
            .map(|shard| {
                let bytes = shard.words() as u64 * 4;
                let buffer = self.context.create_buffer(&weight.name, bytes, usage)?;
                let last = self.shard(weights, id, &shard, &buffer, &mut progress)?;
                self.check_sample(weight, &buffer, &last)?;
                Ok(WeightShard { shard, buffer })
            })
            .collect()
    }

    /// Fills a shard's buffer; returns the last run of words that went there.
    fn shard(
        &mut self,
        weights: &Weights,
        id: WeightId,
        shard: &Shard,
        buffer: &wgpu::Buffer,
        progress: &mut impl FnMut(u64),
    ) -> Result<Write> {
        let row_bytes = shard.ty.row_bytes(shard.n_cols);
        let part_rows = (PART_BYTES / row_bytes)
            .max(1)
            .next_multiple_of(Shard::ROW_STEP);
        let starts: Vec<usize> = (0..shard.n_rows).step_by(part_rows).collect();
        let mut last = None;
        for group in starts.chunks(IN_FLIGHT_BYTES / PART_BYTES) {
            let parts: Vec<Vec<Write>> = group
                .par_iter()
                .map(|&start| {
                    repack(
                        weights,
                        id,
                        shard,
                        start..shard.n_rows.min(start + part_rows),
                    )
                })
                .collect();
            for write in parts.into_iter().flatten() {
                let offset = write.word_offset as u64 * 4;
                let bytes: &[u8] = bytemuck::cast_slice(&write.words);
                self.context.scoped("upload of weights", || {
                    self.context.queue.write_buffer(buffer, offset, bytes);
                })?;
                self.in_flight_bytes += bytes.len();
                last = Some(write);
            }
            if self.in_flight_bytes >= IN_FLIGHT_BYTES {
                self.flush()?;
            }
            let rows = shard.n_rows.min(group[group.len() - 1] + part_rows) - group[0];
            self.done_bytes += (rows * row_bytes) as u64;
            progress(self.done_bytes);
        }
        Ok(last.unwrap_or(Write {
            word_offset: 0,
            words: Vec::new(),
        }))
    }

    fn flush(&mut self) -> Result<()> {
        self.in_flight_bytes = 0;
        self.context
            .scoped("upload of weights", || self.context.queue.submit([]))?;
        self.context.wait()
    }

    /// Reads the end of what was written back: some drivers lose an upload without a word
    /// (<https://github.com/gfx-rs/wgpu/issues/9545>).
    fn check_sample(&self, weight: &Weight, buffer: &wgpu::Buffer, last: &Write) -> Result<()> {
        let first = last.words.len().saturating_sub(SAMPLE_WORDS);
        let expected = &last.words[first..];
        let offset = (last.word_offset + first) as u64 * 4;
        let found = self
            .context
            .read_buffer(buffer, offset, expected.len() as u64 * 4)?;
        if found != bytemuck::cast_slice::<u32, u8>(expected) {
            let message = format!(
                "tensor `{}` reads back other bytes than were sent",
                weight.name
            );
            return Err(self.context.error(message));
        }
        Ok(())
    }
}

/// Rows of a shard as the kernels want them.
fn repack(weights: &Weights, id: WeightId, shard: &Shard, rows: Range<usize>) -> Vec<Write> {
    let of_weight = shard.first_row + rows.start..shard.first_row + rows.end;
    let bytes = weights.stored_rows(id, of_weight);
    let mut writes = Vec::new();
    shard.repack_rows(rows, &bytes, |word_offset, words| {
        if !words.is_empty() {
            writes.push(Write {
                word_offset,
                words: words.to_vec(),
            });
        }
    });
    writes
}
