//! Weights on the GPU: repacked on the way from the mapped file, in shards no larger than a binding.

use super::buffer::Buffer;
use super::context::Context;
use super::upload::upload;
use crate::device::memory::Purpose;
use crate::error::Result;
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

    /// Whether the other one is like this one and lies behind it in the same buffer.
    fn is_followed_by(&self, other: &WeightShard) -> bool {
        self.shard == other.shard && self.buffer == other.buffer && self.offset < other.offset
    }

    /// One place for this one and for one that follows it, and the word where that begins there.
    pub(super) fn binding_with(&self, follower: &WeightShard) -> (wgpu::BufferBinding<'_>, u32) {
        let start = follower.offset - self.offset;
        let binding = wgpu::BufferBinding {
            size: NonZeroU64::new(start + follower.bytes()),
            ..self.binding()
        };
        (binding, (start / 4) as u32)
    }

    fn bytes(&self) -> u64 {
        self.shard.words() as u64 * 4
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

    /// Whether one binding holds both weights, which have one type and shape, the second behind the first.
    pub(super) fn are_together(&self, first: WeightId, second: WeightId) -> bool {
        match [first, second].map(|weight| self.shards(weight)) {
            [[first], [second]] => first.is_followed_by(second),
            _ => false,
        }
    }

    /// The place of a vector, padded with zeros to whole units.
    pub(super) fn vector(&self, id: WeightId) -> wgpu::BufferBinding<'_> {
        self.shards[id.0][0].binding()
    }
}

/// Room for weights, not yet filled. Those of one type and shape that follow each other lie in one buffer, as
/// far as one binding reaches, so that a kernel may read two of them.
pub(super) fn place(context: &Context, weights: &Weights) -> Result<Vec<Vec<WeightShard>>> {
    let weights: Vec<&Weight> = weights.iter().map(|(_, weight)| weight).collect();
    let kind = |weight: &&Weight| (weight.ty, weight.n_rows, weight.n_cols);
    let mut shards = Vec::with_capacity(weights.len());
    for alike in weights.chunk_by(|a, b| kind(a) == kind(b)) {
        let mut rest = alike;
        while let [first, ..] = rest {
            let placed = place_alike(context, first, rest.len())?;
            rest = &rest[placed.len()..];
            shards.extend(placed);
        }
    }
    Ok(shards)
}

/// Room for the first weights, at least one, of so many that are like `weight`.
fn place_alike(context: &Context, weight: &Weight, n: usize) -> Result<Vec<Vec<WeightShard>>> {
    let max_bytes = context.max_binding_bytes();
    let shards = Shard::split(weight.ty, weight.n_rows, weight.n_cols, max_bytes as usize);
    if shards.is_empty() {
        let what = format!("a row of tensor `{}`", weight.name);
        let bytes = weight.ty.row_bytes(weight.n_cols) as u64;
        return Err(context.out_of_memory(what, bytes));
    }
    let bytes = |shard: &Shard| shard.words() as u64 * 4;
    let [shard] = shards[..] else {
        let create = |shard: Shard| {
            Ok(WeightShard {
                shard,
                buffer: context.create_buffer(
                    Purpose::Weights,
                    &weight.name,
                    bytes(&shard),
                    USAGE,
                )?,
                offset: 0,
            })
        };
        return Ok(vec![shards.into_iter().map(create).collect::<Result<_>>()?]);
    };
    let alignment = u64::from(context.limits.min_storage_buffer_offset_alignment);
    let step = bytes(&shard).next_multiple_of(alignment);
    let n = (n as u64).min((max_bytes - bytes(&shard)) / step + 1);
    let total = (n - 1) * step + bytes(&shard);
    let buffer = context.create_buffer(Purpose::Weights, &weight.name, total, USAGE)?;
    let place = |i: u64| WeightShard {
        shard,
        buffer: buffer.clone(),
        offset: i * step,
    };
    Ok((0..n).map(|i| vec![place(i)]).collect())
}
