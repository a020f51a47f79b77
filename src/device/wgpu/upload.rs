//! The way of the weights to the GPU: all cores repack parts of the file into a mapped staging buffer
//! while the GPU copies the one before it to its place.

use super::buffer::Buffer;
use super::context::Context;
use super::mapping::Mapping;
use super::weights::WeightShard;
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::kernels::repack::Shard;
use crate::model::{WeightId, Weights};
use rayon::prelude::*;
use std::ops::Range;

/// In what pieces weights are uploaded.
struct Pieces {
    /// Bytes of the file that one thread repacks at a time, about.
    part_bytes: usize,
    /// Bytes of a staging buffer, unless a part alone is larger.
    staging_bytes: usize,
}

/// What a core's cache holds, and enough parts for many cores.
const PIECES: Pieces = Pieces {
    part_bytes: 256 << 10,
    staging_bytes: 16 << 20,
};
/// One is filled, one is copied, and one is on its way from the GPU.
const N_STAGING: usize = 3;
/// Words at the end of each shard that are read back after the load.
const SAMPLE_WORDS: usize = 64;

/// Fills the shards of every weight, and reads a sample of each back.
pub(super) fn upload(
    context: &Context,
    weights: &Weights,
    shards: &[Vec<WeightShard>],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let samples = send(context, weights, shards, &PIECES, progress)?;
    check_samples(context, weights, &samples)
}

/// Fills the shards of every weight; the samples that they must have.
fn send<'a>(
    context: &Context,
    weights: &Weights,
    shards: &'a [Vec<WeightShard>],
    pieces: &Pieces,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Sample<'a>>> {
    let parts = parts(weights, shards, pieces.part_bytes);
    let largest = parts.iter().map(Part::room_bytes).max().unwrap_or(0);
    let staging_bytes = pieces.staging_bytes.max(largest);
    let mut ring = (0..N_STAGING)
        .map(|_| Staging::new(context, staging_bytes))
        .collect::<Result<Vec<_>>>()?;
    let mut samples = Vec::new();
    let (mut done_bytes, total_bytes) = (0, weights.stored_bytes());
    let mut rest = parts.as_slice();
    while !rest.is_empty() {
        let group;
        (group, rest) = rest.split_at(n_that_fit(rest, staging_bytes));
        samples.extend(ring[0].send(context, weights, group)?);
        ring.rotate_left(1);
        for part in group {
            done_bytes += part.file_bytes() as u64;
            if part.ends_weight {
                weights.release(part.id);
            }
        }
        progress(done_bytes, total_bytes);
    }
    Ok(samples)
}

/// How many of the first parts a staging buffer has room for.
fn n_that_fit(parts: &[Part<'_>], staging_bytes: usize) -> usize {
    let ends = parts.iter().scan(0, |end, part| {
        *end += part.room_bytes();
        Some(*end)
    });
    ends.take_while(|&end| end <= staging_bytes).count()
}

/// Some rows of a shard.
struct Part<'a> {
    id: WeightId,
    shard: &'a WeightShard,
    /// In the shard.
    rows: Range<usize>,
    ends_weight: bool,
}

/// All weights in parts, in order.
fn parts<'a>(
    weights: &Weights,
    shards: &'a [Vec<WeightShard>],
    part_bytes: usize,
) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for ((id, weight), shards) in weights.iter().zip(shards) {
        for shard in shards {
            let Shard { n_rows, n_cols, .. } = shard.shard;
            let part_rows = (part_bytes / weight.ty.row_bytes(n_cols))
                .max(1)
                .next_multiple_of(shard.shard.row_step());
            parts.extend((0..n_rows).step_by(part_rows).map(|start| Part {
                id,
                shard,
                rows: start..n_rows.min(start + part_rows),
                ends_weight: false,
            }));
        }
        if let Some(last) = parts.last_mut() {
            last.ends_weight = true;
        }
    }
    parts
}

/// The last words of a shard.
struct Sample<'a> {
    id: WeightId,
    buffer: &'a Buffer,
    offset: u64,
    words: Vec<u32>,
}

/// A run of bytes from a staging buffer to its place.
struct Copy {
    from: u64,
    to: u64,
    bytes: u64,
}

impl<'a> Part<'a> {
    fn file_bytes(&self) -> usize {
        let Shard { ty, n_cols, .. } = self.shard.shard;
        self.rows.len() * ty.row_bytes(n_cols)
    }

    /// Bytes that it takes in a staging buffer.
    fn room_bytes(&self) -> usize {
        self.shard.shard.part_words(self.rows.len()) * 4
    }

    /// Repacks it into its room, which begins at byte `start` of a staging buffer. The part that ends its
    /// shard gives the shard's sample.
    fn repack(
        &self,
        weights: &Weights,
        start: u64,
        mut room: wgpu::BufferViewMut,
        scratch: &mut Vec<u32>,
    ) -> (Vec<Copy>, Option<Sample<'a>>) {
        let shard = &self.shard.shard;
        let of_weight = shard.first_row + self.rows.start..shard.first_row + self.rows.end;
        let file_bytes = weights.stored_rows(self.id, of_weight);
        let mut copies = Vec::new();
        let mut sample = None;
        let mut end = 0;
        shard.repack_rows(
            self.rows.clone(),
            &file_bytes,
            scratch,
            |word_offset, words| {
                let bytes: &[u8] = bytemuck::cast_slice(words);
                room.slice(end..end + bytes.len()).copy_from_slice(bytes);
                copies.push(Copy {
                    from: start + end as u64,
                    to: self.shard.offset + word_offset as u64 * 4,
                    bytes: bytes.len() as u64,
                });
                end += bytes.len();
                if self.rows.end == shard.n_rows {
                    let first = words.len().saturating_sub(SAMPLE_WORDS);
                    sample = Some(Sample {
                        id: self.id,
                        buffer: &self.shard.buffer,
                        offset: self.shard.offset + (word_offset + first) as u64 * 4,
                        words: words[first..].to_vec(),
                    });
                }
            },
        );
        (copies, sample)
    }
}

/// A buffer that the CPU fills and the GPU empties in turn.
struct Staging {
    buffer: Buffer,
    /// Says when the CPU may fill it again.
    mapping: Mapping,
}

impl Staging {
    fn new(context: &Context, bytes: usize) -> Result<Staging> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer =
            context.create_buffer(Purpose::Staging, "weight staging", bytes as u64, usage)?;
        let mapping = map(context, &buffer, None)?;
        Ok(Staging { buffer, mapping })
    }

    /// Fills it with parts that it has room for, and sends them to their places; the samples of the
    /// shards that end here.
    fn send<'a>(
        &mut self,
        context: &Context,
        weights: &Weights,
        parts: &[Part<'a>],
    ) -> Result<Vec<Sample<'a>>> {
        self.mapping.wait(context)?;
        let mut rooms = Vec::with_capacity(parts.len());
        let mut end = 0;
        for part in parts {
            let start = end;
            end += part.room_bytes() as u64;
            let room = self.buffer.get_mapped_range_mut(start..end);
            let room = room.map_err(|error| context.error(format!("{WHAT}: {error}")))?;
            rooms.push((part, start, room));
        }
        let repacked: Vec<_> = rooms
            .into_par_iter()
            .map_init(Vec::new, |scratch, (part, start, room)| {
                part.repack(weights, start, room, scratch)
            })
            .collect();
        let submission = context.scoped(WHAT, || {
            self.buffer.unmap();
            let mut encoder = context.encoder(WHAT);
            for (part, (copies, _)) in parts.iter().zip(&repacked) {
                for &Copy { from, to, bytes } in copies {
                    encoder.copy_buffer_to_buffer(
                        &self.buffer,
                        from,
                        &part.shard.buffer,
                        to,
                        bytes,
                    );
                }
            }
            context.queue.submit([encoder.finish()])
        })?;
        self.mapping = map(context, &self.buffer, Some(submission))?;
        Ok(repacked
            .into_iter()
            .filter_map(|(_, sample)| sample)
            .collect())
    }
}

/// What an error here is about.
const WHAT: &str = "upload of weights";

/// Asks for a staging buffer that `submission` empties.
fn map(
    context: &Context,
    buffer: &Buffer,
    submission: Option<wgpu::SubmissionIndex>,
) -> Result<Mapping> {
    let mode = wgpu::MapMode::Write;
    Mapping::new(context, WHAT, mode, buffer, buffer.size(), submission)
}

/// Reads the samples back: some drivers lose an upload without a word
/// (<https://github.com/gfx-rs/wgpu/issues/9545>).
fn check_samples(context: &Context, weights: &Weights, samples: &[Sample<'_>]) -> Result<()> {
    let bytes: usize = samples.iter().map(|sample| sample.words.len() * 4).sum();
    let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let all = context.create_buffer(Purpose::Staging, "weight samples", bytes as u64, usage)?;
    context.scoped("read of weights", || {
        let mut encoder = context.encoder("read of weights");
        let mut end = 0;
        for sample in samples {
            let bytes = sample.words.len() as u64 * 4;
            encoder.copy_buffer_to_buffer(sample.buffer, sample.offset, &all, end, bytes);
            end += bytes;
        }
        context.queue.submit([encoder.finish()]);
    })?;
    let found = context.read_buffer(&all, 0, bytes as u64)?;
    let mut found = found.as_slice();
    for sample in samples {
        let own;
        (own, found) = found.split_at(sample.words.len() * 4);
        if own != bytemuck::cast_slice::<u32, u8>(&sample.words) {
            let name = &weights.get(sample.id).name;
            let message = format!("tensor `{name}` reads back other bytes than were sent");
            return Err(context.error(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::wgpu::testing::gpu;
    use crate::device::wgpu::weights::place;
    use crate::gguf::WeightType;
    use crate::model::{DecoderModel, WeightStorage};
    use crate::tiny;
    use std::sync::Arc;

    fn weights(ty: WeightType) -> Weights {
        let gguf = Arc::new(tiny::gguf(ty, None));
        let model = DecoderModel::from_gguf(gguf, WeightStorage::Native);
        model.unwrap().weights.clone()
    }

    /// A staging buffer takes several parts, and is filled several times; or no two parts.
    const SMALL: [Pieces; 2] = [
        Pieces {
            part_bytes: 1000,
            staging_bytes: 8 << 10,
        },
        Pieces {
            part_bytes: 4000,
            staging_bytes: 16,
        },
    ];

    #[test]
    fn shards_hold_what_repacking_at_once_gives() {
        let Some(context) = gpu() else { return };
        for ty in [WeightType::F32, WeightType::Q4_0, WeightType::Q6_K] {
            for pieces in &SMALL {
                let weights = weights(ty);
                let shards = place(context, &weights).unwrap();
                let mut reported = Vec::new();
                let mut progress = |done, total| reported.push((done, total));
                let samples = send(context, &weights, &shards, pieces, &mut progress).unwrap();
                check_samples(context, &weights, &samples).unwrap();
                assert_eq!(samples.len(), shards.iter().flatten().count());
                let total = weights.stored_bytes();
                assert!(
                    reported.len() > N_STAGING && reported.is_sorted(),
                    "{reported:?}"
                );
                assert_eq!(reported.last(), Some(&(total, total)));

                for ((id, weight), shards) in weights.iter().zip(&shards) {
                    for place in shards {
                        let shard = &place.shard;
                        let rows = shard.first_row..shard.first_row + shard.n_rows;
                        let file_bytes = weights.stored_rows(id, rows);
                        let mut expected = vec![0; shard.words()];
                        shard.repack_rows(
                            0..shard.n_rows,
                            &file_bytes,
                            &mut Vec::new(),
                            |at, words| {
                                expected[at..][..words.len()].copy_from_slice(words);
                            },
                        );
                        let bytes = shard.words() as u64 * 4;
                        let found = context.read_buffer(&place.buffer, place.offset, bytes);
                        let found = found.unwrap();
                        let found: Vec<u32> = bytemuck::pod_collect_to_vec(&found);
                        assert_eq!(found, expected, "{ty:?} {}", weight.name);
                    }
                }
            }
        }
    }

    #[test]
    fn samples_that_differ_are_refused_with_the_tensors_name() {
        let Some(context) = gpu() else { return };
        let weights = weights(WeightType::Q8_0);
        let shards = place(context, &weights).unwrap();
        let mut samples = send(context, &weights, &shards, &PIECES, &mut |_, _| ()).unwrap();
        let wrong = &mut samples[3];
        wrong.words[0] ^= 1;
        let name = weights.get(wrong.id).name.clone();
        let error = check_samples(context, &weights, &samples)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("tensor `{name}` reads back other bytes")),
            "{error}"
        );
    }
}
