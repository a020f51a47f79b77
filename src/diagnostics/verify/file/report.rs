//! What the check of a file says.

use super::super::depth::Depth;
use serde::Serialize;
use std::fmt;

/// What is wrong with a tensor of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum TensorFault {
    /// A scale of a block, or a weight of a float type, is infinite or not a number.
    NotFinite {
        /// The first such scale.
        scale: BlockScale,
        /// How many there are.
        count: u64,
    },
    /// A scale of a block, or a weight of a float type, is far beyond those of the other blocks or of
    /// any model.
    TooLarge {
        /// The first such scale.
        scale: BlockScale,
        /// The largest magnitude that can be right here.
        limit: f32,
        /// How many there are.
        count: u64,
    },
    /// Every weight is zero.
    AllZero,
    /// Every weight of a matrix is the same.
    Constant {
        /// That weight.
        value: f32,
    },
    /// Most rows of a matrix are zero.
    ZeroRows {
        /// Rows that are.
        count: usize,
        /// Rows that were looked at.
        n_rows: usize,
    },
    /// A run of zeros that cuts rows at both ends, as where a part of a download is missing.
    Hole {
        /// The run's first byte in the file.
        offset: u64,
        /// Its length.
        n_bytes: u64,
    },
    /// The embedding of a token of ordinary text, or of one that begins or ends it, is zero.
    ZeroToken {
        /// The token, which is the row.
        token_id: u32,
    },
    /// Two tokens have the same embedding.
    SameTokens {
        /// The tokens, which are the rows.
        token_ids: [u32; 2],
    },
}

/// A scale of a block, or a weight of a float type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockScale {
    /// Row in the tensor.
    pub row: usize,
    /// Block in the row; the column for a float type.
    pub block: usize,
    /// Its name in ggml's struct, e.g. `d`; `weight` for a float type.
    pub name: &'static str,
    /// Its magnitude.
    pub value: f32,
}

impl fmt::Display for BlockScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlockScale {
            row,
            block,
            name,
            value,
        } = self;
        write!(f, "row {row}, block {block}: |{name}| is {value:e}")
    }
}

impl fmt::Display for TensorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |f: &mut fmt::Formatter<'_>, count: u64| match count {
            0 | 1 => Ok(()),
            count => write!(f, " ({count} such scales)"),
        };
        match self {
            TensorFault::NotFinite { scale, count } => {
                write!(f, "{scale}")?;
                more(f, *count)
            }
            TensorFault::TooLarge {
                scale,
                limit,
                count,
            } => {
                write!(f, "{scale}, expected at most {limit:e}")?;
                more(f, *count)
            }
            TensorFault::AllZero => f.write_str("every weight is zero"),
            TensorFault::Constant { value } => write!(f, "every weight is {value:e}"),
            TensorFault::ZeroRows { count, n_rows } => {
                write!(f, "{count} of {n_rows} rows are zero")
            }
            TensorFault::Hole { offset, n_bytes } => write!(
                f,
                "{n_bytes} bytes are zero from byte {offset} of the file on, as where a download was not \
                 finished"
            ),
            TensorFault::ZeroToken { token_id } => {
                write!(f, "row {token_id}, of a token that texts have, is zero")
            }
            TensorFault::SameTokens {
                token_ids: [first, second],
            } => write!(f, "rows {first} and {second}, of two tokens, are the same"),
        }
    }
}

/// What the check found of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// The name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// ggml's name of the type, e.g. `q4_K`.
    pub ty: &'static str,
    /// Outermost first: a matrix is `[n_rows, n_cols]`.
    pub shape: Vec<usize>,
    /// Size in the file.
    pub n_bytes: u64,
    /// Bytes that were looked at.
    pub checked_bytes: u64,
    /// The XXH64 of all bytes in 16 hexadecimal digits, as llama.cpp's `llama-gguf-hash --xxh64` prints
    /// it; `None` where not all were looked at.
    pub hash: Option<String>,
    /// Rows of zeros among those that were looked at. An embedding may have some, of unused tokens.
    pub n_zero_rows: usize,
    /// What is wrong; mostly nothing.
    pub faults: Vec<TensorFault>,
}

/// The outcome of the check of a file: its structure was checked when it was opened, this is about
/// what its tensors hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileReport {
    /// How much was asked for.
    pub depth: Depth,
    /// Every tensor in the file's order.
    pub tensors: Vec<TensorReport>,
}

impl FileReport {
    /// Whether no tensor has a fault.
    pub fn passed(&self) -> bool {
        self.faults().next().is_none()
    }

    /// Every fault with the name of its tensor.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &TensorFault)> {
        let tensors = self.tensors.iter();
        tensors.flat_map(|tensor| {
            let faults = tensor.faults.iter();
            faults.map(|fault| (tensor.name.as_str(), fault))
        })
    }

    /// Bytes of all tensors.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.n_bytes).sum()
    }

    /// Bytes that were looked at.
    pub fn checked_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.checked_bytes).sum()
    }
}

/// Faults that are written out; the fields have all.
const MOST_SHOWN: usize = 5;

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_tensors = self.tensors.len();
        let (checked, all) = (self.checked_bytes(), self.n_bytes());
        let n_faults = self.faults().count();
        if n_faults == 0 {
            return write!(
                f,
                "{checked} of {all} bytes of {n_tensors} tensors have sound scales and weights"
            );
        }
        for (index, (tensor, fault)) in self.faults().take(MOST_SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}tensor `{tensor}`: {fault}")?;
        }
        match n_faults.saturating_sub(MOST_SHOWN) {
            0 => write!(f, " ({checked} of {all} bytes of {n_tensors} tensors)"),
            more => write!(
                f,
                "; and {more} more ({checked} of {all} bytes of {n_tensors} tensors)"
            ),
        }
    }
}
