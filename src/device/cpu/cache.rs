//! Keys and values of a session in the type of its cache.

use super::simd::{RowCells, Rows};
use crate::kv_cache::{KvLayer, KvType};
use half::f16;
use std::ops::Range;

/// The keys, or the values, of one layer: `[capacity, width]`.
pub(super) enum Cells {
    F32(Vec<f32>),
    /// The bits of 16-bit floats.
    F16(Vec<u16>),
}

impl Cells {
    fn new(ty: KvType, n: usize) -> Cells {
        match ty {
            KvType::F32 => Cells::F32(vec![0.0; n]),
            KvType::F16 => Cells::F16(vec![0; n]),
        }
    }

    /// Writes `values` from element `at` on, rounded as [`KvType::round`] does.
    pub(super) fn store(&mut self, at: usize, values: &[f32]) {
        match self {
            Cells::F32(cells) => cells[at..at + values.len()].copy_from_slice(values),
            Cells::F16(cells) => {
                let most = f16::MAX.to_f32();
                for (cell, value) in cells[at..].iter_mut().zip(values) {
                    *cell = f16::from_f32(value.clamp(-most, most)).to_bits();
                }
            }
        }
    }

    /// The values of some elements.
    pub(super) fn values(&self, elements: Range<usize>) -> Vec<f32> {
        match self {
            Cells::F32(cells) => cells[elements].to_vec(),
            Cells::F16(cells) => cells[elements]
                .iter()
                .map(|&bits| f16::from_bits(bits).to_f32())
                .collect(),
        }
    }

    /// Rows that begin with `elements` and are `stride` elements apart.
    pub(super) fn rows(&self, elements: Range<usize>, stride: usize) -> Rows<'_> {
        match self {
            Cells::F32(cells) => Rows {
                cells: RowCells::F32(&cells[elements]),
                stride,
            },
            Cells::F16(cells) => Rows {
                cells: RowCells::F16(&cells[elements]),
                stride,
            },
        }
    }
}

/// The cache of one layer.
pub(super) struct LayerCache {
    pub(super) keys: Cells,
    pub(super) values: Cells,
    pub(super) shape: KvLayer,
}

impl LayerCache {
    /// A zeroed cache.
    pub(super) fn new(ty: KvType, shape: KvLayer, capacity: usize) -> LayerCache {
        LayerCache {
            keys: Cells::new(ty, capacity * shape.key_width()),
            values: Cells::new(ty, capacity * shape.value_width()),
            shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_give_back_what_the_type_rounds_to() {
        let values = [
            0.0,
            -0.0,
            1.0 + 1.0 / 4096.0,
            1e9,
            -65520.0,
            3e-8,
            -1e-9,
            65504.0,
        ];
        for ty in [KvType::F32, KvType::F16] {
            let mut cells = Cells::new(ty, 10);
            cells.store(2, &values);
            assert_eq!(cells.values(0..2), [0.0, 0.0]);
            assert_eq!(
                cells.values(2..10),
                values.map(|value| ty.round(value)),
                "{ty:?}"
            );
        }
    }
}
