//! Weights on the GPU: repacked on the way from the mapped file, in shards no larger than a binding.

use super::buffer::Buffer;
use super::context::Context;
use super::upload::upload;
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kernels::repack::Shard;
use crate::model::{Weight, WeightId, Weights};
use std::num::NonZeroU64;

/// Of a buffer of weights.
const USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_DST)
    .union(wgpu::BufferUsages::COPY_SRC);

/// Some rows of a weight in a buffer, which weights like it may share.
pub(super) struct WeightShard {
    pub(super) shard: Shard,
    pub(super) buffer: Buffer,
    /// Bytes of the buffer in front of it.
    pub(super) offset: u64,
}

impl WeightShard {
    /// Its place.
    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.offset,
            size: NonZeroU64::new(self.bytes()),
        }
    }

    /// The byte of the buffer behind it.
    fn end(&self) -> u64 {
        self.offset + self.bytes()
    }

    fn bytes(&self) -> u64 {
        shard_bytes(&self.shard)
    }
}

/// Every weight of a model, by [`WeightId`]: matrices in shards, vectors as matrices of one row.
pub(super) struct GpuWeights {
    weights: Weights,
    shards: Vec<Vec<WeightShard>>,
}

impl GpuWeights {
    pub(super) fn upload(
        context: &Context,
        weights: Weights,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let shards = place(context, &weights)?;
        upload(context, &weights, &shards, progress)?;
        Ok(GpuWeights { weights, shards })
    }

    pub(super) fn get(&self, id: WeightId) -> &Weight {
        self.weights.get(id)
    }

    /// The weights as the file gives them.
    pub(super) fn source(&self) -> &Weights {
        &self.weights
    }

    /// Weights of the whole model.
    pub(super) fn n_elements(&self) -> u64 {
        let elements = |(_, weight): (WeightId, &Weight)| (weight.n_rows * weight.n_cols) as u64;
        self.weights.iter().map(elements).sum()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.weights.iter()
    }

    pub(super) fn shards(&self, id: WeightId) -> &[WeightShard] {
        &self.shards[id.0]
    }

    /// Whether one binding holds all of these weights.
    pub(super) fn are_together(&self, ids: &[WeightId]) -> bool {
        let mut places = ids.iter().map(|&id| self.shards(id));
        let Some([first]) = places.next() else {
            return false;
        };
        places.all(|shards| matches!(shards, [shard] if shard.buffer == first.buffer))
    }

    /// One place for all of these weights, which are together, and the word where each begins there.
    pub(super) fn joint_binding(&self, ids: &[WeightId]) -> (wgpu::BufferBinding<'_>, Vec<u32>) {
        let places = || ids.iter().map(|&id| &self.shards(id)[0]);
        let start = places().map(|place| place.offset).min().unwrap_or(0);
        let end = places().map(WeightShard::end).max().unwrap_or(0);
        let binding = wgpu::BufferBinding {
            buffer: &self.shards(ids[0])[0].buffer,
            offset: start,
            size: NonZeroU64::new(end - start),
        };
        let words = places().map(|place| ((place.offset - start) / 4) as u32);
        (binding, words.collect())
    }

    /// The place of a vector, padded with zeros to whole units.
    pub(super) fn vector(&self, id: WeightId) -> wgpu::BufferBinding<'_> {
        self.shards[id.0][0].binding()
    }
}

/// Room for weights, not yet filled. Matrices of one type and width that follow each other lie in one buffer with
/// the vectors between them, as far as one binding reaches, so that a kernel may read several of them.
pub(super) fn place(context: &Context, weights: &Weights) -> Result<Vec<Vec<WeightShard>>> {
    let max_bytes = context.max_binding_bytes();
    let alignment = u64::from(context.limits.min_storage_buffer_offset_alignment);
    let weights: Vec<&Weight> = weights.iter().map(|(_, weight)| weight).collect();
    let shape = |weight: &Weight| (weight.ty, weight.n_rows, weight.n_cols);
    let mut room = Room::default();
    let mut placed = Vec::with_capacity(weights.len());
    for alike in weights.chunk_by(|a, b| shape(a) == shape(b)) {
        let weight = alike[0];
        let shards = Shard::split(weight.ty, weight.n_rows, weight.n_cols, max_bytes as usize);
        let [shard] = shards[..] else {
            room.fill(context, &mut placed)?;
            for weight in alike {
                placed.push(place_alone(context, weight, &shards)?);
            }
            continue;
        };
        let width = (weight.n_rows > 1).then_some((weight.ty, weight.n_cols));
        let with_all = alike.iter().fold(room.bytes, |bytes, _| {
            bytes.next_multiple_of(alignment) + shard_bytes(&shard)
        });
        // Those of one shape are the likeliest to be read together.
        if !room.takes(width) || with_all > max_bytes {
            room.fill(context, &mut placed)?;
        }
        for weight in alike {
            let mut offset = room.bytes.next_multiple_of(alignment);
            if offset + shard_bytes(&shard) > max_bytes {
                room.fill(context, &mut placed)?;
                offset = 0;
            }
            room.places.push((&weight.name, shard, offset));
            room.bytes = offset + shard_bytes(&shard);
            room.width = room.width.or(width);
        }
    }
    room.fill(context, &mut placed)?;
    Ok(placed)
}

fn shard_bytes(shard: &Shard) -> u64 {
    shard.words() as u64 * 4
}

/// What is to lie in one buffer.
#[derive(Default)]
struct Room<'a> {
    /// Names, shards and offsets in bytes.
    places: Vec<(&'a str, Shard, u64)>,
    bytes: u64,
    /// The type and width of its matrices.
    width: Option<(WeightType, usize)>,
}

impl Room<'_> {
    /// Whether a matrix of a type and width may lie here, or a vector.
    fn takes(&self, width: Option<(WeightType, usize)>) -> bool {
        self.width.is_none() || width.is_none() || self.width == width
    }

    /// Makes the buffer and begins the next one.
    fn fill(&mut self, context: &Context, placed: &mut Vec<Vec<WeightShard>>) -> Result<()> {
        let Room { places, bytes, .. } = std::mem::take(self);
        let Some((name, ..)) = places.first() else {
            return Ok(());
        };
        let buffer = context.create_buffer(Purpose::Weights, name, bytes, USAGE)?;
        placed.extend(places.iter().map(|&(_, shard, offset)| {
            vec![WeightShard {
                shard,
                buffer: buffer.clone(),
                offset,
            }]
        }));
        Ok(())
    }
}

/// Room for a weight in several shards, each in a buffer of its own.
fn place_alone(context: &Context, weight: &Weight, shards: &[Shard]) -> Result<Vec<WeightShard>> {
    if shards.is_empty() {
        let what = format!("a row of tensor `{}`", weight.name);
        let bytes = weight.ty.row_bytes(weight.n_cols) as u64;
        return Err(context.out_of_memory(what, bytes));
    }
    let create = |&shard: &Shard| {
        let bytes = shard_bytes(&shard);
        Ok(WeightShard {
            shard,
            buffer: context.create_buffer(Purpose::Weights, &weight.name, bytes, USAGE)?,
            offset: 0,
        })
    };
    shards.iter().map(create).collect()
}
