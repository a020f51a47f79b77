//! One pass over the bytes of a tensor: its hash, and how large its scales are.

use super::report::{BlockScale, TensorFault};
use crate::gguf::{MOST_SCALES, WeightType};
use std::ops::Range;
use xxhash_rust::xxh64::Xxh64;

/// Bytes that are hashed and then looked at, while they are in a core's cache.
const PIECE_BYTES: usize = 128 << 10;
/// Blocks of one weight, and of more, whose largest scale is counted once.
const FLOATS_TOGETHER: usize = 32;
const BLOCKS_TOGETHER: usize = 4;
/// The unit in which files are written.
const PAGE_BYTES: usize = 4096;
/// Bytes beside a run of zeros that may be zero by chance.
const EDGE_BYTES: usize = 16;
/// Exponents of an f32: the last is that of infinity and NaN.
const N_EXPONENTS: usize = 256;
const NOT_FINITE: usize = N_EXPONENTS - 1;
/// No weight of a sound model reaches 2^20: most files hold them, or their scales, in 16-bit floats.
const ABSOLUTE_LIMIT: usize = 127 + 20;
/// No scale of a sound matrix is 2^8 times that below which all but a hundredth of its scales lie: the
/// most seen is 2^4, of some 2600. A wrong bit at the top of a 16-bit float's exponent is 2^16.
const RELATIVE_LIMIT: usize = 8;
/// Fewer scales say nothing of each other.
const LEAST_TO_COMPARE: u64 = 16;

/// A tensor whose rows can be decoded.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) ty: WeightType,
    pub(super) n_cols: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    pub(super) fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.n_cols)
    }

    pub(super) fn bytes(&self, rows: Range<usize>) -> &'a [u8] {
        &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()]
    }

    /// Blocks that are counted once.
    fn together(&self) -> usize {
        match self.ty.block_len() {
            1 => FLOATS_TOGETHER,
            _ => BLOCKS_TOGETHER,
        }
    }
}

/// What a pass over some rows of a tensor has seen.
pub(super) struct Scan {
    /// Of each scale of a block, how many have which exponent.
    exponents: [[u64; N_EXPONENTS]; MOST_SCALES],
    pub(super) n_zero_rows: usize,
}

impl Scan {
    /// Looks at runs of rows. `hash` is given their bytes too.
    pub(super) fn new(rows: Rows<'_>, runs: &[Range<usize>], mut hash: Option<&mut Xxh64>) -> Scan {
        let mut scan = Scan {
            exponents: [[0; N_EXPONENTS]; MOST_SCALES],
            n_zero_rows: 0,
        };
        let row_bytes = rows.row_bytes();
        let piece_bytes = (PIECE_BYTES / row_bytes).max(1) * row_bytes;
        for run in runs {
            for piece in rows.bytes(run.clone()).chunks(piece_bytes) {
                if let Some(hash) = &mut hash {
                    hash.update(piece);
                }
                for row in piece.chunks_exact(row_bytes) {
                    scan.row(rows, row);
                }
            }
        }
        scan
    }

    fn row(&mut self, rows: Rows<'_>, row: &[u8]) {
        let mut bits = 0;
        rows.ty
            .scale_magnitudes(row, rows.together(), |magnitudes| {
                for (&magnitude, exponents) in magnitudes.iter().zip(&mut self.exponents) {
                    bits |= magnitude;
                    exponents[(magnitude >> 23) as usize % N_EXPONENTS] += 1;
                }
            });
        self.n_zero_rows += usize::from(bits == 0);
    }

    /// For each scale the exponent from which on it is too large.
    fn limits(&self, compares: bool, is_bounded: bool) -> [usize; MOST_SCALES] {
        self.exponents.each_ref().map(|counts| {
            let absolute = if is_bounded {
                ABSOLUTE_LIMIT
            } else {
                NOT_FINITE
            };
            // Zeros and what is not finite are no measure.
            let n: u64 = counts[1..NOT_FINITE].iter().sum();
            if !compares || n < LEAST_TO_COMPARE {
                return absolute;
            }
            let mut above = (n / 100).max(1);
            let usual = (1..NOT_FINITE).rev().find(|&exponent| {
                let is_usual = counts[exponent] > above;
                above = above.saturating_sub(counts[exponent]);
                is_usual
            });
            let limit = usual.map_or(absolute, |usual| usual + 1 + RELATIVE_LIMIT);
            limit.min(absolute)
        })
    }

    /// Scales that cannot be right. Where `compares` they are measured by each other, where
    /// `is_bounded` by what any model has.
    pub(super) fn faults(
        &self,
        rows: Rows<'_>,
        runs: &[Range<usize>],
        compares: bool,
        is_bounded: bool,
    ) -> Vec<TensorFault> {
        let limits = self.limits(compares, is_bounded);
        let mut faults = Vec::new();
        for (index, name) in rows.ty.scale_names().iter().enumerate() {
            let counts = &self.exponents[index];
            let find = |exponents: Range<usize>| {
                let n: u64 = counts[exponents.clone()].iter().sum();
                (n > 0).then(|| find(rows, runs, index, name, exponents))?
            };
            if let Some((scale, count)) = find(NOT_FINITE..N_EXPONENTS) {
                faults.push(TensorFault::NotFinite { scale, count });
            }
            if let Some((scale, count)) = find(limits[index]..NOT_FINITE) {
                let limit = f32::from_bits((limits[index] as u32) << 23);
                faults.push(TensorFault::TooLarge {
                    scale,
                    limit,
                    count,
                });
            }
        }
        faults
    }
}

/// The first scale with one of the exponents, and how many there are.
fn find(
    rows: Rows<'_>,
    runs: &[Range<usize>],
    index: usize,
    name: &'static str,
    exponents: Range<usize>,
) -> Option<(BlockScale, u64)> {
    let mut first = None;
    let mut count = 0;
    for row in runs.iter().cloned().flatten() {
        let mut block = 0;
        let bytes = rows.bytes(row..row + 1);
        rows.ty.scale_magnitudes(bytes, 1, |magnitudes| {
            if exponents.contains(&((magnitudes[index] >> 23) as usize)) {
                count += 1;
                first.get_or_insert(BlockScale {
                    row,
                    block,
                    name,
                    value: f32::from_bits(magnitudes[index]),
                });
            }
            block += 1;
        });
    }
    first.map(|first| (first, count))
}

/// Runs of zeros as a download leaves them that was not finished: they end where a page of the file
/// does, and cut rows at both ends, which padding does not. The first one, as the bytes of the file.
pub(super) fn hole(rows: Rows<'_>, runs: &[Range<usize>], offset: u64) -> Option<Range<u64>> {
    runs.iter().find_map(|run| {
        let first = offset + (run.start * rows.row_bytes()) as u64;
        let bytes = rows.bytes(run.clone());
        let mut next = 0;
        while let Some(zeros) = zero_pages(bytes, first, next) {
            let cuts_row = |at: usize| {
                let in_row = at % rows.row_bytes();
                (EDGE_BYTES..rows.row_bytes().saturating_sub(EDGE_BYTES)).contains(&in_row)
            };
            let beyond_page = (first as usize + zeros.end) % PAGE_BYTES;
            if cuts_row(zeros.start) && cuts_row(zeros.end) && beyond_page < EDGE_BYTES {
                return Some(first + zeros.start as u64..first + zeros.end as u64);
            }
            next = zeros.end;
        }
        None
    })
}

/// The first run of zeros, from byte `next` on, that has a whole page of the file, where the bytes
/// begin at byte `first` of it.
fn zero_pages(bytes: &[u8], first: u64, next: usize) -> Option<Range<usize>> {
    let to_page = (first + next as u64).next_multiple_of(PAGE_BYTES as u64) - first;
    let mut pages =
        (to_page as usize..bytes.len().saturating_sub(PAGE_BYTES - 1)).step_by(PAGE_BYTES);
    let is_zero = |&page: &usize| bytes[page..page + PAGE_BYTES].iter().all(|&byte| byte == 0);
    let page = pages.find(is_zero)?;
    let in_front = bytes[..page].iter().rev().take_while(|&&byte| byte == 0);
    let behind = bytes[page..].iter().take_while(|&&byte| byte == 0);
    Some(page - in_front.count()..page + behind.count())
}

/// The weight that all of some rows have, if they have one.
pub(super) fn constant(rows: Rows<'_>, runs: &[Range<usize>]) -> Option<f32> {
    let mut first = None;
    let mut decoded = vec![0.0; rows.ty.block_len()];
    for run in runs {
        let blocks = rows.bytes(run.clone()).chunks_exact(rows.ty.block_bytes());
        for block in blocks {
            rows.ty.decode(block, &mut decoded);
            let first: &mut f32 = first.get_or_insert(decoded[0]);
            // `+ 0.0`: a negative zero is a zero.
            let is_first = |x: &f32| (x + 0.0).to_bits() == (*first + 0.0).to_bits();
            if !decoded.iter().all(is_first) {
                return None;
            }
        }
    }
    first
}
