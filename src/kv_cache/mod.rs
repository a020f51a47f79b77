//! The key-value cache, apart from devices: what is stored for each layer, where, and in how many bytes.
//!
//! Each layer has one tensor of keys, `[capacity, n_head_kv, head_dim]`, and one of values,
//! `[capacity, n_head_kv, value_dim]`, position outermost. Devices allocate them zeroed and write the rows of a batch at its positions; rewinding
//! a session only moves the position, since rows behind it are never read before they are written.

use crate::error::{Error, Result};
use half::f16;

/// The longest key, and the longest value, that every device takes; both are whole words of 4 elements.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// The element type of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats: the exact one.
    F32,
    /// 16-bit floats: half the memory, the default.
    #[default]
    F16,
}

impl KvType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 => 2,
        }
    }

    /// A value as the cache gives it back: the nearest, and the largest for what would overflow.
    pub fn round(self, value: f32) -> f32 {
        match self {
            KvType::F32 => value,
            KvType::F16 => {
                let most = f16::MAX.to_f32();
                f16::from_f32(value.clamp(-most, most)).to_f32()
            }
        }
    }
}

/// What one layer stores for a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Key-value heads.
    pub n_head_kv: usize,
    /// Elements of a key, but for those that its value is.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Whether a value is the rest of its key (latent attention, arXiv:2405.04434, section 2.1): it is held once.
    pub values_end_keys: bool,
}

impl KvLayer {
    /// Keys and values of one length, apart from each other.
    pub fn separate(n_head_kv: usize, head_dim: usize) -> KvLayer {
        KvLayer {
            n_head_kv,
            head_dim,
            value_dim: head_dim,
            values_end_keys: false,
        }
    }

    /// Elements of a position's keys.
    pub fn key_width(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Elements of a position's values.
    pub fn value_width(&self) -> usize {
        self.n_head_kv * self.value_dim
    }

    /// Elements of a position.
    pub fn width(&self) -> usize {
        self.key_width() + self.value_width()
    }

    /// Elements of a query head, as many as it meets of a key.
    pub fn query_dim(&self) -> usize {
        match self.values_end_keys {
            true => self.head_dim + self.value_dim,
            false => self.head_dim,
        }
    }

    /// Row and column of an element of the keys of `n_rows` rows and, behind them, their values.
    pub(crate) fn place(&self, element: usize, n_rows: usize) -> (usize, usize) {
        let (of_keys, key_width) = (n_rows * self.key_width(), self.key_width().max(1));
        match element.checked_sub(of_keys) {
            None => (element / key_width, element % key_width),
            Some(rest) => {
                let width = self.value_width().max(1);
                (n_rows + rest / width, rest % width)
            }
        }
    }

    /// The keys and the values of some rows that lie one behind the other.
    pub(crate) fn split<'a>(&self, rows: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        rows.split_at(rows.len() / self.width().max(1) * self.key_width())
    }
}

/// The shape of a whole cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// One entry a layer.
    pub layers: Vec<KvLayer>,
    /// Positions that fit.
    pub capacity: usize,
    /// Element type.
    pub ty: KvType,
}

impl KvLayout {
    /// Bytes of the keys and of the values of one layer.
    pub fn layer_bytes(&self, layer: usize) -> [u64; 2] {
        let layer = &self.layers[layer];
        [layer.key_width(), layer.value_width()]
            .map(|width| (self.capacity * width) as u64 * self.ty.bytes() as u64)
    }

    /// Bytes of the whole cache.
    pub fn total_bytes(&self) -> u64 {
        (0..self.layers.len())
            .flat_map(|layer| self.layer_bytes(layer))
            .sum()
    }

    /// Bytes that one position takes over all layers.
    pub fn bytes_per_position(&self) -> u64 {
        let width: usize = self.layers.iter().map(KvLayer::width).sum();
        (width * self.ty.bytes()) as u64
    }

    /// Whether `requested` more tokens fit behind `length`.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where they do not.
    pub fn check_room(&self, length: usize, requested: usize) -> Result<()> {
        match length.checked_add(requested) {
            Some(total) if total <= self.capacity => Ok(()),
            _ => Err(Error::ContextFull {
                length,
                requested,
                capacity: self.capacity,
            }),
        }
    }
}

/// The positions that query `position` sees: `first..=position`.
pub fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The first position of the chunk of `position`: queries of chunked layers see none before it.
pub fn chunk_start(position: usize, chunk: Option<usize>) -> usize {
    chunk.map_or(0, |chunk| position - position % chunk.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ty: KvType) -> KvLayout {
        let layers = vec![KvLayer::separate(3, 64), KvLayer::separate(1, 256)];
        KvLayout {
            layers,
            capacity: 10,
            ty,
        }
    }

    #[test]
    fn layout_counts_keys_and_values_of_every_layer() {
        assert_eq!(layout(KvType::F32).layer_bytes(0), [10 * 192 * 4; 2]);
        assert_eq!(layout(KvType::F16).total_bytes(), 2 * 10 * (192 + 256) * 2);
        assert_eq!(
            layout(KvType::F16).bytes_per_position() * 10,
            layout(KvType::F16).total_bytes()
        );
    }

    #[test]
    fn values_that_end_keys_are_held_once() {
        let layer = KvLayer {
            n_head_kv: 1,
            head_dim: 8,
            value_dim: 20,
            values_end_keys: true,
        };
        let layout = KvLayout {
            layers: vec![layer],
            ..layout(KvType::F32)
        };
        assert_eq!(layout.layer_bytes(0), [10 * 8 * 4, 10 * 20 * 4]);
        assert_eq!(layout.bytes_per_position(), 28 * 4);
        assert_eq!(layer.query_dim(), 28);
        let rows: Vec<f32> = (0..2 * 28).map(|index| index as f32).collect();
        let (keys, values) = layer.split(&rows);
        assert_eq!((keys.len(), values[0]), (2 * 8, 16.0));
        let places = [0, 15, 16, 55].map(|element| layer.place(element, 2));
        assert_eq!(places, [(0, 0), (1, 7), (2, 0), (3, 19)]);
    }

    #[test]
    fn room_ends_at_the_capacity_and_names_length_and_capacity() {
        let layout = layout(KvType::F32);
        assert!(layout.check_room(7, 3).is_ok());
        let error = layout.check_room(7, 4).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ContextFull {
                    length: 7,
                    requested: 4,
                    capacity: 10
                }
            ),
            "{error}"
        );
        assert!(layout.check_room(7, usize::MAX).is_err());
    }

    #[test]
    fn f16_rounds_to_nearest_and_saturates() {
        assert_eq!(KvType::F16.round(1.0 + 1.0 / 4096.0), 1.0);
        assert_eq!(KvType::F16.round(-1e9), -65504.0);
        assert!(KvType::F16.round(f32::NAN).is_nan());
        assert_eq!(KvType::F32.round(1e9), 1e9);
    }

    #[test]
    fn window_counts_the_current_token() {
        assert_eq!(first_visible(5, None), 0);
        assert_eq!(first_visible(5, Some(1)), 5);
        assert_eq!(first_visible(5, Some(4)), 2);
        assert_eq!(first_visible(2, Some(4)), 0);
    }

    #[test]
    fn chunk_begins_at_a_multiple_of_its_length() {
        assert_eq!(chunk_start(5, None), 0);
        assert_eq!(
            [7, 8, 15, 16].map(|p| chunk_start(p, Some(8))),
            [0, 8, 8, 16]
        );
    }
}
