//! Attention of few rows, where time goes to waiting for memory and not to arithmetic.
//!
//! Short contexts are one dispatch, each query head of a row a workgroup ([`Heads::whole`]). Longer ones are
//! split, query heads that share keys have one workgroup a split ([`Heads::shared`]), and
//! [`attention_merge`](super::attention_merge) makes one of the splits ([`Heads::merge`]).

use super::attention::Shape;
use super::{Access, Kernel, ROW_ALIGNMENT, Uses, row_stride};
use crate::kv_cache::MAX_HEAD_DIM;
use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// The `Params` of `attention_few.wgsl` and `attention_merge.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_head: u32,
    pub(crate) n_head_kv: u32,
    pub(crate) stride: u32,
    pub(crate) n_splits: u32,
    pub(crate) scale: f32,
    pub(crate) window: u32,
    pub(crate) has_int8: u32,
    /// 0 for none.
    pub(crate) soft_cap: f32,
    /// Where there are none, any buffer may be bound for them.
    pub(crate) has_sinks: u32,
    pub(crate) padding: [u32; 3],
}

impl Params {
    /// `has_int8` where [`writes_int8`] alone.
    pub(crate) fn new(shape: &Shape, n_splits: usize, has_int8: bool) -> Params {
        Params {
            n_head: shape.n_head as u32,
            n_head_kv: shape.n_head_kv as u32,
            stride: row_stride(shape.n_head * shape.head_dim) as u32,
            n_splits: n_splits as u32,
            scale: shape.scale,
            window: shape.window_or_max(),
            has_int8: has_int8.into(),
            soft_cap: shape.soft_cap.unwrap_or(0.0),
            has_sinks: shape.has_sinks.into(),
            padding: [0; 3],
        }
    }
}

/// The kernel; its twin is [`attention::twin`](super::attention::twin).
pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention_few",
    wgsl: include_str!("attention_few.wgsl"),
    bindings: &[
        ("q", Access::Read),
        ("keys", Access::Read),
        ("values", Access::Read),
        ("dst", Access::ReadWrite),
        ("int8", Access::ReadWrite),
        ("partials", Access::ReadWrite),
        ("sinks", Access::Read),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        kv: true,
        heads: true,
        soft_cap: true,
        quantize: true,
        ..Uses::NOTHING
    },
};

/// What a workgroup has of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Heads {
    pub(crate) head_dim: usize,
    /// Query heads of a key-value head.
    pub(crate) group_size: usize,
    /// As many of them as a workgroup has.
    pub(crate) n_heads: usize,
    /// Invocations.
    pub(crate) workgroup: usize,
    /// Loads of keys, and of values, that an invocation has under way.
    pub(crate) n_loads: usize,
}

/// Query heads that share the keys in one workgroup.
const MOST_HEADS: usize = 4;

impl Heads {
    /// One query head and all its keys.
    pub(crate) fn whole(shape: &Shape) -> Heads {
        Heads::new(shape, 1, 128, 16)
    }

    /// Query heads of one key-value head and a split of its keys.
    pub(crate) fn shared(shape: &Shape) -> Heads {
        let group_size = shape.n_head / shape.n_head_kv;
        let n_heads = group_size.div_ceil(group_size.div_ceil(MOST_HEADS));
        Heads::new(shape, n_heads, 64, 8)
    }

    /// One query head and all its splits.
    pub(crate) fn merge(shape: &Shape) -> Heads {
        Heads::new(shape, 1, 128, 8)
    }

    fn new(shape: &Shape, n_heads: usize, workgroup: usize, n_loads: usize) -> Heads {
        // A tile of narrow heads has many keys, for which there is no room in workgroup memory.
        let n_loads = if shape.head_dim < 32 {
            n_loads / 2
        } else {
            n_loads
        };
        Heads {
            head_dim: shape.head_dim,
            group_size: shape.n_head / shape.n_head_kv,
            n_heads,
            workgroup,
            n_loads,
        }
    }

    /// Keys that a workgroup has under way.
    fn tile(&self) -> usize {
        self.n_loads * (self.workgroup / (self.head_dim / 8))
    }

    /// The part of the text that depends on the heads.
    pub(crate) fn source(&self) -> String {
        let Heads {
            head_dim,
            group_size,
            n_heads,
            workgroup,
            n_loads,
        } = self;
        format!(
            "const HEAD_DIM = {head_dim}u;\n\
             const GROUP_SIZE = {group_size}u;\n\
             const HEADS = {n_heads}u;\n\
             const WORKGROUP = {workgroup}u;\n\
             const LOADS = {n_loads}u;\n"
        )
    }
}

/// Whether the kernels can compute this; [`attention`](super::attention) can compute everything.
pub(crate) fn fits(shape: &Shape) -> bool {
    let has_dims = shape.head_dim.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&shape.head_dim);
    has_dims && shape.is_plain() && shape.causal && !shape.alibi
}

/// Whether they can write int8 too: units lie within a head.
pub(crate) fn writes_int8(shape: &Shape) -> bool {
    fits(shape) && shape.head_dim.is_multiple_of(ROW_ALIGNMENT)
}

/// Floats of `partials`.
pub(crate) fn partials_len(params: &Params, heads: Heads, n_rows: usize) -> usize {
    n_rows * (params.n_head * params.n_splits) as usize * (heads.head_dim + 4)
}

pub(crate) fn grid(params: &Params, heads: Heads, n_rows: usize) -> [u32; 3] {
    let n_blocks = heads.group_size.div_ceil(heads.n_heads) as u32;
    [params.n_head_kv * n_blocks, params.n_splits, n_rows as u32]
}

/// Tiles up to which one dispatch is faster than two: on an NVIDIA H200 one tile takes 4.1 us, each
/// further one 1.4 us, and splits from 7.2 us on.
const MOST_WHOLE_TILES: usize = 3;
/// Workgroups that keep a large GPU busy.
const ENOUGH_WORKGROUPS: usize = 512;
/// Splits of heads of 128 whose merging loads them all at once.
const MOST_SPLITS: usize = 64;

/// From where on the keys are split, and into how many parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Splits {
    /// The most positions in a row's past, its own included, that [`Heads::whole`] attends to.
    pub(crate) most_whole: usize,
    /// Splits of the keys for rows behind more; 1 where there are none such.
    pub(crate) n: usize,
}

impl Splits {
    /// What is chosen without measuring.
    pub(crate) fn rule(shape: &Shape) -> Splits {
        Splits {
            most_whole: most_whole(shape),
            n: splits(shape),
        }
    }

    /// Whether heads that are split by the rule may be split so.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        (2..=splits(shape)).contains(&self.n) && (1..usize::MAX).contains(&self.most_whole)
    }
}

/// The most positions in a row's past, its own included, where [`Heads::whole`] is faster than splits;
/// `usize::MAX` where the window is short enough for any.
pub(crate) fn most_whole(shape: &Shape) -> usize {
    let most = MOST_WHOLE_TILES * Heads::whole(shape).tile();
    match shape.window {
        Some(window) if window <= most => usize::MAX,
        _ => most,
    }
}

/// Splits of the keys for rows behind [`most_whole`]; 1 where there are none such. It depends on the heads and
/// the window alone, so that parameters and bindings can be made before.
pub(crate) fn splits(shape: &Shape) -> usize {
    if most_whole(shape) == usize::MAX {
        return 1;
    }
    let heads = Heads::shared(shape);
    let n_blocks = shape.n_head_kv * heads.group_size.div_ceil(heads.n_heads);
    ENOUGH_WORKGROUPS.div_ceil(n_blocks).clamp(2, MOST_SPLITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_head: usize, n_head_kv: usize, head_dim: usize) -> Shape {
        Shape {
            n_head,
            n_head_kv,
            head_dim,
            value_dim: head_dim,
            values_end_keys: false,
            chunk: None,
            position: 0,
            n_rows: 0,
            causal: true,
            scale: 1.0,
            window: None,
            soft_cap: None,
            alibi: false,
            has_sinks: false,
        }
    }

    #[test]
    fn workgroups_share_keys_between_heads_as_evenly_as_may_be() {
        let shared = [1, 2, 3, 4, 5, 7, 8].map(|n| Heads::shared(&shape(n, 1, 64)).n_heads);
        assert_eq!(shared, [1, 2, 3, 4, 3, 4, 4]);
        for (shape, n_blocks) in [(shape(32, 8, 128), 8), (shape(14, 2, 64), 4)] {
            let params = Params::new(&shape, 5, true);
            let [x, y, z] = grid(&params, Heads::shared(&shape), 3);
            assert_eq!([x, y, z], [n_blocks, 5, 3]);
            let [x, ..] = grid(&params, Heads::whole(&shape), 3);
            assert_eq!(x as usize, shape.n_head);
        }
    }

    #[test]
    fn long_contexts_are_split_and_short_ones_are_not() {
        for (shape, most_whole, n_splits) in [
            (shape(32, 8, 128), 384, 64),
            (shape(9, 3, 64), 768, 64),
            (shape(128, 32, 64), 768, 16),
        ] {
            assert_eq!(super::most_whole(&shape), most_whole);
            assert_eq!(splits(&shape), n_splits);
        }
    }

    #[test]
    fn windows_are_split_where_they_are_longer_than_what_is_faster_whole() {
        let of_window = |window| {
            let shape = Shape {
                window: Some(window),
                ..shape(9, 3, 64)
            };
            (most_whole(&shape), splits(&shape))
        };
        assert_eq!(of_window(1), (usize::MAX, 1));
        assert_eq!(of_window(768), (usize::MAX, 1));
        assert_eq!(of_window(769), (768, 64));
        assert_eq!(of_window(usize::MAX), (768, 64));
    }

    #[test]
    fn heads_that_the_kernels_cannot_load_or_quantise_are_refused() {
        let dims = [4, 8, 12, 32, 48, 512, 520];
        let fitting = dims.map(|head_dim| fits(&shape(1, 1, head_dim)));
        assert_eq!(fitting, [false, true, false, true, true, true, false]);
        let quantising = dims.map(|head_dim| writes_int8(&shape(1, 1, head_dim)));
        assert_eq!(quantising, [false, false, false, true, false, true, false]);
    }
}
