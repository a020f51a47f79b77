//! The key-value cache, apart from devices: what is stored for each layer, where, and in how many bytes.
//!
//! Each layer has one tensor of keys and one of values, `[capacity, n_head_kv, head_dim]`, position
//! outermost. Devices allocate them zeroed and write the rows of a batch at its positions; rewinding
//! a session only moves the position, since rows behind it are never read before they are written.

use crate::error::{Error, Result};
use half::f16;

/// The longest head that every device takes; heads are whole words of 4 elements.
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
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvLayer {
    /// Elements of a position's keys (and of its values).
    pub fn width(&self) -> usize {
        self.n_head_kv * self.head_dim
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
    /// Bytes of the keys of one layer (its values take as many).
    pub fn layer_bytes(&self, layer: usize) -> u64 {
        (self.capacity * self.layers[layer].width()) as u64 * self.ty.bytes() as u64
    }

    /// Bytes of the whole cache.
    pub fn total_bytes(&self) -> u64 {
        (0..self.layers.len())
            .map(|layer| 2 * self.layer_bytes(layer))
            .sum()
    }

    /// Bytes that one position takes over all layers.
    pub fn bytes_per_position(&self) -> u64 {
        let width: usize = self.layers.iter().map(KvLayer::width).sum();
        (2 * width * self.ty.bytes()) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ty: KvType) -> KvLayout {
        let layers = vec![
            KvLayer {
                n_head_kv: 3,
                head_dim: 64,
            },
            KvLayer {
                n_head_kv: 1,
                head_dim: 256,
            },
        ];
        KvLayout {
            layers,
            capacity: 10,
            ty,
        }
    }

    #[test]
    fn layout_counts_keys_and_values_of_every_layer() {
        assert_eq!(layout(KvType::F32).layer_bytes(0), 10 * 192 * 4);
        assert_eq!(layout(KvType::F16).total_bytes(), 2 * 10 * (192 + 256) * 2);
        assert_eq!(
            layout(KvType::F16).bytes_per_position() * 10,
            layout(KvType::F16).total_bytes()
        );
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
}
