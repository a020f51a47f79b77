//! The product of many rows with a weight matrix by cooperative matrices: prefill where there are any.
//!
//! WGSL can neither name a type by a constant nor index an array of matrices without the risk that
//! it leaves the registers, so [`Tile::source`] writes what depends on the tile out in full.

pub(crate) use super::matmul::Params;
use super::{Access, Kernel, Uses, grid as grid_of};
use std::fmt;

/// The kernel; its twin is [`super::matmul::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "matmul_coop",
    wgsl: include_str!("matmul_coop.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("scales", Access::Read),
        ("bias", Access::Read),
        ("residual", Access::Read),
        ("product", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        f16: true,
        tile: true,
        ..Uses::NOTHING
    },
};

/// What an adapter has of cooperative matrices: 16-bit factors, 32-bit sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CooperativeMatrix {
    /// Rows and columns, 8 or 16.
    pub(crate) size: usize,
    /// Invocations of every subgroup, a multiple of `size`.
    pub(crate) subgroup_size: usize,
    /// Whether they are loaded from arrays of vectors, which Metal's cannot be.
    pub(crate) from_vectors: bool,
}

/// Weights that lie together.
const UNIT: usize = super::ROW_ALIGNMENT;

/// What a workgroup computes: rows and outputs, by subgroups that have a block of matrices each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub(crate) matrix: CooperativeMatrix,
    /// Subgroups, down and across.
    subgroups: [usize; 2],
    /// Matrices of a subgroup, down and across.
    block: [usize; 2],
    /// Units of a row that a step takes in: rows have a multiple of them.
    pub(crate) units: usize,
    /// Workgroups from which on a large GPU is faster by this tile than by a smaller one.
    pub(crate) enough_workgroups: usize,
}

impl Tile {
    /// Every tile of such matrices for rows of so many units, the largest first.
    pub(crate) fn all(matrix: CooperativeMatrix, units_per_row: usize) -> Vec<Tile> {
        // A square of this many matrices is as wide as a subgroup has invocations.
        let side = matrix.subgroup_size / matrix.size;
        let half = side.div_ceil(2);
        // Two units a step halve the barriers, which count where a processor has but one workgroup.
        let units = if units_per_row.is_multiple_of(2) {
            2
        } else {
            1
        };
        let tile = |subgroups, block, units, enough_workgroups| Tile {
            matrix,
            subgroups,
            block,
            units,
            enough_workgroups,
        };
        let mut tiles = vec![
            tile([2, 2], [2 * side, 2 * side], 1, 133),
            tile([4, 2], [side, 2 * side], units, 80),
            tile([2, 2], [side, side], units, 100),
            tile([2, 2], [half, half], units, 1),
        ];
        tiles.dedup_by_key(|tile| (tile.subgroups, tile.block, tile.units));
        tiles
    }

    /// Rows of `src`.
    pub(crate) fn rows(&self) -> usize {
        self.subgroups[0] * self.block[0] * self.matrix.size
    }

    /// Rows of the weights.
    pub(crate) fn outputs(&self) -> usize {
        self.subgroups[1] * self.block[1] * self.matrix.size
    }

    /// What tells it from the other tiles of such matrices: subgroups and matrices of each, down and across, and units.
    pub(crate) fn shape(&self) -> [usize; 5] {
        let ([down, across], [rows, columns]) = (self.subgroups, self.block);
        [down, across, rows, columns, self.units]
    }

    /// Bytes of workgroup memory.
    pub(crate) fn workgroup_bytes(&self) -> usize {
        let [down, across] = self.subgroups;
        let tiles = (self.rows() + self.outputs()) * self.stride() * 2;
        tiles + down * across * self.matrix.size.pow(2) * 4
    }

    /// Halves from a row of a tile in workgroup memory to the next.
    fn stride(&self) -> usize {
        self.units * UNIT + 8
    }

    /// The part of the text that depends on the tile.
    pub(crate) fn source(&self) -> String {
        let size = self.matrix.size;
        let [down, across] = self.subgroups;
        let (element, halves) = if self.matrix.from_vectors {
            ("vec4<f16>", 4)
        } else {
            ("f16", 1)
        };
        let mut text = format!(
            "const SIZE = {size}u;\n\
             const SUBGROUP_ROWS = {down}u;\n\
             const SUBGROUP_COLUMNS = {across}u;\n\
             const N_THREADS = {n_threads}u;\n\
             const TILE_ROWS = {rows}u;\n\
             const TILE_OUTPUTS = {outputs}u;\n\
             const TILE_UNITS = {units}u;\n\
             const ELEMENT = {halves}u; // halves of an element of a tile\n\
             alias Element = {element};\n\
             alias MatA = coop_mat{size}x{size}<f16, A>;\n\
             alias MatB = coop_mat{size}x{size}<f16, B>;\n\
             alias MatC = coop_mat{size}x{size}<f32, C>;\n",
            n_threads = self.matrix.subgroup_size * down * across,
            rows = self.rows(),
            outputs = self.outputs(),
            units = self.units,
        );
        for tile in ["src", "weight"] {
            let stores = if self.matrix.from_vectors {
                format!("    {tile}_tile[at] = vector;\n")
            } else {
                let store = |i| format!("    {tile}_tile[at + {i}u] = vector[{i}];\n");
                (0..4).map(store).collect()
            };
            text += &format!("fn put_{tile}4(at: u32, vector: vec4<f16>) {{\n{stores}}}\n");
        }
        self.write_sums(&mut text, halves);
        text
    }

    /// The sums of a subgroup's block, and the functions that touch all of them.
    fn write_sums(&self, text: &mut String, halves: usize) {
        let size = self.matrix.size;
        let [down, across] = self.subgroups;
        let [rows, columns] = self.block;
        let sums = || (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };

        for (row, column) in sums() {
            line(format!("var<private> sum_{row}_{column}: MatC;"));
        }
        // Not left to an initial value: Metal does not say what that of a matrix is.
        line("fn clear_sums(stage_at: u32) {".to_owned());
        line("    let zeros = coopLoadT<MatC>(&stage[stage_at], STAGE_WIDTH);".to_owned());
        for (row, column) in sums() {
            line(format!("    sum_{row}_{column} = zeros;"));
        }
        line("}".to_owned());

        line("fn multiply(src_at: u32, weight_at: u32) {".to_owned());
        for step in 0..self.units * UNIT / size {
            // Neighbouring matrices belong to neighbouring subgroups.
            let offset = |index: usize, n_subgroups: usize| {
                (index * n_subgroups * size * self.stride() + step * size) / halves
            };
            for column in 0..columns {
                let at = offset(column, across);
                line(format!(
                    "    let b_{step}_{column} = coopLoad<MatB>(&weight_tile[weight_at + {at}u], TILE_STRIDE);"
                ));
            }
            for row in 0..rows {
                let at = offset(row, down);
                line(format!(
                    "    let a_{step}_{row} = coopLoadT<MatA>(&src_tile[src_at + {at}u], TILE_STRIDE);"
                ));
                for column in 0..columns {
                    let sum = format!("sum_{row}_{column}");
                    line(format!(
                        "    {sum} = coopMultiplyAdd(a_{step}_{row}, b_{step}_{column}, {sum});"
                    ));
                }
            }
        }
        line("}".to_owned());

        line("fn finish_all(place: Place) {".to_owned());
        for (row, column) in sums() {
            line(format!(
                "    finish(sum_{row}_{column}, {row}u, {column}u, place);"
            ));
        }
        line("}".to_owned());
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{}x{}",
            self.rows(),
            self.outputs(),
            self.units * UNIT
        )
    }
}

/// The grid for `n_rows` rows of `src`.
pub(crate) fn grid(tile: Tile, params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(
        (params.matrix.n_rows as usize).div_ceil(tile.outputs()),
        n_rows.div_ceil(tile.rows()),
    )
}
