//! Attention of many rows by cooperative matrices: prefill where there are any.
//!
//! As for [`matmul_coop`](super::matmul_coop), [`Tile::source`] writes out in full what depends on
//! the tile.

pub(crate) use super::attention::Params;
use super::matmul_coop::CooperativeMatrix;
use super::{Access, Kernel, Uses, grid as grid_of};
use crate::kv_cache::KvType;

/// The kernel; its twin is [`super::attention::twin`].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention_coop",
    wgsl: include_str!("attention_coop.wgsl"),
    bindings: &[
        ("q", Access::Read),
        ("keys", Access::Read),
        ("values", Access::Read),
        ("dst", Access::ReadWrite),
        ("sinks", Access::Read),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        f16: true,
        attention_tile: true,
        ..Uses::NOTHING
    },
};

/// What a workgroup computes: some rows of one head, taking in some keys at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub(crate) matrix: CooperativeMatrix,
    pub(crate) kv: KvType,
    /// A multiple of the matrices' size.
    pub(crate) head_dim: usize,
    /// Keys at a time, a multiple of the matrices' size.
    pub(crate) n_keys: usize,
}

/// Of a workgroup.
const N_SUBGROUPS: usize = 4;
/// Halves between the rows of a tile.
const PADDING: usize = 8;
/// Floats between the rows of the stage.
const STAGE_PADDING: usize = 4;

/// The widest heads whose sums stay in registers.
const MAX_HEAD_DIM: usize = 256;
/// Of a tile of keys, where there is a choice: more crowd the registers.
const MAX_ELEMENTS: usize = 2048;

impl Tile {
    /// The tile for heads of `head_dim` within `room` bytes of workgroup memory; `None` where there
    /// is none.
    pub(crate) fn new(
        matrix: CooperativeMatrix,
        kv: KvType,
        head_dim: usize,
        room: usize,
    ) -> Option<Tile> {
        let tile = |n_keys| Tile {
            matrix,
            kv,
            head_dim,
            n_keys,
        };
        let has_tiles = head_dim.is_multiple_of(matrix.size) && head_dim <= MAX_HEAD_DIM;
        let fits = |tile: &Tile| {
            let is_small = tile.n_keys * head_dim <= MAX_ELEMENTS || tile.n_keys == matrix.size;
            let is_whole = tile.n_keys.is_multiple_of(matrix.size);
            has_tiles && is_whole && is_small && tile.workgroup_bytes() <= room
        };
        [32, 16, 8].map(tile).into_iter().find(fits)
    }

    /// Matrices of a subgroup, one below the other: two invocations share a row where there are enough.
    fn down(&self) -> usize {
        (self.matrix.subgroup_size / (2 * self.matrix.size)).max(1)
    }

    fn subgroup_rows(&self) -> usize {
        self.down() * self.matrix.size
    }

    /// Columns of the stage: the scores of a tile, and a part of the sums that is large enough for them to pass
    /// through quickly.
    fn stage_width(&self) -> usize {
        self.head_dim.min(64).max(self.n_keys)
    }

    /// Rows of a workgroup.
    pub(crate) fn rows(&self) -> usize {
        N_SUBGROUPS * self.subgroup_rows()
    }

    fn invocations(&self) -> usize {
        N_SUBGROUPS * self.matrix.subgroup_size
    }

    /// Neighbouring invocations that bring neighbouring quads of a key, as many as leave none idle.
    fn key_threads(&self) -> usize {
        let [mut divisor, mut rest] = [self.head_dim / 4, self.invocations()];
        while rest != 0 {
            [divisor, rest] = [rest, divisor % rest];
        }
        divisor
    }

    /// The quads of keys, and of values, that an invocation brings to a tile: keys and quads from the
    /// first on.
    fn quads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let key_threads = self.key_threads();
        let [n_keys, n_quads] = [self.n_keys, self.head_dim / 4];
        let keys = (0..n_keys).step_by(self.invocations() / key_threads);
        keys.flat_map(move |key| {
            (0..n_quads)
                .step_by(key_threads)
                .map(move |quad| (key, quad))
        })
    }

    /// Bytes of workgroup memory.
    pub(crate) fn workgroup_bytes(&self) -> usize {
        let tiles = 2 * self.n_keys * (self.head_dim + PADDING) * 2;
        let weights = self.rows() * (self.n_keys + PADDING) * 2;
        let stage = self.rows() * (self.stage_width() + STAGE_PADDING) * 4;
        let largest = match self.kv {
            KvType::F16 => 0,
            KvType::F32 => N_SUBGROUPS * 8,
        };
        tiles + weights + stage + self.rows() * 4 + 16 + largest
    }

    /// The part of the text that depends on the tile.
    pub(crate) fn source(&self) -> String {
        let Tile {
            matrix,
            head_dim,
            n_keys,
            ..
        } = *self;
        let size = matrix.size;
        let (element, halves) = if matrix.from_vectors {
            ("vec4<f16>", 4)
        } else {
            ("f16", 1)
        };
        let mut text = format!(
            "const SIZE = {size}u;\n\
             const SUBGROUP = {subgroup}u;\n\
             const N_SUBGROUPS = {N_SUBGROUPS}u;\n\
             const SUBGROUP_ROWS = {rows}u;\n\
             const HEAD_DIM = {head_dim}u;\n\
             const TILE_KEYS = {n_keys}u;\n\
             const STAGE_WIDTH = {stage_width}u;\n\
             const KEY_THREADS = {key_threads}u; // invocations that bring a key to a tile\n\
             const ELEMENT = {halves}u; // halves of an element of a tile\n\
             alias Element = {element};\n\
             alias MatA = coop_mat{size}x{size}<f16, A>;\n\
             alias MatB = coop_mat{size}x{size}<f16, B>;\n\
             alias MatC = coop_mat{size}x{size}<f32, C>;\n",
            subgroup = matrix.subgroup_size,
            rows = self.subgroup_rows(),
            stage_width = self.stage_width(),
            key_threads = self.key_threads(),
        );
        text += match self.kv {
            KvType::F16 => include_str!("common/kv_tile_f16.wgsl"),
            KvType::F32 => include_str!("common/kv_tile_f32.wgsl"),
        };
        for (name, tile) in [
            ("key", "key_tile"),
            ("value", "value_tile"),
            ("weight", "weights"),
        ] {
            let stores = if matrix.from_vectors {
                format!("    {tile}[at] = quad;\n")
            } else {
                let store = |i| format!("    {tile}[at + {i}u] = quad[{i}];\n");
                (0..4).map(store).collect()
            };
            text += &format!("fn put_{name}4(at: u32, quad: vec4<f16>) {{\n{stores}}}\n");
        }
        self.write_held(&mut text);
        self.write_products(&mut text, halves);
        self.write_sums(&mut text);
        text
    }

    /// The quads of the next tiles that an invocation holds while the present ones are used.
    fn write_held(&self, text: &mut String) {
        let quads: Vec<(usize, usize)> = self.quads().collect();
        let mut line = |line: String| *text += &(line + "\n");
        for i in 0..quads.len() {
            line(format!("var<private> key_{i}: KvQuad;"));
            line(format!("var<private> value_{i}: KvQuad;"));
        }
        let keys_at_once = self.invocations() / self.key_threads();
        for (name, cache) in [("key", "keys"), ("value", "values")] {
            line(format!("fn fetch_{cache}(tile: u32, place: Place) {{"));
            for (i, (key, quad)) in quads.iter().enumerate() {
                line(format!(
                    "    {name}_{i} = {cache}[quad_at(tile, {key}u, {quad}u, place)];"
                ));
            }
            line("}".to_owned());

            line(format!("fn put_{cache}(inverse: f32, place: Place) {{"));
            for (i, (key, quad)) in quads.iter().enumerate() {
                let at = format!("put_at({key}u, {quad}u, place)");
                let put = format!("put_{name}4({at}, kv_halves({name}_{i}, inverse));");
                line(if key + keys_at_once <= self.n_keys {
                    format!("    {put}")
                } else {
                    format!("    if place.key < {}u {{ {put} }}", self.n_keys - key)
                });
            }
            line("}".to_owned());
        }
        line("fn publish(subgroup: u32) {".to_owned());
        for name in ["key", "value"] {
            line(format!("    var largest_{name} = 0.0;"));
            for i in 0..quads.len() {
                line(format!(
                    "    largest_{name} = max(largest_{name}, kv_magnitude({name}_{i}));"
                ));
            }
        }
        line("    kv_publish(largest_key, largest_value, subgroup);".to_owned());
        line("}".to_owned());
    }

    /// Queries times keys, and weights times values.
    fn write_products(&self, text: &mut String, halves: usize) {
        let size = self.matrix.size;
        let [down, steps, columns] = [self.down(), self.head_dim / size, self.n_keys / size];
        let tile_stride = (self.head_dim + PADDING) / halves;
        let weight_stride = (self.n_keys + PADDING) / halves;
        let stage_stride = self.stage_width() + STAGE_PADDING;
        let mut line = |line: String| *text += &(line + "\n");
        for row in 0..down {
            for step in 0..steps {
                line(format!("var<private> query_{row}_{step}: MatA;"));
            }
        }
        let weights_at = |row: usize, column: usize| {
            let at = row * size * weight_stride + column * size / halves;
            format!(
                "coopLoadT<MatA>(&weights[place.rows_at * WEIGHT_STRIDE + {at}u], WEIGHT_STRIDE)"
            )
        };
        line("fn load_queries(inverse: f32, place: Place) {".to_owned());
        for step in 0..steps {
            let column = step % columns;
            if column == 0 {
                line("    workgroupBarrier();".to_owned());
                line(format!(
                    "    put_queries({}u, inverse, place);",
                    step * size
                ));
                line("    workgroupBarrier();".to_owned());
            }
            for row in 0..down {
                line(format!(
                    "    query_{row}_{step} = {};",
                    weights_at(row, column)
                ));
            }
        }
        line("    workgroupBarrier();".to_owned());
        line("}".to_owned());

        line("fn score(place: Place) {".to_owned());
        let scores = || (0..down).flat_map(|row| (0..columns).map(move |column| (row, column)));
        for (row, column) in scores() {
            line(format!("    var score_{row}_{column} = zeros;"));
        }
        for step in 0..steps {
            for column in 0..columns {
                let at = column * size * tile_stride + step * size / halves;
                line(format!(
                    "    let key_{step}_{column} = coopLoad<MatB>(&key_tile[{at}u], TILE_STRIDE);"
                ));
                for row in 0..down {
                    let score = format!("score_{row}_{column}");
                    line(format!(
                        "    {score} = coopMultiplyAdd(query_{row}_{step}, key_{step}_{column}, {score});"
                    ));
                }
            }
        }
        line("    let stride = STAGE_STRIDE;".to_owned());
        for (row, column) in scores() {
            let at = row * size * stage_stride + column * size;
            line(format!(
                "    let at_{row}_{column} = place.rows_at * STAGE_STRIDE + {at}u;"
            ));
            line(format!(
                "    coopStoreT(score_{row}_{column}, &stage[at_{row}_{column}], stride);"
            ));
        }
        line("}".to_owned());

        line("fn sum_values(place: Place) {".to_owned());
        for column in 0..columns {
            for row in 0..down {
                line(format!(
                    "    let weight_{row}_{column} = {};",
                    weights_at(row, column)
                ));
            }
            for step in 0..steps {
                let at = column * size * tile_stride + step * size / halves;
                line(format!(
                    "    let value_{column}_{step} = coopLoadT<MatB>(&value_tile[{at}u], TILE_STRIDE);"
                ));
                for row in 0..down {
                    let sum = format!("sum_{row}_{step}");
                    line(format!(
                        "    {sum} = coopMultiplyAdd(weight_{row}_{column}, value_{column}_{step}, {sum});"
                    ));
                }
            }
        }
        line("}".to_owned());
    }

    /// The sums of a subgroup's rows, and the functions that touch all of them.
    fn write_sums(&self, text: &mut String) {
        let size = self.matrix.size;
        let [down, steps] = [self.down(), self.head_dim / size];
        let sums = || (0..steps).flat_map(|step| (0..down).map(move |row| (row, step)));
        let mut line = |line: String| *text += &(line + "\n");
        for (row, step) in sums() {
            line(format!("var<private> sum_{row}_{step}: MatC;"));
        }
        // Not left to an initial value: Metal does not say what that of a matrix is.
        line("var<private> zeros: MatC;".to_owned());
        line("fn clear_sums(place: Place) {".to_owned());
        line(
            "    zeros = coopLoadT<MatC>(&stage[place.rows_at * STAGE_STRIDE], STAGE_STRIDE);"
                .to_owned(),
        );
        for (row, step) in sums() {
            line(format!("    sum_{row}_{step} = zeros;"));
        }
        line("}".to_owned());

        // As many columns of matrices at a time as the stage holds.
        let columns = self.stage_width() / size;
        let stage_stride = self.stage_width() + STAGE_PADDING;
        let rounds: Vec<Vec<(usize, usize, usize)>> = (0..steps)
            .step_by(columns)
            .map(|first| {
                let in_round = first..steps.min(first + columns);
                let of_step = |step| (0..down).map(move |row| (row, step));
                let at = |row, step| row * size * stage_stride + (step - first) * size;
                let sums = in_round.flat_map(of_step);
                sums.map(|(row, step)| (row, step, at(row, step))).collect()
            })
            .collect();
        let store = |line: &mut dyn FnMut(String), round: &[(usize, usize, usize)]| {
            for (row, step, at) in round {
                let place = format!("at_{row}_{step}");
                line(format!(
                    "    let {place} = place.rows_at * STAGE_STRIDE + {at}u;"
                ));
                line(format!(
                    "    coopStoreT(sum_{row}_{step}, &stage[{place}], stride);"
                ));
            }
        };
        line("fn rescale_all(place: Place) {".to_owned());
        line("    let stride = STAGE_STRIDE;".to_owned());
        for round in &rounds {
            store(&mut line, round);
            line("    scale_stage(place);".to_owned());
            for (row, step, _) in round {
                line(format!(
                    "    sum_{row}_{step} = coopLoadT<MatC>(&stage[at_{row}_{step}], stride);"
                ));
            }
            line("    workgroupBarrier();".to_owned());
        }
        line("}".to_owned());

        line("fn finish_all(place: Place) {".to_owned());
        line("    let stride = STAGE_STRIDE;".to_owned());
        for (index, round) in rounds.iter().enumerate() {
            store(&mut line, round);
            let width = round.len() / down * size;
            line(format!(
                "    finish({}u, {width}u, place);",
                index * self.stage_width()
            ));
        }
        line("}".to_owned());
    }
}

/// Whether the kernel can compute this.
pub(crate) fn fits(shape: &super::attention::Shape) -> bool {
    shape.is_plain() && shape.soft_cap.is_none() && !shape.alibi
}

/// The grid for `n_rows` rows.
pub(crate) fn grid(tile: Tile, params: &Params, n_rows: usize) -> [u32; 3] {
    grid_of(params.n_head as usize, n_rows.div_ceil(tile.rows()))
}
