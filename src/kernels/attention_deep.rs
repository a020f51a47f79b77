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
    /// Subgroups of a workgroup, which share the keys of a tile, and then the columns of the values.
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

    /// Columns of the stage: the scores of a tile, and as many rounds of the subgroups' sums as fit.
    fn stage_width(&self) -> usize {
        (self.round() * self.matrices_at_once()).max(self.n_keys)
    }

    /// Columns of one matrix of each subgroup.
    fn round(&self) -> usize {
        self.n_subgroups() * self.matrix.size
    }

    /// Matrices of sums of a subgroup; the last ones of some are beyond the head.
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

    /// Halves of an element of a tile, and of the weights.
    fn halves(&self) -> [usize; 2] {
        match self.matrix.from_vectors {
            true => [8, 4],
            false => [1, 1],
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
        let [tile_halves, weight_halves] = self.halves();
        let [tile_element, weight_element] = match matrix.from_vectors {
            true => ["vec4<u32>", "vec2<u32>"],
            false => ["f16", "f16"],
        };
        let mut text = format!(
            "const SIZE = {size}u;\n\
             const SUBGROUP = {subgroup}u;\n\
             const N_SUBGROUPS = {n_subgroups}u;\n\
             const HEAD_DIM = {head_dim}u;\n\
             const TILE_KEYS = {n_keys}u;\n\
             const STAGE_WIDTH = {stage_width}u;\n\
             const TILE_LENGTH = {tile_length}u;\n\
             const WEIGHT_LENGTH = {weight_length}u;\n\
             alias TileElement = {tile_element};\n\
             alias WeightElement = {weight_element};\n\
             alias MatA = coop_mat{size}x{size}<f16, A>;\n\
             alias MatB = coop_mat{size}x{size}<f16, B>;\n\
             alias MatC = coop_mat{size}x{size}<f32, C>;\n",
            subgroup = matrix.subgroup_size,
            n_subgroups = self.n_subgroups(),
            stage_width = self.stage_width(),
            tile_length = n_keys * (head_dim + PADDING) / tile_halves,
            weight_length = size * (n_keys + PADDING) / weight_halves,
        );
        self.write_stores(&mut text);
        self.write_products(&mut text);
        self.write_sums(&mut text);
        text
    }

    /// Eight or four halves to their place in a tile, which is counted in as many.
    fn write_stores(&self, text: &mut String) {
        for (name, tile, n_words) in [
            ("key8", "key_tile", 4),
            ("value8", "value_tile", 4),
            ("weight4", "weights", 2),
        ] {
            let stores = if self.matrix.from_vectors {
                format!("    {tile}[at] = words;\n")
            } else {
                let store = |i: usize| {
                    let half = format!("unpack2x16float(words[{}])[{}]", i / 2, i % 2);
                    let n_halves = 2 * n_words;
                    format!("    {tile}[at * {n_halves}u + {i}u] = f16({half});\n")
                };
                (0..2 * n_words).map(store).collect()
            };
            *text += &format!("fn put_{name}(at: u32, words: vec{n_words}<u32>) {{\n{stores}}}\n");
        }
    }

    /// The columns of matrices from 0 to `n` that are a subgroup's: the lines that `body` makes of each
    /// number of its own, where that column is there.
    fn for_own(&self, n: usize, text: &mut String, body: impl Fn(usize) -> Vec<String>) {
        let n_subgroups = self.n_subgroups();
        for own in 0..n.div_ceil(n_subgroups) {
            let first = own * n_subgroups;
            let is_guarded = first + n_subgroups > n;
            if is_guarded {
                *text += &format!("    if subgroup < {}u {{\n", n - first);
            }
            for line in body(own) {
                *text += &format!("    {line}\n");
            }
            if is_guarded {
                *text += "    }\n";
            }
        }
    }

    /// Queries times keys, and weights times values.
    fn write_products(&self, text: &mut String) {
        let size = self.matrix.size;
        let [tile_halves, weight_halves] = self.halves();
        let [steps, columns] = [self.head_dim / size, self.n_keys / size];
        let n_subgroups = self.n_subgroups();
        let tile_stride = (self.head_dim + PADDING) / tile_halves;
        let weight_stride = (self.n_keys + PADDING) / weight_halves;
        for step in 0..steps {
            *text += &format!("var<private> query_{step}: MatA;\n");
        }
        *text += "fn load_queries() {\n";
        for step in 0..steps {
            let at = step * size / tile_halves;
            *text +=
                &format!("    query_{step} = coopLoadT<MatA>(&key_tile[{at}u], {tile_stride}u);\n");
        }
        *text += "}\n";

        *text += "fn score(subgroup: u32) {\n    let stride = STAGE_STRIDE;\n";
        self.for_own(columns, text, |own| {
            let keys = format!("(subgroup + {}u)", own * n_subgroups);
            let mut lines = vec![format!("var score_{own} = zeros;")];
            for step in 0..steps {
                let at = format!(
                    "{keys} * {}u + {}u",
                    size * tile_stride,
                    step * size / tile_halves
                );
                let key = format!("coopLoad<MatB>(&key_tile[{at}], {tile_stride}u)");
                lines.push(format!(
                    "score_{own} = coopMultiplyAdd(query_{step}, {key}, score_{own});"
                ));
            }
            lines.push(format!("let at_{own} = {keys} * SIZE;"));
            lines.push(format!(
                "coopStoreT(score_{own}, &stage[at_{own}], stride);"
            ));
            lines
        });
        *text += "}\n";

        *text += "fn sum_values(subgroup: u32) {\n";
        for column in 0..columns {
            let at = column * size / weight_halves;
            *text += &format!(
                "    let weight_{column} = coopLoadT<MatA>(&weights[{at}u], {weight_stride}u);\n"
            );
        }
        self.for_own(steps, text, |own| {
            let sum = |column: usize| {
                let at = format!(
                    "subgroup * {}u + {}u",
                    size / tile_halves,
                    column * size * tile_stride + own * n_subgroups * size / tile_halves
                );
                let value = format!("coopLoadT<MatB>(&value_tile[{at}], {tile_stride}u)");
                format!("sum_{own} = coopMultiplyAdd(weight_{column}, {value}, sum_{own});")
            };
            (0..columns).map(sum).collect()
        });
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

        // What is beyond the head is in the stage, and nobody's.
        let rounds: Vec<_> = (0..n_sums)
            .step_by(self.matrices_at_once())
            .map(|first| first..n_sums.min(first + self.matrices_at_once()))
            .collect();
        let at = |first: usize, own: usize| {
            let column = (own - first) * self.round();
            format!("    let at_{own} = place.subgroup * SIZE + {column}u;\n")
        };
        let store = |own: usize| format!("    coopStoreT(sum_{own}, &stage[at_{own}], stride);\n");
        let load =
            |own: usize| format!("    sum_{own} = coopLoadT<MatC>(&stage[at_{own}], stride);\n");

        *text += "fn rescale_all(place: Place) {\n    let stride = STAGE_STRIDE;\n";
        for round in &rounds {
            let stores = round.clone().map(|own| at(round.start, own) + &store(own));
            *text += &stores.collect::<String>();
            *text += "    scale_stage(place);\n";
            *text += &round.clone().map(load).collect::<String>();
            *text += "    workgroupBarrier();\n";
        }
        *text += "}\n";

        *text += "fn finish_all(place: Place) {\n    let stride = STAGE_STRIDE;\n";
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
