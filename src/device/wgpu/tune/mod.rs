//! What is fastest on an adapter, found by measuring: `select.rs` asks here first, and chooses by rule what nobody has
//! measured.
//!
//! A [`Subject`] is what there is to choose for, a [`Setting`] what is chosen. Every setting gives the same numbers but for
//! the order of sums, and one from a file is used only where the kernel is right with it.

mod attention;
mod file;
mod rounding;
mod run;
mod search;
#[cfg(test)]
mod tests;
mod tuner;

pub(crate) use self::run::TuneOptions;
pub(super) use self::run::tune;

use crate::gguf::WeightType;
use crate::kernels::attention::Shape;
use crate::kernels::attention_few::Splits;
use crate::kernels::matmul_coop::Tile;
use crate::kernels::teams::{FewRows, Teams};
use crate::kv_cache::KvType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// What there is to choose for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    FewRows(FewRows),
    ManyRows(ManyRows),
    Attention(AttentionOf, KvType),
}

/// A product with many rows by cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ManyRows {
    pub(super) weight: WeightType,
    /// Rows of the weights.
    pub(super) n_out: usize,
    pub(super) units_per_row: usize,
    /// Of [`ManyRows::RANGES`]; 0 for any.
    pub(super) n_rows: usize,
}

impl ManyRows {
    /// The numbers of rows that have one tile, and that of them which is measured.
    pub(super) const RANGES: [(RangeInclusive<usize>, usize); 3] = [
        (257..=usize::MAX, 512),
        (65..=256, 128),
        (super::select::FEW_ROWS + 1..=64, 32),
    ];
}

/// The heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AttentionOf {
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    window: Option<usize>,
    has_cap: bool,
}

impl From<&Shape> for AttentionOf {
    fn from(shape: &Shape) -> AttentionOf {
        AttentionOf {
            n_head: shape.n_head,
            n_head_kv: shape.n_head_kv,
            head_dim: shape.head_dim,
            window: shape.window,
            has_cap: shape.soft_cap.is_some(),
        }
    }
}

impl fmt::Display for Subject {
    /// Its name in the file: it says all that the choice depends on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::FewRows(product) => product.fmt(f),
            Subject::ManyRows(ManyRows {
                weight,
                n_out,
                units_per_row,
                n_rows,
            }) => {
                let n_cols = units_per_row * 32;
                let weight = weight.name();
                write!(f, "matmul_coop {weight} {n_out}x{n_cols}, {n_rows} rows")
            }
            Subject::Attention(heads, kv) => {
                let AttentionOf {
                    n_head,
                    n_head_kv,
                    head_dim,
                    window,
                    has_cap,
                } = heads;
                write!(f, "attention_few {n_head}/{n_head_kv}x{head_dim} {kv:?}")?;
                if let Some(window) = window {
                    write!(f, " window {window}")?;
                }
                f.write_str(if *has_cap { " capped" } else { "" })
            }
        }
    }
}

/// What is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Setting {
    Teams(Teams),
    /// [`Tile::shape`].
    Tile([usize; 5]),
    Splits(Splits),
    /// Whether few rows of activations become 8-bit integers.
    Int8(bool),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Teams(teams) => teams.fmt(f),
            Setting::Tile([down, across, rows, columns, units]) => write!(
                f,
                "{down}x{across} subgroups of {rows}x{columns} matrices, {units} units a step"
            ),
            Setting::Splits(Splits { most_whole, n }) => {
                write!(f, "{n} splits behind {most_whole} positions")
            }
            Setting::Int8(true) => f.write_str("int8"),
            Setting::Int8(false) => f.write_str("f32"),
        }
    }
}

/// What was tried for a subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) rule: Setting,
    pub(super) chosen: Setting,
    pub(super) trials: Vec<Trial>,
    /// Whether there was time for all that was to be tried.
    pub(super) is_complete: bool,
}

/// A setting and how long it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trial {
    pub(super) setting: Setting,
    /// Of one use.
    pub(super) nanoseconds: u64,
}

/// What a model needs to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct OfModel {
    /// The subjects, by the names of their entries.
    pub(super) subjects: Vec<String>,
    /// Whether few rows of activations become 8-bit integers, where there is a choice.
    pub(super) int8: Option<Entry>,
    /// Starts that measured.
    pub(super) n_starts: usize,
}

/// Of a model: what they have not measured to the end stays with the rules.
const MOST_STARTS: usize = 3;

/// What was found on an adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    /// By the subject's name.
    pub(super) entries: BTreeMap<String, Entry>,
    /// By [`model_key`].
    pub(super) models: BTreeMap<String, OfModel>,
}

impl Tuning {
    fn setting(&self, subject: &Subject) -> Option<Setting> {
        let entry = self.entries.get(&subject.to_string())?;
        Some(entry.chosen)
    }

    /// The teams of a product, where the kernel takes what was found.
    pub(super) fn teams(&self, product: &FewRows) -> Option<Teams> {
        match self.setting(&Subject::FewRows(*product))? {
            Setting::Teams(teams) => product.takes(&teams).then_some(teams),
            _ => None,
        }
    }

    /// The tile of a product, where it is one of those that there are.
    pub(super) fn tile(&self, product: &ManyRows, tiles: &[Tile]) -> Option<Tile> {
        match self.setting(&Subject::ManyRows(*product))? {
            Setting::Tile(shape) => tiles.iter().find(|tile| tile.shape() == shape).copied(),
            _ => None,
        }
    }

    /// The splits of attention, where there is room for what was found.
    pub(super) fn splits(&self, shape: &Shape, kv: KvType) -> Option<Splits> {
        match self.setting(&Subject::Attention(shape.into(), kv))? {
            Setting::Splits(splits) => splits.fits(shape).then_some(splits),
            _ => None,
        }
    }

    /// Whether a model has something left that another start may measure.
    pub(super) fn has_rest(&self, model: &str) -> bool {
        let Some(model) = self.models.get(model) else {
            return true;
        };
        let entries = model.subjects.iter().map(|name| self.entries.get(name));
        let is_rest = |entry: Option<&Entry>| entry.is_none_or(|entry| !entry.is_complete);
        let int8 = model.int8.as_ref().map(Some);
        model.n_starts < MOST_STARTS && entries.chain(int8).any(is_rest)
    }

    /// The same with a setting for a subject.
    fn with(&self, subject: &Subject, setting: Setting) -> Tuning {
        let entry = Entry {
            rule: setting,
            chosen: setting,
            trials: Vec::new(),
            is_complete: true,
        };
        let mut tuning = self.clone();
        tuning.entries.insert(subject.to_string(), entry);
        tuning
    }
}
