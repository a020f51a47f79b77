//! Attention of few rows deep in the context by cooperative matrices, where query heads share keys.
//!
//! A workgroup has a split of the keys of a key-value head, and as the rows of its matrices the query heads
//! of all rows of the batch that read them. Queries and weights are the sums of two 16-bit floats, so that a
//! cache of 16 bits gives what [`attention_few`](super::attention_few) does, whose
//! [merging](super::attention_merge) follows. As for [`matmul_coop`](super::matmul_coop), [`Tile::source`]
//! writes out in full what depends on the tile.

use super::attention::Shape;
pub(crate) use super::attention_few::Params;
use super::matmul_coop::CooperativeMatrix;
use super::{Access, Kernel, Uses, attention_few};

/// The kernel; its twin is [`attention::twin`](super::attention::twin).
pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention_deep",
    wgsl: include_str!("attention_deep.wgsl"),
    bindings: &[
        ("q", Access::Read),
        ("keys", Access::Read),
        ("values", Access::Read),
        ("partials", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        f16: true,
        deep_tile: true,
        soft_cap: true,
        ..Uses::NOTHING
    },
};

/// What speed depends on.
struct Sizes {
    /// Subgroups of a workgroup, a power of two, which share the keys of a tile, and then the columns of the values.
    n_subgroups: usize,
    /// Keys of a tile.
    most_keys: usize,
    /// Elements of a tile of keys, where there is a choice: invocations hold the next tiles in registers.
    most_elements: usize,
    /// Columns of the sums that go through workgroup memory at once.
    most_stage: usize,
    /// Workgroups that keep a large GPU busy.
    enough_workgroups: usize,
    /// Splits: merging loads that many of heads of 128 at once.
    most_splits: usize,
    /// Query heads of a key-value head from which on reading its keys takes less than computing with each.
    least_group: usize,
}

const SIZES: Sizes = Sizes {
    n_subgroups: 4,
    most_keys: 64,
    most_elements: 8192,
    most_stage: 128,
    enough_workgroups: 264,
    most_splits: 64,
    least_group: 2,
};

/// What a workgroup computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub(crate) matrix: CooperativeMatrix,
    /// A multiple of the matrices' size.
    pub(crate) head_dim: usize,
    /// Keys at a time, a multiple of the matrices' size.
    pub(crate) n_keys: usize,
}

/// Halves between the rows of a tile.
const PADDING: usize = 8;
/// Floats between the rows of the stage.
const STAGE_PADDING: usize = 4;
/// The widest heads whose queries stay in registers.
const MAX_HEAD_DIM: usize = 256;

impl Tile {
    /// The tile for a cache of 16-bit floats within `room` bytes of workgroup memory; `None` where there is
    /// none, or where the kernel cannot compute this or has nothing to gain.
    pub(crate) fn new(matrix: CooperativeMatrix, shape: &Shape, room: usize) -> Option<Tile> {
        let head_dim = shape.head_dim;
        let has_gain = shape.n_head / shape.n_head_kv >= SIZES.least_group;
        let has_tiles = head_dim.is_multiple_of(matrix.size) && head_dim <= MAX_HEAD_DIM;
        if !(attention_few::fits(shape) && has_gain && has_tiles) {
            return None;
        }
        let tile = |n_keys| Tile {
            matrix,
            head_dim,
            n_keys,
        };
        let fits = |tile: &Tile| {
            let is_small =
                tile.n_keys * head_dim <= SIZES.most_elements || tile.n_keys == matrix.size;
            let is_whole = tile.n_keys.is_multiple_of(matrix.size);
            is_whole && is_small && tile.workgroup_bytes() <= room
        };
        let halved = std::iter::successors(Some(SIZES.most_keys), |keys| Some(keys / 2));
        let n_keys = halved.take_while(|&keys| keys >= matrix.size);
        n_keys.map(tile).find(fits)
    }

    /// Query heads, of all rows of the batch, in a workgroup: each has two rows of the matrices.
    fn rows(&self) -> usize {
        self.matrix.size / 2
    }

    /// A row's softmax is one subgroup's.
    fn n_subgroups(&self) -> usize {
        SIZES.n_subgroups.min(self.rows())
    }

    fn invocations(&self) -> usize {
        self.n_subgroups() * self.matrix.subgroup_size
    }

    /// Neighbouring invocations that bring neighbouring eights of a key, as many as leave none idle.
    fn key_threads(&self) -> usize {
        let [mut divisor, mut rest] = [self.head_dim / 8, self.invocations()];
        while rest != 0 {
            [divisor, rest] = [rest, divisor % rest];
        }
        divisor
    }

    /// Columns of the stage: the scores of a tile, and as many rounds of the subgroups' sums as fit.
    fn stage_width(&self) -> usize {
        (self.round() * self.matrices_at_once()).max(self.n_keys)
    }

    /// Columns of one matrix of each subgroup.
    fn round(&self) -> usize {
        self.n_subgroups() * self.matrix.size
    }

    /// Matrices of sums of a subgroup.
    fn n_sums(&self) -> usize {
        self.head_dim.div_ceil(self.round())
    }

    /// As many of them as the stage holds.
    fn matrices_at_once(&self) -> usize {
        (SIZES.most_stage / self.round()).clamp(1, self.n_sums())
    }

    /// Bytes of workgroup memory.
    pub(crate) fn workgroup_bytes(&self) -> usize {
        let tiles = 2 * self.n_keys * (self.head_dim + PADDING) * 2;
        let weights = self.matrix.size * (self.n_keys + PADDING) * 2;
        let stage = self.matrix.size * (self.stage_width() + STAGE_PADDING) * 4;
        tiles + weights + stage + self.rows() * 4 + 16
    }

    /// Halves of an element of a tile and of the weights.
    fn halves(&self) -> usize {
        match self.matrix.from_vectors {
            true => 4,
            false => 1,
        }
    }

    /// The part of the text that depends on the tile.
    pub(crate) fn source(&self) -> String {
        let Tile {
            matrix,
            head_dim,
            n_keys,
        } = *self;
        let size = matrix.size;
        let halves = self.halves();
        let element = match matrix.from_vectors {
            true => "vec4<f16>",
            false => "f16",
        };
        let mut text = format!(
            "const SIZE = {size}u;\n\
             const SUBGROUP = {subgroup}u;\n\
             const N_SUBGROUPS = {n_subgroups}u;\n\
             const HEAD_DIM = {head_dim}u;\n\
             const TILE_KEYS = {n_keys}u;\n\
             const KEY_THREADS = {key_threads}u; // invocations that bring a key to a tile\n\
             const STAGE_WIDTH = {stage_width}u;\n\
             const TILE_LENGTH = {tile_length}u;\n\
             const WEIGHT_LENGTH = {weight_length}u;\n\
             alias Element = {element};\n\
             alias MatA = coop_mat{size}x{size}<f16, A>;\n\
             alias MatB = coop_mat{size}x{size}<f16, B>;\n\
             alias MatC = coop_mat{size}x{size}<f32, C>;\n",
            subgroup = matrix.subgroup_size,
            n_subgroups = self.n_subgroups(),
            key_threads = self.key_threads(),
            stage_width = self.stage_width(),
            tile_length = n_keys * (head_dim + PADDING) / halves,
            weight_length = size * (n_keys + PADDING) / halves,
        );
        self.write_stores(&mut text);
        self.write_held(&mut text);
        self.write_products(&mut text);
        self.write_sums(&mut text);
        text
    }

    /// Eight or four halves to their place in a tile, which is counted in as many.
    fn write_stores(&self, text: &mut String) {
        for (name, tile, ty, n_fours) in [
            ("key8", "key_tile", "mat2x4<f16>", 2),
            ("value8", "value_tile", "mat2x4<f16>", 2),
            ("weight4", "weights", "vec4<f16>", 1),
        ] {
            *text += &format!("fn put_{name}(at: u32, halves: {ty}) {{\n");
            for four in 0..n_fours {
                let of_four = match n_fours {
                    1 => "halves".to_owned(),
                    _ => format!("halves[{four}]"),
                };
                if self.matrix.from_vectors {
                    *text += &format!("    {tile}[at * {n_fours}u + {four}u] = {of_four};\n");
                    continue;
                }
                for i in 0..4 {
                    let (stride, place) = (4 * n_fours, 4 * four + i);
                    *text += &format!("    {tile}[at * {stride}u + {place}u] = {of_four}[{i}];\n");
                }
            }
            *text += "}\n";
        }
    }

    /// What an invocation holds of the next tiles while the present ones are used: eight elements each, of keys
    /// and eights counted from its first.
    fn write_held(&self, text: &mut String) {
        let key_threads = self.key_threads();
        let keys_at_once = self.invocations() / key_threads;
        let keys = (0..self.n_keys).step_by(keys_at_once);
        let eights = || (0..self.head_dim / 8).step_by(key_threads);
        let held: Vec<_> = keys
            .flat_map(|key| eights().map(move |eight| (key, eight)))
            .collect();
        for (name, cache) in [("key", "keys"), ("value", "values")] {
            let mut fetches = String::new();
            let mut puts = String::new();
            for (i, &(key, eight)) in held.iter().enumerate() {
                *text += &format!("var<private> {name}_{i}: mat2x4<f16>;\n");
                fetches += &format!(
                    "    {name}_{i} = {cache}[eight_at(tile, {key}u, {eight}u, place)];\n"
                );
                let put = format!("put_{name}8(put_at({key}u, {eight}u, place), {name}_{i});");
                puts += &if key + keys_at_once <= self.n_keys {
                    format!("    {put}\n")
                } else {
                    format!("    if place.key < {}u {{ {put} }}\n", self.n_keys - key)
                };
            }
            *text += &format!("fn fetch_{cache}(tile: u32, place: Place) {{\n{fetches}}}\n");
            *text += &format!("fn put_{cache}(place: Place) {{\n{puts}}}\n");
        }
    }

    /// A subgroup's column of matrices, by its number among its own. Where there are fewer columns than `n` in all some
    /// subgroups do what another one does: naga has no products of matrices where subgroups part.
    fn own_column(&self, own: usize, n: usize) -> String {
        let first = own * self.n_subgroups();
        match first + self.n_subgroups() <= n {
            true => format!("(subgroup + {first}u)"),
            false => format!("min(subgroup + {first}u, {}u)", n - 1),
        }
    }

    /// Queries times keys, and weights times values.
    fn write_products(&self, text: &mut String) {
        let size = self.matrix.size;
        let halves = self.halves();
        let [steps, columns] = [self.head_dim / size, self.n_keys / size];
        let n_subgroups = self.n_subgroups();
        let tile_stride = (self.head_dim + PADDING) / halves;
        let weight_stride = (self.n_keys + PADDING) / halves;
        for step in 0..steps {
            *text += &format!("var<private> query_{step}: MatA;\n");
        }
        *text += "fn load_queries() {\n";
        for step in 0..steps {
            let at = step * size / halves;
            *text +=
                &format!("    query_{step} = coopLoadT<MatA>(&key_tile[{at}u], {tile_stride}u);\n");
        }
        *text += "}\n";

        *text += "fn score(subgroup: u32) {\n    let stride = STAGE_STRIDE;\n";
        for own in 0..columns.div_ceil(n_subgroups) {
            let column = self.own_column(own, columns);
            *text += &format!(
                "    let column_{own} = {column};\n\
                 \x20   let keys_{own} = column_{own} * {}u;\n\
                 \x20   var score_{own} = zeros;\n",
                size * tile_stride
            );
            for step in 0..steps {
                let at = step * size / halves;
                *text += &format!(
                    "    let key_{own}_{step} = coopLoad<MatB>(&key_tile[keys_{own} + {at}u], {tile_stride}u);\n\
                     \x20   score_{own} = coopMultiplyAdd(query_{step}, key_{own}_{step}, score_{own});\n"
                );
            }
            *text += &format!(
                "    let at_{own} = column_{own} * SIZE;\n\
                 \x20   coopStoreT(score_{own}, &stage[at_{own}], stride);\n"
            );
        }
        *text += "}\n";

        *text += "fn sum_values(subgroup: u32) {\n";
        for column in 0..columns {
            let at = column * size / halves;
            *text += &format!(
                "    let weight_{column} = coopLoadT<MatA>(&weights[{at}u], {weight_stride}u);\n"
            );
        }
        for own in 0..self.n_sums() {
            let column = self.own_column(own, steps);
            let width = size / halves;
            *text += &format!("    let column_{own} = {column} * {width}u;\n");
            for key in 0..columns {
                let at = key * size * tile_stride;
                let value = format!("value_{own}_{key}");
                *text += &format!(
                    "    let {value} = coopLoadT<MatB>(&value_tile[column_{own} + {at}u], {tile_stride}u);\n\
                     \x20   sum_{own} = coopMultiplyAdd(weight_{key}, {value}, sum_{own});\n"
                );
            }
        }
        *text += "}\n";
    }

    /// The sums of a subgroup's columns, and the functions that touch all of them.
    fn write_sums(&self, text: &mut String) {
        let n_sums = self.n_sums();
        for own in 0..n_sums {
            *text += &format!("var<private> sum_{own}: MatC;\n");
        }
        // Not left to an initial value: Metal does not say what that of a matrix is.
        *text += "var<private> zeros: MatC;\nfn clear_sums() {\n";
        *text += "    zeros = coopLoadT<MatC>(&stage[0], STAGE_STRIDE);\n";
        for own in 0..n_sums {
            *text += &format!("    sum_{own} = zeros;\n");
        }
        *text += "}\n";

        let rounds: Vec<_> = (0..n_sums)
            .step_by(self.matrices_at_once())
            .map(|first| first..n_sums.min(first + self.matrices_at_once()))
            .collect();
        let at = |first: usize, own: usize| {
            let column = self.own_column(own, self.head_dim / self.matrix.size);
            let before = first * self.n_subgroups();
            format!("    let at_{own} = ({column} - {before}u) * SIZE;\n")
        };
        let store = |own: usize| format!("    coopStoreT(sum_{own}, &stage[at_{own}], stride);\n");
        let load =
            |own: usize| format!("    sum_{own} = coopLoadT<MatC>(&stage[at_{own}], stride);\n");

        *text += "fn rescale_all(place: Place) {\n    let stride = STAGE_STRIDE;\n    let subgroup = place.subgroup;\n";
        for round in &rounds {
            let stores = round.clone().map(|own| at(round.start, own) + &store(own));
            *text += &stores.collect::<String>();
            *text += "    scale_stage(place);\n";
            *text += &round.clone().map(load).collect::<String>();
            *text += "    workgroupBarrier();\n";
        }
        *text += "}\n";

        *text += "fn finish_all(place: Place) {\n    let stride = STAGE_STRIDE;\n    let subgroup = place.subgroup;\n";
        for round in &rounds {
            let stores = round.clone().map(|own| at(round.start, own) + &store(own));
            *text += &stores.collect::<String>();
            let column = round.start * self.round();
            let width = (round.len() * self.round()).min(self.head_dim - column);
            *text += &format!("    finish({column}u, {width}u, place);\n");
        }
        *text += "}\n";
    }
}

pub(crate) fn grid(tile: Tile, params: &Params, n_rows: usize) -> [u32; 3] {
    let n_queries = n_rows * (params.n_head / params.n_head_kv) as usize;
    let n_blocks = n_queries.div_ceil(tile.rows()) as u32;
    [params.n_head_kv, params.n_splits, n_blocks]
}

/// Splits of the keys. As [`attention_few::splits`] it depends on the heads alone.
pub(crate) fn splits(tile: Tile, shape: &Shape) -> usize {
    let n_blocks = (shape.n_head / shape.n_head_kv).div_ceil(tile.rows());
    let n_splits = SIZES.enough_workgroups.div_ceil(shape.n_head_kv * n_blocks);
    n_splits.clamp(2, SIZES.most_splits)
}
