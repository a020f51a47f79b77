//! The slots of many rows sorted by expert, and cut into tiles: a tile's rows have one expert, whose weights are then
//! read once for all of them.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `expert_tiles.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_expert: u32,
    pub(crate) n_chosen: u32,
    pub(crate) chosen_stride: u32,
    pub(crate) tile_rows: u32,
    pub(crate) order_start: u32,
    pub(crate) padding: [u32; 3],
}

/// What is sorted, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) n_expert: usize,
    pub(crate) n_chosen: usize,
    /// The most slots that there are.
    pub(crate) max_slots: usize,
    /// The most rows of a tile.
    pub(crate) tile_rows: usize,
}

impl Tiling {
    /// The most tiles that so many slots come to: every expert may have one that is not full.
    pub(crate) fn max_tiles(&self, n_slots: usize) -> usize {
        n_slots / self.tile_rows + self.n_expert.min(n_slots)
    }

    /// The word of the table where the order begins.
    pub(crate) fn order_start(&self) -> usize {
        4 + 4 * self.max_tiles(self.max_slots)
    }

    /// Words of the table.
    pub(crate) fn words(&self) -> usize {
        self.order_start() + self.max_slots
    }

    pub(crate) fn params(&self) -> Params {
        Params {
            n_expert: self.n_expert as u32,
            n_chosen: self.n_chosen as u32,
            chosen_stride: row_stride(self.n_chosen) as u32,
            tile_rows: self.tile_rows as u32,
            order_start: self.order_start() as u32,
            padding: [0; 3],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_tiles",
    wgsl: include_str!("expert_tiles.wgsl"),
    bindings: &[("ids", Access::Read), ("tiles", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(_: &Params, _: usize) -> [u32; 3] {
    super::grid(1, 1)
}

/// The tiles of ids `[n_slots]`: the expert of each, and its slots, in order.
#[cfg(test)]
pub(crate) fn twin(tiling: &Tiling, ids: &[f32]) -> Vec<(usize, Vec<usize>)> {
    let mut tiles = Vec::new();
    for expert in 0..tiling.n_expert {
        let is_its = |slot: &usize| super::experts::expert(ids[*slot], tiling.n_expert) == expert;
        let slots: Vec<usize> = (0..ids.len()).filter(is_its).collect();
        tiles.extend(
            slots
                .chunks(tiling.tile_rows)
                .map(|tile| (expert, tile.to_vec())),
        );
    }
    tiles
}
