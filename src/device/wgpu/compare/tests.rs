//! A word, a row or a buffer on the GPU that is damaged on purpose: its weight and row are to be named.

use super::super::GpuBackend;
use super::super::adapter::GpuFeatures;
use super::super::context::Context;
use super::super::testing::gpu;
use super::{Held, HeldDifference, Pieces, compare};
use crate::device::{Activations, Backend, GpuChoice};
use crate::diagnostics::{Depth, check_upload};
use crate::gguf::WeightType;
use crate::kernels::repack::{Shard, has_codebook};
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightId, WeightStorage, decoder_plan};
use crate::tiny;
use std::ops::Range;
use std::sync::Arc;

const MATRIX: &str = "blk.1.ffn_down.weight";

/// A tiny model on a GPU that may bind so many bytes; `None` without a GPU.
fn backend(ty: WeightType, max_binding_bytes: u64) -> Option<(DecoderModel, GpuBackend)> {
    gpu()?;
    let mut context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
    let bound = &mut context.limits.max_storage_buffer_binding_size;
    *bound = (*bound).min(max_binding_bytes);
    let gguf = Arc::new(tiny::gguf(ty, None));
    let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
    let weights = model.weights.clone();
    let backend = GpuBackend::new(weights, context, Activations::F32, &mut |_, _| ()).unwrap();
    Some((model, backend))
}

/// Room for some rows of every matrix, and for every vector.
fn few_rows(ty: WeightType) -> u64 {
    let n_cols = ty.block_len().max(96);
    let shard = Shard {
        ty,
        first_row: 0,
        n_rows: 11,
        n_cols,
    };
    // A row of any tensor, also a vector in f32, must fit.
    (shard.words() as u64 * 4).max(1024)
}

fn find(model: &DecoderModel, name: &str) -> WeightId {
    let named = model.weights.iter().find(|(_, weight)| weight.name == name);
    named.unwrap().0
}

impl GpuBackend {
    /// Changes the last bit of a row in a plane, and says which bit of its word that is.
    fn flip(&self, id: WeightId, row: usize, plane: usize) -> u32 {
        let shards = self.shared.weights.shards(id);
        let first = shards.partition_point(|place| place.shard.first_row <= row) - 1;
        let (shard, place) = (&shards[first].shard, &shards[first]);
        let row = row - shard.first_row;
        let pair = row / 2 * 2..(row / 2 * 2 + 2).min(shard.n_rows);
        let words = shard.runs(pair).nth(plane).unwrap();
        let mut bits = words.flat_map(|word| (0..32).map(move |bit| (word, bit)));
        let is_of_row = |&(word, bit): &(usize, usize)| shard.row_of(plane, word, bit) == row;
        let (word, bit) = bits.rfind(is_of_row).unwrap();
        let offset = place.offset + word as u64 * 4;
        let context = &self.shared.context;
        let bytes = context.read_buffer(&place.buffer, offset, 4).unwrap();
        let found = bytemuck::pod_read_unaligned::<u32>(&bytes) ^ 1 << bit;
        let queue = &context.queue;
        queue.write_buffer(&place.buffer, offset, &found.to_le_bytes());
        1 << bit
    }

    /// Zeros the whole buffers of a weight, as a driver may that is out of memory.
    fn zero(&self, id: WeightId) {
        let context = &self.shared.context;
        for place in self.shared.weights.shards(id) {
            let zeros = vec![0; place.buffer.size() as usize];
            context.queue.write_buffer(&place.buffer, 0, &zeros);
        }
    }
}

#[track_caller]
fn difference(held: Held) -> HeldDifference {
    match held {
        Held::Differs(difference) => difference,
        other => panic!("{other:?}"),
    }
}

/// Without a table of codewords, which no row has alone.
fn n_planes(ty: WeightType) -> usize {
    let shard = Shard {
        ty,
        first_row: 0,
        n_rows: 4,
        n_cols: 256,
    };
    shard.runs(2..4).count()
}

#[test]
fn a_damaged_bit_is_named_with_weight_row_and_plane_in_every_type_and_shard() {
    for ty in WeightType::ALL {
        for max_binding_bytes in [u64::MAX, few_rows(ty)] {
            let Some((model, backend)) = backend(ty, max_binding_bytes) else {
                return;
            };
            let id = find(&model, MATRIX);
            let n_shards = backend.shared.weights.shards(id).len();
            assert_eq!(n_shards > 2, max_binding_bytes != u64::MAX, "{ty:?}");
            let n_rows = model.weights.get(id).n_rows;
            for row in [0, 13, n_rows - 1] {
                for plane in 0..n_planes(ty) {
                    let bit = backend.flip(id, row, plane);
                    let report = check_upload(&model.weights, &backend, Depth::Full).unwrap();
                    let [found] = &report.differences[..] else {
                        panic!("{ty:?}, row {row}, plane {plane}: {report}");
                    };
                    let place = (found.name.as_str(), found.row, found.plane);
                    assert_eq!(place, (MATRIX, row, plane), "{ty:?}: {report}");
                    assert_eq!(found.found ^ found.expected, bit, "{ty:?}: {report}");
                    assert!(!found.all_zero, "{ty:?}: {report}");
                    backend.flip(id, row, plane);
                }
            }
            let report = check_upload(&model.weights, &backend, Depth::Full).unwrap();
            assert!(report.passed(), "{ty:?}: {report}");
        }
    }
}

#[test]
fn a_damaged_table_of_codewords_is_named_with_its_weight() {
    let codebooks = WeightType::ALL.into_iter().filter(|ty| has_codebook(*ty));
    for ty in codebooks {
        for max_binding_bytes in [u64::MAX, few_rows(ty)] {
            let Some((model, backend)) = backend(ty, max_binding_bytes) else {
                return;
            };
            let id = find(&model, MATRIX);
            let places = backend.shared.weights.shards(id);
            let place = places.last().unwrap();
            let end = place.shard.words() as u64 * 4;
            let context = &backend.shared.context;
            let last = place.offset + end - 4;
            let bytes = context.read_buffer(&place.buffer, last, 4).unwrap();
            let found = bytemuck::pod_read_unaligned::<u32>(&bytes) ^ 0x0400;
            context
                .queue
                .write_buffer(&place.buffer, last, &found.to_le_bytes());
            let report = check_upload(&model.weights, &backend, Depth::Full).unwrap();
            let [found] = &report.differences[..] else {
                panic!("{ty:?}: {report}");
            };
            let first_row = place.shard.first_row;
            assert_eq!(
                (found.name.as_str(), found.row, found.plane),
                (MATRIX, first_row, n_planes(ty)),
                "{ty:?}: {report}"
            );
        }
    }
}

#[test]
fn a_zeroed_buffer_is_named_and_called_so() {
    for ty in WeightType::ALL {
        for max_binding_bytes in [u64::MAX, few_rows(ty)] {
            let Some((model, backend)) = backend(ty, max_binding_bytes) else {
                return;
            };
            // A matrix that shares its buffer with others of its type and width, and a vector.
            for name in ["token_embd.weight", "output_norm.weight"] {
                backend.zero(find(&model, name));
                for depth in [Depth::Quick, Depth::Full] {
                    let report = check_upload(&model.weights, &backend, depth).unwrap();
                    let found = report.differences.iter().find(|found| found.name == name);
                    let found = found.unwrap_or_else(|| panic!("{ty:?}, {name}: {report}"));
                    assert_eq!((found.row, found.found), (0, 0), "{ty:?}: {report}");
                    assert!(found.all_zero, "{ty:?}: {report}");
                    let text = format!("`{}`: row ", report.differences[0].name);
                    assert!(report.to_string().starts_with(&text), "{report}");
                    assert!(report.to_string().contains("only zeros"), "{report}");
                }
            }
        }
    }
}

#[test]
fn rows_that_were_not_asked_for_are_not_compared() {
    let Some((model, backend)) = backend(WeightType::Q4_0, u64::MAX) else {
        return;
    };
    let id = find(&model, MATRIX);
    backend.flip(id, 40, 1);
    let compare = |runs: &[Range<usize>]| backend.compare_weight(id, runs).unwrap();
    let runs = |runs: [Range<usize>; 2]| compare(&runs);
    assert!(matches!(runs([0..40, 42..64]), Held::Same { .. }));
    assert_eq!(difference(runs([0..3, 39..42])).row, 40);
    // Row 40 shares words with row 41, and so they are compared together.
    assert_eq!(difference(runs([0..3, 41..42])).row, 40);
    let Held::Same { bytes } = runs([1..2, 2..4]) else {
        panic!("rows that are sound");
    };
    assert_eq!(bytes, 4 * WeightType::Q4_0.row_bytes(96) as u64);
}

#[test]
fn small_pieces_find_what_one_piece_finds() {
    for ty in [WeightType::Q5_1, WeightType::Q6_K, WeightType::F16] {
        let Some((model, backend)) = backend(ty, few_rows(ty)) else {
            return;
        };
        let id = find(&model, MATRIX);
        let rows = 0..model.weights.get(id).n_rows;
        let compared = |batch_bytes, part_bytes| {
            let pieces = Pieces {
                batch_bytes,
                part_bytes,
            };
            let super::super::Shared {
                context, weights, ..
            } = &*backend.shared;
            compare(context, weights, id, std::slice::from_ref(&rows), pieces).unwrap()
        };
        let same = compared(usize::MAX, usize::MAX);
        assert!(matches!(same, Held::Same { .. }));
        assert_eq!(compared(1000, 300), same, "{ty:?}");
        assert_eq!(compared(1, 1), same, "{ty:?}");
        backend.flip(id, 57, 0);
        backend.flip(id, 31, 0);
        let differs = compared(usize::MAX, usize::MAX);
        assert_eq!(difference(differs.clone()).row, 31);
        assert_eq!(compared(1000, 300), differs, "{ty:?}");
        assert_eq!(compared(1, 1), differs, "{ty:?}");
    }
}

#[test]
fn a_damaged_table_of_angles_is_named_with_the_position() {
    let Some((model, backend)) = backend(WeightType::Q8_0, u64::MAX) else {
        return;
    };
    let plan = Arc::new(decoder_plan(&model, 4, 1).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: 100,
        ty: KvType::F32,
    };
    let _executor = backend.executor(&plan, &kv).unwrap();
    let Held::Same { bytes } = backend.compare_rope_tables().unwrap() else {
        panic!("a sound table");
    };
    assert_eq!(bytes, 100 * plan.rope_tables[0].n_dims() as u64 * 4);
    let buffer = backend.shared.rope_tables()[0].buffer.clone();
    let row_bytes = buffer.size() / 100;
    let queue = &backend.shared.context.queue;
    queue.write_buffer(&buffer, 71 * row_bytes + 4, &[0; 4]);
    let report = check_upload(&model.weights, &backend, Depth::Quick).unwrap();
    let [found] = &report.differences[..] else {
        panic!("{report}");
    };
    assert_eq!((found.name.as_str(), found.row), ("rope_table[0]", 71));
    queue.write_buffer(&buffer, 0, &vec![0; buffer.size() as usize]);
    assert!(difference(backend.compare_rope_tables().unwrap()).all_zero);
}
