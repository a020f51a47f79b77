//! Which kernel a step gets: by the rows of the batch, and by what the adapter can do.

use super::context::Context;
use super::tune::{ManyRows, Tuning};
use crate::device::{Activations, DeviceInfo, DeviceKind, Rounding};
use crate::gguf::WeightType;
use crate::kernels::attention::Shape;
use crate::kernels::attention_few::Splits;
use crate::kernels::matmul_coop::{CooperativeMatrix, Tile};
use crate::kernels::teams::{FewRows, Teams};
use crate::kernels::{Constants, Variant, attention_coop, expert_matmul};
use crate::kv_cache::KvType;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Up to this many rows each row reads the weights for itself; more share them in tiles.
pub(super) const FEW_ROWS: usize = 4;

/// The numbers of rows that a dispatch is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rows(RangeInclusive<usize>);

impl Rows {
    pub(super) const ANY: Rows = Rows(1..=usize::MAX);
    pub(super) const FEW: Rows = Rows(1..=FEW_ROWS);
    pub(super) const MANY: Rows = Rows(FEW_ROWS + 1..=usize::MAX);

    /// Those of many rows among them.
    pub(super) fn many(&self) -> Option<Rows> {
        let many = (*self.0.start()).max(*Rows::MANY.0.start())..=*self.0.end();
        (!many.is_empty()).then_some(Rows(many))
    }

    /// Whether it is for all that the other is for.
    pub(super) fn contains(&self, other: &Rows) -> bool {
        self.0.contains(other.0.start()) && self.0.contains(other.0.end())
    }

    /// Those of a range among them.
    fn within(&self, range: &RangeInclusive<usize>) -> Option<Rows> {
        let rows = *self.0.start().max(range.start())..=*self.0.end().min(range.end());
        (!rows.is_empty()).then_some(Rows(rows))
    }

    /// The fewest.
    pub(super) fn start(&self) -> usize {
        *self.0.start()
    }

    pub(super) fn covers(&self, n_rows: usize) -> bool {
        self.0.contains(&n_rows)
    }
}

/// What products round their activations to on an adapter.
pub(super) fn rounding(activations: Activations, context: &Context) -> Rounding {
    let rounding = rounding_of(activations, &context.info, usable_matrix(context).is_some());
    Rounding {
        int8_rows: match context.allowed.int8_dot {
            true => rounding.int8_rows,
            false => 0,
        },
        ..rounding
    }
}

fn rounding_of(activations: Activations, info: &DeviceInfo, has_matrices: bool) -> Rounding {
    let activations = match activations {
        // Software gains nothing from small types, and Metal has no packed int8 dot product.
        Activations::Auto if info.kind == DeviceKind::SoftwareGpu => Activations::F32,
        Activations::Auto if info.backend == "metal" => Activations::F16,
        Activations::Auto => Activations::Int8,
        chosen => chosen,
    };
    Rounding {
        int8_rows: if activations == Activations::Int8 {
            FEW_ROWS
        } else {
            0
        },
        f16_above: (has_matrices && activations != Activations::F32).then_some(FEW_ROWS),
    }
}

/// The cooperative matrices of an adapter that has room for their tiles.
fn usable_matrix(context: &Context) -> Option<CooperativeMatrix> {
    let room = context.limits.max_compute_workgroup_storage_size as usize;
    let fits = |&matrix: &CooperativeMatrix| {
        // What the tiles need least is the same for rows of any length, or less.
        let mut tiles = Tile::all(matrix, 2).into_iter();
        tiles.any(|tile| tile.workgroup_bytes() <= room)
    };
    context.cooperative_matrix.filter(fits)
}

/// What every kernel of an executor is compiled for, but for the type of its weights.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    kv: KvType,
    subgroups: bool,
    /// The cooperative matrices that products of many rows use; some of their tiles fit.
    pub(super) matrix: Option<CooperativeMatrix>,
    /// Bytes of workgroup memory that there are.
    workgroup_bytes: usize,
    /// Whether the parameters of kernels of few rows become part of their text.
    inlines_params: bool,
    /// Whether kernels compute several steps, and write results in the form that the next step takes.
    pub(super) fuses: bool,
    /// What was found by measuring; the rest is chosen by rule.
    tuning: Arc<Tuning>,
}

impl Choice {
    pub(super) fn new(context: &Context, rounding: Rounding, kv: KvType) -> Choice {
        Choice {
            kv,
            subgroups: context.subgroups(),
            matrix: usable_matrix(context).filter(|_| rounding.f16_above.is_some()),
            workgroup_bytes: context.limits.max_compute_workgroup_storage_size as usize,
            inlines_params: context.allowed.constants
                && context.info.kind != DeviceKind::SoftwareGpu,
            fuses: context.allowed.fusion,
            tuning: Arc::default(),
        }
    }

    /// The same with what was found by measuring.
    pub(super) fn tuned(self, tuning: Arc<Tuning>) -> Choice {
        Choice { tuning, ..self }
    }

    /// The teams of a product of few rows.
    pub(super) fn teams(&self, product: &FewRows) -> Teams {
        self.tuning.teams(product).unwrap_or_else(|| product.rule())
    }

    /// Where attention of few rows splits its keys.
    pub(super) fn splits(&self, shape: &Shape) -> Splits {
        let rule = || Splits::rule(shape);
        self.tuning.splits(shape, self.kv).unwrap_or_else(rule)
    }

    /// The variant of a kernel that reads no matrix; the weight type is not looked at.
    pub(super) fn plain(&self) -> Variant {
        Variant {
            kv: self.kv,
            subgroups: self.subgroups,
            ..Variant::PLAIN
        }
    }

    /// What a kernel of few rows has in its text for its parameters: such a kernel waits for memory and for little
    /// else. A software adapter would only have more to compile.
    pub(super) fn constants(&self, params: &[u8]) -> Option<Constants> {
        self.inlines_params
            .then(|| Constants::new(params))
            .flatten()
    }

    /// The tile for attention of many rows in heads of a width, where cooperative matrices do it.
    pub(super) fn attention_tile(&self, head_dim: usize) -> Option<attention_coop::Tile> {
        attention_coop::Tile::new(self.matrix?, self.kv, head_dim, self.workgroup_bytes)
    }

    /// Whether a product of many rows with these weights is one for cooperative matrices.
    pub(super) fn is_cooperative(&self, weight: WeightType) -> bool {
        self.matrix.is_some() && Rounding::fits_f16(weight)
    }

    /// The tiles for a product of many rows with `n_out` rows of weights of `units_per_row` units, each
    /// with the rows that it is for; none where the product is not one for cooperative matrices.
    pub(super) fn tiles(
        &self,
        weight: WeightType,
        n_out: usize,
        units_per_row: usize,
    ) -> Vec<(Rows, Tile)> {
        let Some(matrix) = self.matrix.filter(|_| self.is_cooperative(weight)) else {
            return Vec::new();
        };
        let tiles = self.tiles_that_fit(matrix, units_per_row);
        let by_rule = Choice::tiles_by_rule(&tiles, n_out);
        let of_range = |(range, n_rows): &(RangeInclusive<usize>, usize)| {
            let product = ManyRows {
                weight,
                n_out,
                units_per_row,
                n_rows: *n_rows,
            };
            match self.tuning.tile(&product, &tiles) {
                Some(tile) => vec![(Rows(range.clone()), tile)],
                None => {
                    let within = |(rows, tile): &(Rows, Tile)| Some((rows.within(range)?, *tile));
                    by_rule.iter().filter_map(within).collect()
                }
            }
        };
        let mut found: Vec<(Rows, Tile)> = Vec::new();
        for (rows, tile) in ManyRows::RANGES.iter().flat_map(of_range) {
            match found.last_mut() {
                Some((larger, same)) if *same == tile => {
                    *larger = Rows(rows.start()..=*larger.0.end());
                }
                _ => found.push((rows, tile)),
            }
        }
        found
    }

    /// The tiles that are chosen without measuring.
    fn tiles_by_rule(tiles: &[Tile], n_out: usize) -> Vec<(Rows, Tile)> {
        let mut found = Vec::new();
        let mut end = usize::MAX;
        for (index, tile) in tiles.iter().enumerate() {
            // Large tiles read less; small ones are more workgroups, and waste less on a few rows.
            let first = tiles.get(index + 1).map_or(FEW_ROWS + 1, |smaller| {
                let tiles_down = tile
                    .enough_workgroups
                    .div_ceil(n_out.div_ceil(tile.outputs()));
                let first = (tiles_down - 1) * tile.rows() + 1;
                first.max(smaller.rows() + 1).max(FEW_ROWS + 1)
            });
            if first <= end {
                found.push((Rows(first..=end), *tile));
                end = first - 1;
            }
        }
        found
    }

    /// The same for products with experts, of which there are `n_expert` of `n_out` rows each and `n_chosen` for each
    /// row: a tile is of one expert, and a large one is for so many rows that experts fill most of it.
    pub(super) fn expert_tiles(
        &self,
        weight: WeightType,
        n_out: usize,
        units_per_row: usize,
        [n_expert, n_chosen]: [usize; 2],
    ) -> Vec<(Rows, Tile)> {
        let Some(matrix) = self.matrix.filter(|_| self.is_cooperative(weight)) else {
            return Vec::new();
        };
        let tiles = self.tiles_that_fit(matrix, units_per_row);
        let mut found = Vec::new();
        let mut end = usize::MAX;
        for (index, tile) in tiles.iter().enumerate() {
            let first = tiles.get(index + 1).map_or(FEW_ROWS + 1, |_| {
                let most_of_it = (tile.rows() * 3 / 4 * n_expert).div_ceil(n_chosen);
                let tiles_down = tile
                    .enough_workgroups
                    .div_ceil(n_out.div_ceil(tile.outputs()));
                let enough = (tiles_down * tile.rows()).div_ceil(n_chosen);
                most_of_it.max(enough).max(FEW_ROWS + 1)
            });
            if first <= end {
                found.push((Rows(first..=end), *tile));
                end = first - 1;
            }
        }
        found
    }

    /// The tiles that there is room for, the largest first.
    fn tiles_that_fit(&self, matrix: CooperativeMatrix, units_per_row: usize) -> Vec<Tile> {
        let fits = |tile: &Tile| tile.workgroup_bytes() <= self.workgroup_bytes;
        let tiles = Tile::all(matrix, units_per_row);
        tiles.into_iter().filter(fits).collect()
    }

    /// The rows of every tile that a product with experts can use.
    pub(super) fn expert_tile_rows(&self) -> BTreeSet<usize> {
        let units = [1, 2].into_iter();
        let coop = units.flat_map(|units_per_row| self.every_tile(units_per_row));
        let plain = [expert_matmul::TILE].into_iter();
        plain.chain(coop.map(|tile| tile.rows())).collect()
    }

    /// Every tile that a product of many rows can use.
    pub(super) fn every_tile(&self, units_per_row: usize) -> Vec<Tile> {
        let tiles = |matrix| self.tiles_that_fit(matrix, units_per_row);
        self.matrix.map_or(Vec::new(), tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> Choice {
        Choice {
            kv: KvType::F16,
            subgroups: true,
            matrix: Some(CooperativeMatrix {
                size: 16,
                subgroup_size: 32,
                from_vectors: true,
            }),
            workgroup_bytes: 49152,
            inlines_params: true,
            fuses: true,
            tuning: Arc::default(),
        }
    }

    #[test]
    fn each_number_of_rows_has_one_kernel() {
        for n_out in [1, 64, 576, 4096, 14336, 151_936] {
            let tiles = h200().tiles(WeightType::Q4_0, n_out, 127);
            for n_rows in 1..=2049 {
                let covers = |rows: &Rows| usize::from(rows.covers(n_rows));
                assert_eq!(covers(&Rows::FEW) + covers(&Rows::MANY), 1, "{n_rows} rows");
                let of_tiles: usize = tiles.iter().map(|(rows, _)| covers(rows)).sum();
                assert_eq!(
                    of_tiles,
                    covers(&Rows::MANY),
                    "{n_rows} rows, {n_out} outputs"
                );
            }
        }
    }

    #[test]
    fn activations_come_to_what_an_adapter_is_good_at() {
        let rounds = |activations, backend: &str, kind, has_matrices| {
            let info = DeviceInfo {
                name: String::new(),
                kind,
                backend: backend.to_owned(),
                driver: String::new(),
                n_threads: 0,
            };
            let rounding = rounding_of(activations, &info, has_matrices);
            (rounding.int8_rows > 0, rounding.f16_above.is_some())
        };
        use Activations::{Auto, F16, F32, Int8};
        use DeviceKind::{DiscreteGpu, SoftwareGpu};
        assert_eq!(rounds(Auto, "vulkan", DiscreteGpu, true), (true, true));
        assert_eq!(rounds(Auto, "vulkan", DiscreteGpu, false), (true, false));
        assert_eq!(rounds(Auto, "metal", DiscreteGpu, true), (false, true));
        assert_eq!(rounds(Auto, "vulkan", SoftwareGpu, true), (false, false));
        for kind in [DiscreteGpu, SoftwareGpu] {
            assert_eq!(rounds(F32, "vulkan", kind, true), (false, false));
            assert_eq!(rounds(F16, "vulkan", kind, true), (false, true));
            assert_eq!(rounds(F16, "vulkan", kind, false), (false, false));
            assert_eq!(rounds(Int8, "metal", kind, true), (true, true));
            assert_eq!(rounds(Int8, "metal", kind, false), (true, false));
        }
    }

    #[test]
    fn tiles_are_large_where_that_leaves_enough_of_them() {
        let all = Tile::all(h200().matrix.unwrap(), 128);
        let index = |n_out, n_rows| {
            let tiles = h200().tiles(WeightType::Q4_0, n_out, 128);
            let (_, found) = tiles.iter().find(|(rows, _)| rows.covers(n_rows)).unwrap();
            all.iter().position(|tile| tile == found).unwrap()
        };
        assert_eq!([index(14336, 512), index(8192, 512)], [0, 0]);
        assert_eq!([index(4096, 512), index(14336, 128)], [1, 1]);
        assert_eq!([index(2048, 512), index(1024, 512)], [2, 2]);
        assert_eq!([index(576, 512), index(192, 512)], [3, 3]);
        assert_eq!([index(151_936, 64), index(151_936, 32)], [2, 3]);
    }

    #[test]
    fn attention_has_a_tile_where_there_is_room_for_one() {
        for head_dim in [64, 80, 96, 128, 256] {
            assert!(h200().attention_tile(head_dim).is_some(), "{head_dim}");
        }
        assert!(h200().attention_tile(72).is_none() && h200().attention_tile(512).is_none());
        let with_memory = |workgroup_bytes| Choice {
            workgroup_bytes,
            ..h200()
        };
        assert!(with_memory(16384).attention_tile(256).is_none());
        let without = Choice {
            matrix: None,
            ..h200()
        };
        assert!(without.attention_tile(64).is_none());
    }

    #[test]
    fn tiles_are_left_out_where_the_adapter_or_the_weights_do_not_allow_them() {
        assert!(h200().tiles(WeightType::F32, 4096, 128).is_empty());
        assert!(h200().tiles(WeightType::BF16, 4096, 128).is_empty());
        let without = Choice {
            matrix: None,
            ..h200()
        };
        assert!(without.tiles(WeightType::Q4_0, 4096, 128).is_empty());
        let largest = Tile::all(h200().matrix.unwrap(), 128)
            .iter()
            .map(Tile::workgroup_bytes)
            .max()
            .unwrap();
        let with_memory = |workgroup_bytes| {
            let choice = Choice {
                workgroup_bytes,
                ..h200()
            };
            choice.tiles(WeightType::Q4_0, 4096, 128).len()
        };
        assert_eq!(with_memory(largest - 1), 3);
        assert_eq!(with_memory(largest), 4);
    }

    #[test]
    fn each_number_of_rows_has_one_tile_for_experts_and_large_ones_are_filled() {
        for counts in [[8, 2], [128, 8], [32, 4], [4, 4], [1, 1]] {
            for n_out in [1, 768, 2048, 14336] {
                let tiles = h200().expert_tiles(WeightType::Q4_0, n_out, 64, counts);
                for n_rows in 1..=4096 {
                    let found: Vec<&Tile> = tiles
                        .iter()
                        .filter(|(rows, _)| rows.covers(n_rows))
                        .map(|(_, tile)| tile)
                        .collect();
                    assert_eq!(found.len(), usize::from(Rows::MANY.covers(n_rows)));
                    let [n_expert, n_chosen] = counts;
                    let is_filled = |tile: &&Tile| {
                        let is_smallest = tile.rows() == 32;
                        is_smallest || 4 * n_rows * n_chosen >= 3 * tile.rows() * n_expert
                    };
                    assert!(found.iter().all(is_filled), "{n_rows} rows, {counts:?}");
                }
            }
        }
        let floats = h200().expert_tiles(WeightType::F32, 768, 64, [128, 8]);
        assert!(floats.is_empty());
    }
}
