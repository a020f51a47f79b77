//! Weights as the kernels read them: the fields of a file's blocks apart, in planes of `u32` words.
//!
//! A unit is 32 consecutive weights of a row; rows are padded with zeros to whole units, which only
//! float types need. `blocks/TYPE.wgsl` states the planes of a type and decodes them, [`decoder`]
//! is that text. Nothing is rounded, and nothing grows but for the padding of a plane to 16 bytes, and
//! the codewords of the types that have them: up to 4 KiB behind the last plane.

mod codebooks;
mod pack;

use super::ROW_ALIGNMENT;
use crate::gguf::WeightType;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Weights in a unit.
const UNIT: usize = ROW_ALIGNMENT;
/// Planes are multiples of this: 16 bytes.
const PLANE_BITS: usize = 128;

/// What [`Matrix::team_size`] may be.
pub(crate) const TEAM_SIZES: [u32; 4] = [8, 16, 32, 64];

/// The place of a table of codewords among the planes.
const TABLE: usize = 3;

/// `Matrix` of `common/matrix.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Matrix {
    pub(crate) n_rows: u32,
    pub(crate) first_row: u32,
    pub(crate) units_per_row: u32,
    /// Invocations that share a row in a product with few rows.
    pub(crate) team_size: u32,
    pub(crate) planes: [u32; 4],
}

/// The WGSL that decodes a weight type.
pub(crate) fn decoder(ty: WeightType) -> &'static str {
    match ty {
        WeightType::F32 => include_str!("../blocks/f32.wgsl"),
        WeightType::F16 => include_str!("../blocks/f16.wgsl"),
        WeightType::BF16 => include_str!("../blocks/bf16.wgsl"),
        WeightType::Q4_0 => include_str!("../blocks/q4_0.wgsl"),
        WeightType::Q4_1 => include_str!("../blocks/q4_1.wgsl"),
        WeightType::Q5_0 => include_str!("../blocks/q5_0.wgsl"),
        WeightType::Q5_1 => include_str!("../blocks/q5_1.wgsl"),
        WeightType::Q8_0 => include_str!("../blocks/q8_0.wgsl"),
        WeightType::Q4_K => include_str!("../blocks/q4_k.wgsl"),
        WeightType::Q5_K => include_str!("../blocks/q5_k.wgsl"),
        WeightType::Q6_K => include_str!("../blocks/q6_k.wgsl"),
        WeightType::Q2_K => include_str!("../blocks/q2_k.wgsl"),
        WeightType::Q3_K => include_str!("../blocks/q3_k.wgsl"),
        WeightType::IQ4_NL => concat!(
            include_str!("../blocks/iq4_values.wgsl"),
            include_str!("../blocks/iq4_nl.wgsl")
        ),
        WeightType::IQ4_XS => concat!(
            include_str!("../blocks/iq4_values.wgsl"),
            include_str!("../blocks/iq4_xs.wgsl")
        ),
        WeightType::MXFP4 => include_str!("../blocks/mxfp4.wgsl"),
        WeightType::TQ1_0 => include_str!("../blocks/tq1_0.wgsl"),
        WeightType::TQ2_0 => include_str!("../blocks/tq2_0.wgsl"),
        WeightType::IQ3_XXS => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../blocks/iq3_xxs.wgsl"),
        ),
        WeightType::IQ3_S => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../blocks/iq3_s.wgsl"),
        ),
        WeightType::IQ2_XXS => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../common/codebook_iq2.wgsl"),
            include_str!("../blocks/iq2_xxs.wgsl"),
        ),
        WeightType::IQ2_XS => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../common/codebook_iq2.wgsl"),
            include_str!("../blocks/iq2_xs.wgsl"),
        ),
        WeightType::IQ2_S => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../common/codebook_iq2.wgsl"),
            include_str!("../blocks/iq2_s.wgsl"),
        ),
        WeightType::IQ1_S => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../common/codebook_iq1.wgsl"),
            include_str!("../blocks/iq1_s.wgsl"),
        ),
        WeightType::IQ1_M => concat!(
            include_str!("../common/codebook.wgsl"),
            include_str!("../common/codebook_iq1.wgsl"),
            include_str!("../blocks/iq1_m.wgsl"),
        ),
    }
}

/// Whether the two halves of a unit have offsets of their own.
pub(crate) fn has_two_offsets(ty: WeightType) -> bool {
    ty == WeightType::Q2_K
}

/// Whether a type has codewords, whose table lies behind the planes.
pub(crate) fn has_codebook(ty: WeightType) -> bool {
    !codebooks::table(ty).is_empty()
}

/// Bits that a unit takes in each plane.
fn plane_bits(ty: WeightType) -> &'static [usize] {
    match ty {
        WeightType::F32 => &[1024],
        WeightType::F16 | WeightType::BF16 => &[512],
        WeightType::Q4_0 => &[128, 16],
        WeightType::Q4_1 => &[128, 32],
        WeightType::Q5_0 => &[128, 32, 16],
        WeightType::Q5_1 => &[128, 32, 32],
        WeightType::Q8_0 => &[256, 16],
        WeightType::Q4_K => &[128, 16],
        WeightType::Q5_K => &[128, 16, 32],
        WeightType::Q6_K => &[128, 64, 16, 2],
        WeightType::Q2_K => &[64, 16, 4],
        WeightType::Q3_K => &[64, 32, 12, 2],
        WeightType::IQ4_NL => &[128, 16],
        WeightType::IQ4_XS => &[128, 8],
        WeightType::MXFP4 => &[128, 8],
        WeightType::TQ1_0 => &[48, 4, 2],
        WeightType::TQ2_0 => &[64, 2],
        WeightType::IQ3_XXS => &[64, 32, 2],
        WeightType::IQ3_S => &[64, 32, 14],
        WeightType::IQ2_XXS => &[64, 2],
        WeightType::IQ2_XS => &[64, 8, 2],
        WeightType::IQ2_S => &[64, 16, 2],
        WeightType::IQ1_S => &[32, 16, 2],
        WeightType::IQ1_M => &[32, 16, 8],
    }
}

/// Some whole rows of a weight matrix in one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) ty: WeightType,
    /// In the whole matrix.
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
}

impl Shard {
    /// Rows given to [`Shard::repack_rows`] start at a multiple of this, since as many may share a word.
    pub(crate) fn row_step(&self) -> usize {
        match self.ty {
            WeightType::MXFP4 => 4,
            _ => 2,
        }
    }

    /// The shards of a matrix of `n_rows` rows, in order, each of at most `max_bytes`; none where
    /// `max_bytes` does not hold one row.
    pub(crate) fn split(
        ty: WeightType,
        n_rows: usize,
        n_cols: usize,
        max_bytes: usize,
    ) -> Vec<Shard> {
        match rows_per_shard(ty, n_cols, max_bytes) {
            0 => Vec::new(),
            step => (0..n_rows)
                .step_by(step)
                .map(|first_row| Shard {
                    ty,
                    first_row,
                    n_rows: step.min(n_rows - first_row),
                    n_cols,
                })
                .collect(),
        }
    }

    /// Units of a row.
    fn units_per_row(&self) -> usize {
        self.n_cols.div_ceil(UNIT)
    }

    /// Words of its binding.
    pub(crate) fn words(&self) -> usize {
        let n_units = self.n_rows * self.units_per_row();
        plane_bits(self.ty)
            .iter()
            .map(|bits| plane_words(n_units, *bits))
            .sum::<usize>()
            + codebooks::table(self.ty).len()
    }

    /// As many of its rows as a shard of their own.
    fn part(&self, n_rows: usize) -> Shard {
        Shard { n_rows, ..*self }
    }

    /// The most words that [`Shard::repack_rows`] hands out for so many rows.
    pub(crate) fn part_words(&self, n_rows: usize) -> usize {
        self.part(n_rows).words()
    }

    /// Word offset of each plane, a table the last; zero where the type has no such plane.
    fn planes(&self) -> [usize; 4] {
        let n_units = self.n_rows * self.units_per_row();
        let mut planes = [0; 4];
        let mut next = 0;
        for (plane, bits) in planes.iter_mut().zip(plane_bits(self.ty)) {
            *plane = next;
            next += plane_words(n_units, *bits);
        }
        if has_codebook(self.ty) {
            planes[TABLE] = next;
        }
        planes
    }

    /// What the kernels are told of it.
    pub(crate) fn matrix(&self) -> Matrix {
        Matrix {
            n_rows: self.n_rows as u32,
            first_row: self.first_row as u32,
            units_per_row: self.units_per_row() as u32,
            team_size: team_size(self.n_rows, self.units_per_row()),
            planes: self.planes().map(|plane| plane as u32),
        }
    }

    /// Repacks `rows` of this shard from their bytes in the file and hands out each run of words with
    /// its offset in the binding. Calls for disjoint rows write disjoint words, so that a loader may
    /// stream a shard through a small buffer, several parts at a time.
    ///
    /// `rows` starts at a multiple of [`Shard::row_step`], and ends at one or with the shard. The words
    /// are made in `scratch`, whatever it holds.
    pub(crate) fn repack_rows(
        &self,
        rows: Range<usize>,
        file_bytes: &[u8],
        scratch: &mut Vec<u32>,
        mut write: impl FnMut(usize, &[u32]),
    ) {
        assert!(rows.end <= self.n_rows && rows.start.is_multiple_of(self.row_step()));
        assert!(rows.end == self.n_rows || rows.end.is_multiple_of(self.row_step()));
        assert_eq!(
            file_bytes.len(),
            rows.len() * self.ty.row_bytes(self.n_cols)
        );

        let part = self.part(rows.len());
        scratch.clear();
        scratch.resize(part.words(), 0);
        pack::pack(&part, file_bytes, scratch);

        let starts = part.runs(0..part.n_rows).map(|words| words.start);
        for (words, start) in self.runs(rows).zip(starts) {
            write(words.start, &scratch[start..][..words.len()]);
        }
    }

    /// The words of the binding that hold some rows, which are as [`Shard::repack_rows`] wants them: a
    /// run of words in each plane. A table counts among those of the first row.
    pub(crate) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let units_before = rows.start * self.units_per_row();
        let n_units = rows.len() * self.units_per_row();
        let planes = self.planes();
        let runs = planes.into_iter().zip(plane_bits(self.ty));
        let runs = runs.map(move |(plane, bits)| {
            let start = plane + units_before * bits / 32;
            start..start + (n_units * bits).div_ceil(32)
        });
        let table = planes[TABLE]..planes[TABLE] + codebooks::table(self.ty).len();
        runs.chain((units_before == 0 && !table.is_empty()).then_some(table))
    }

    /// The row of this shard that a bit of a word of the binding, in the given run of [`Shard::runs`],
    /// belongs to.
    pub(crate) fn row_of(&self, plane: usize, word: usize, bit: usize) -> usize {
        let Some(bits) = plane_bits(self.ty).get(plane) else {
            return 0;
        };
        let bit = (word - self.planes()[plane]) * 32 + bit;
        bit / bits / self.units_per_row()
    }
}

/// The most rows that a shard of `max_bytes` holds: a multiple of 64 (a tile) where it holds as many.
fn rows_per_shard(ty: WeightType, n_cols: usize, max_bytes: usize) -> usize {
    const TILE: usize = 64;
    // Word offsets are `u32`.
    let table_bytes = codebooks::table(ty).len() * 4;
    let max_bits = max_bytes.min(u32::MAX as usize).saturating_sub(table_bytes) * 8;
    let planes = plane_bits(ty);
    let rounded_up = planes.iter().filter(|bits| *bits % PLANE_BITS != 0).count() * PLANE_BITS;
    let row_bits = n_cols.div_ceil(UNIT).max(1) * planes.iter().sum::<usize>();
    match max_bits.saturating_sub(rounded_up) / row_bits {
        n_rows if n_rows < TILE => n_rows,
        n_rows => n_rows / TILE * TILE,
    }
}

/// Invocations that share a row of a matrix in a product with few rows: as few as leave each of them four
/// units, since what they have must be added up in the end; but more where the rows are too few to keep a
/// large GPU busy, as long as each of them has one.
pub(super) fn team_size(n_rows: usize, units_per_row: usize) -> u32 {
    /// Invocations of a kernel that has two rows for each team.
    const BUSY: usize = 1 << 16;
    const MOST: usize = 64;
    let mut size = 8;
    while size < MOST / 2 && size * 4 < units_per_row {
        size *= 2;
    }
    while size < MOST && size * 2 < units_per_row && n_rows / 2 * size < BUSY {
        size *= 2;
    }
    size as u32
}

/// Words of a plane.
fn plane_words(n_units: usize, bits: usize) -> usize {
    (n_units * bits).div_ceil(PLANE_BITS) * PLANE_BITS / 32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn bytes(n: usize) -> Vec<u8> {
        (0..251).cycle().take(n).collect()
    }

    pub(super) fn repacked(shard: &Shard, step: usize, file: &[u8]) -> Vec<u32> {
        let row_bytes = shard.ty.row_bytes(shard.n_cols);
        let mut words = vec![0; shard.words()];
        for start in (0..shard.n_rows).step_by(step) {
            let rows = start..shard.n_rows.min(start + step);
            let part = &file[start * row_bytes..rows.end * row_bytes];
            shard.repack_rows(rows, part, &mut vec![7; 3], |offset, part| {
                words[offset..][..part.len()].copy_from_slice(part);
            });
        }
        words
    }

    #[test]
    fn planes_hold_as_many_bits_as_the_file() {
        for ty in WeightType::ALL {
            let bits: usize = plane_bits(ty).iter().sum();
            assert_eq!(bits * ty.block_len(), ty.block_bytes() * 8 * UNIT, "{ty:?}");
        }
    }

    #[test]
    fn repacking_in_parts_gives_what_repacking_at_once_gives() {
        for ty in WeightType::ALL {
            let n_cols = match ty.is_quantised() {
                true => ty.block_len() * 3,
                false => 33,
            };
            let shard = Shard {
                ty,
                first_row: 5,
                n_rows: 13,
                n_cols,
            };
            let file = bytes(13 * ty.row_bytes(n_cols));
            let whole = repacked(&shard, 16, &file);
            let step = shard.row_step();
            assert_eq!(repacked(&shard, step, &file), whole, "{ty:?}");
            assert_eq!(repacked(&shard, 2 * step, &file), whole, "{ty:?}");
        }
    }

    #[test]
    fn teams_are_of_8_to_64_and_have_work_for_most_members() {
        for n_rows in [1, 576, 4096, 128_256] {
            for units in [1, 2, 18, 48, 64, 128, 448] {
                let size = team_size(n_rows, units);
                assert!([8, 16, 32, 64].contains(&size), "{n_rows}, {units}: {size}");
                assert!(
                    size == 8 || size as usize <= units,
                    "{n_rows}, {units}: {size}"
                );
            }
        }
        assert_eq!(team_size(4096, 128), 32);
        assert_eq!(team_size(1024, 128), 64);
        assert_eq!(team_size(49152, 18), 8);
        assert_eq!(team_size(576, 18), 16);
    }

    #[test]
    fn shards_cover_every_row_and_fit() {
        for ty in WeightType::ALL {
            let table_bytes = codebooks::table(ty).len() * 4;
            for (n_rows, max_bytes) in [(1000, 100_000), (1000, 20_000), (3, 2048), (3, 1 << 30)] {
                let max_bytes = max_bytes + table_bytes;
                let shards = Shard::split(ty, n_rows, 256, max_bytes);
                assert!(
                    shards.iter().all(|shard| shard.words() * 4 <= max_bytes),
                    "{ty:?}"
                );
                let mut next = 0;
                for shard in &shards {
                    assert_eq!(shard.first_row, next, "{ty:?}");
                    next += shard.n_rows;
                }
                assert_eq!(next, n_rows, "{ty:?}");
            }
            assert!(
                Shard::split(ty, 1, 256, 16 + table_bytes).is_empty(),
                "{ty:?}"
            );
        }
        let exact = Shard::split(WeightType::F32, 128, 256, 128 * 256 * 4);
        assert_eq!(exact.len(), 1);
    }
}
