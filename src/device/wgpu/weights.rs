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
/// their biases, as far as one binding reaches, so that a kernel may read several of them.
pub(super) fn place(context: &Context, weights: &Weights) -> Result<Vec<Vec<WeightShard>>> {
    let max_bytes = context.max_binding_bytes();
    let alignment = u64::from(context.limits.min_storage_buffer_offset_alignment);
    let weights: Vec<&Weight> = weights.iter().map(|(_, weight)| weight).collect();
    let shape = |weight: &Weight| {
        let is_bias = weight.name.contains(BIAS);
        (weight.ty, weight.n_rows, weight.n_cols, is_bias)
    };
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
        if !room.takes(&weight.name, width) || with_all > max_bytes {
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

/// In the names of biases, where those of their weights have `.weight`.
const BIAS: &str = ".bias";

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
    /// Whether a weight may lie here; `width` is the type and width of a matrix.
    fn takes(&self, name: &str, width: Option<(WeightType, usize)>) -> bool {
        let Some((last, ..)) = self.places.last() else {
            return true;
        };
        let is_like_others = width.is_some() && self.width == width;
        is_like_others || last.replace(".weight", BIAS) == name
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::GpuChoice;
    use crate::device::wgpu::adapter::GpuFeatures;
    use crate::device::wgpu::testing::gpu;
    use crate::gguf::Gguf;
    use crate::model::{DecoderModel, WeightStorage};
    use crate::support::shared;
    use crate::tiny;
    use std::sync::Arc;

    /// The weights of a model on a GPU that binds so many bytes.
    fn placed(gguf: Gguf, max_binding_bytes: u64) -> GpuWeights {
        let mut context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
        let bound = &mut context.limits.max_storage_buffer_binding_size;
        *bound = (*bound).min(max_binding_bytes);
        let model = DecoderModel::from_gguf(Arc::new(gguf), WeightStorage::Native).unwrap();
        let weights = model.weights.clone();
        let shards = place(&context, &weights).unwrap();
        GpuWeights { weights, shards }
    }

    fn are_together(weights: &GpuWeights, names: &[&str]) -> bool {
        let id = |name: &&str| {
            let name = format!("blk.1.{name}");
            let found = weights.iter().find(|(_, weight)| weight.name == name);
            found.unwrap_or_else(|| panic!("no weight `{name}`")).0
        };
        let ids: Vec<WeightId> = names.iter().map(id).collect();
        weights.are_together(&ids)
    }

    const INPUTS: [&str; 3] = ["attn_q.weight", "attn_k.weight", "attn_v.weight"];
    const BLOCK: [&str; 2] = ["ffn_gate.weight", "ffn_up.weight"];

    #[test]
    fn matrices_of_one_type_and_width_lie_together() {
        if gpu().is_none() {
            return;
        }
        let alike = placed(tiny::gguf(WeightType::Q4_0, None), u64::MAX);
        assert!(are_together(&alike, &INPUTS) && are_together(&alike, &BLOCK));
        assert!(!are_together(&alike, &["ffn_up.weight", "ffn_down.weight"]));
        for (part, others) in [("attn_v", [0, 1]), ("attn_q", [1, 2])] {
            let mixed = placed(
                tiny::mixed(WeightType::Q4_0, part, WeightType::Q8_0),
                u64::MAX,
            );
            assert!(!are_together(&mixed, &INPUTS));
            assert!(are_together(&mixed, &others.map(|i| INPUTS[i])), "{part}");
            assert!(are_together(&mixed, &BLOCK), "{part}");
        }
    }

    #[test]
    fn matrices_lie_with_their_biases() {
        if gpu().is_none() {
            return;
        }
        let Some(folder) = shared("arch") else { return };
        let weights = placed(Gguf::open(folder.join("qwen2.gguf")).unwrap(), u64::MAX);
        let biases = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];
        assert!(are_together(&weights, &[INPUTS, biases].concat()));
    }

    #[test]
    fn as_many_lie_together_as_one_binding_holds_and_no_bytes_overlap() {
        if gpu().is_none() {
            return;
        }
        let all = placed(tiny::gguf(WeightType::Q4_0, None), u64::MAX);
        let largest = |weights: &GpuWeights| {
            let shards = weights.shards.iter().flatten();
            shards.map(|place| place.buffer.size()).max().unwrap()
        };
        let (_, starts) = all.joint_binding(&[WeightId(0)]);
        assert_eq!(starts, [0]);
        // Both matrices of a block, and no more: 96 rows of 64 weights, 18 bytes for 32 of them.
        let block = 2 * (96 * 64 / 32 * 18) + 256;
        let few = placed(tiny::gguf(WeightType::Q4_0, None), block);
        assert!(largest(&few) <= block && largest(&all) > block);
        assert!(are_together(&few, &BLOCK));
        assert!(!are_together(&few, &["attn_q.weight", "ffn_up.weight"]));
        for weights in [all, few] {
            let places: Vec<_> = weights.shards.iter().flatten().collect();
            for (index, a) in places.iter().enumerate() {
                assert!(a.end() <= a.buffer.size());
                let behind = places[index + 1..].iter();
                let mut alike = behind.filter(|b| b.buffer == a.buffer);
                assert!(alike.all(|b| a.end() <= b.offset));
            }
        }
    }
}
