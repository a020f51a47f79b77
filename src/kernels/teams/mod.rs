//! How workgroups of the products with few rows are cut into teams (`common/matvec.wgsl`): what is free to choose
//! there, and what is chosen unless something faster is known.

use super::repack::{TEAM_SIZES, team_size};
use super::{Src, Variant, matvec_gated, matvec_heads};
use crate::gguf::WeightType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Teams of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Teams {
    /// Invocations that share rows: one of [`TEAM_SIZES`].
    pub(crate) size: u32,
    /// Invocations of a workgroup: one of [`WORKGROUPS`].
    pub(crate) workgroup: u32,
    /// Pairs of rows of weights that a team multiplies at a time, 1 or 2; always 2 of f32.
    pub(crate) pairs: u32,
}

/// What [`Teams::workgroup`] may be.
pub(crate) const WORKGROUPS: [u32; 3] = [64, 128, 256];

impl Teams {
    /// Pairs that all teams multiply at a time.
    pub(crate) fn n_pairs(&self) -> u32 {
        self.workgroup / self.size * self.pairs
    }

    /// A variant with such teams.
    pub(crate) fn put_into(&self, variant: Variant) -> Variant {
        Variant {
            workgroup: self.workgroup,
            int8_pairs: self.pairs,
            ..variant
        }
    }
}

impl fmt::Display for Teams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Teams {
            size,
            workgroup,
            pairs,
        } = self;
        let s = if *pairs == 1 { "" } else { "s" };
        write!(f, "teams of {size} in {workgroup}, {pairs} pair{s}")
    }
}

/// The kernels that have teams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Of {
    Matvec,
    Heads,
    Gated,
}

/// A product with few rows, as far as its speed depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FewRows {
    pub(crate) of: Of,
    pub(crate) weight: WeightType,
    pub(crate) src: Src,
    /// Rows of the weights.
    pub(crate) n_out: usize,
    pub(crate) units_per_row: usize,
}

impl FewRows {
    /// What is chosen without measuring: workgroups of 128 but where a large GPU would have few of them, or where
    /// larger ones were faster.
    pub(crate) fn rule(&self) -> Teams {
        let size = team_size(self.n_out, self.units_per_row);
        let teams = Teams {
            size,
            workgroup: 128,
            pairs: if self.src == Src::F32 { 2 } else { 1 },
        };
        match self.of {
            Of::Gated => matvec_gated::teams(self.n_out, size),
            // Queries, keys and values of 8B in Q4_0 on an NVIDIA H200: 6.4 instead of 9.9 us.
            Of::Heads if self.src == Src::Int8 => Teams {
                workgroup: 256,
                ..teams
            },
            Of::Matvec | Of::Heads => teams,
        }
    }

    /// Whether its kernel is right with such teams, and none of them is idle.
    pub(crate) fn takes(&self, teams: &Teams) -> bool {
        /// Elements of a row that an invocation normalises (`common/src_norm.wgsl`).
        const NORMED: u32 = 16;
        let is_known = TEAM_SIZES.contains(&teams.size) && WORKGROUPS.contains(&teams.workgroup);
        let has_pairs = match self.src {
            Src::F32 => teams.pairs == 2,
            Src::Int8 | Src::Norm => [1, 2].contains(&teams.pairs),
        };
        let is_normed =
            self.src != Src::Norm || self.units_per_row * 32 <= (NORMED * teams.workgroup) as usize;
        let fits = || match self.of {
            Of::Matvec => true,
            Of::Heads => matvec_heads::takes(teams),
            Of::Gated => matvec_gated::takes(teams),
        };
        is_known && has_pairs && is_normed && fits()
    }

    /// All that its kernel is right with.
    pub(crate) fn all(&self) -> impl Iterator<Item = Teams> + use<> {
        let of = |size| {
            WORKGROUPS.into_iter().flat_map(move |workgroup| {
                [1, 2].map(|pairs| Teams {
                    size,
                    workgroup,
                    pairs,
                })
            })
        };
        let every = TEAM_SIZES.into_iter().flat_map(of);
        let product = *self;
        every.filter(move |teams| product.takes(teams))
    }

    /// Those of [`FewRows::all`] whose members have units of the row.
    pub(crate) fn candidates(&self) -> Vec<Teams> {
        let has_work = |size: u32| size == TEAM_SIZES[0] || size as usize <= self.units_per_row;
        self.all().filter(|teams| has_work(teams.size)).collect()
    }
}

impl fmt::Display for FewRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FewRows {
            of,
            weight,
            src,
            n_out,
            units_per_row,
        } = self;
        let kernel = match of {
            Of::Matvec => "matvec",
            Of::Heads => "matvec_heads",
            Of::Gated => "matvec_gated",
        };
        let weight = weight.name();
        write!(
            f,
            "{kernel} {weight} {n_out}x{} {src:?}",
            units_per_row * 32
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_one_of_the_candidates_and_none_of_them_is_odd() {
        for of in [Of::Matvec, Of::Heads, Of::Gated] {
            for src in [Src::F32, Src::Int8, Src::Norm] {
                for (n_out, units_per_row) in [(1, 1), (576, 18), (1024, 64), (14336, 64)] {
                    let product = FewRows {
                        of,
                        weight: WeightType::Q4_0,
                        src,
                        n_out,
                        units_per_row,
                    };
                    let all = product.candidates();
                    let rule = product.rule();
                    assert!(product.takes(&rule), "{product}: {rule}");
                    assert!(
                        all.contains(&rule) || rule.size as usize > units_per_row,
                        "{product}: {rule}"
                    );
                    let different: std::collections::HashSet<_> = all.iter().collect();
                    assert_eq!(different.len(), all.len());
                    for teams in all {
                        let sums = 2 * teams.n_pairs();
                        assert!(sums <= teams.workgroup, "{product}: {teams}");
                    }
                }
            }
        }
    }

    #[test]
    fn teams_that_a_kernel_would_be_wrong_with_are_refused() {
        let product = FewRows {
            of: Of::Heads,
            weight: WeightType::Q4_0,
            src: Src::Norm,
            n_out: 64,
            units_per_row: 64,
        };
        let teams = |size, workgroup, pairs| Teams {
            size,
            workgroup,
            pairs,
        };
        assert!(product.takes(&teams(64, 128, 1)));
        assert!(!product.takes(&teams(64, 64, 2))); // 2048 elements, 64 invocations
        assert!(!product.takes(&teams(64, 128, 3)) && !product.takes(&teams(63, 128, 1)));
        let int8 = FewRows {
            src: Src::Int8,
            ..product
        };
        // A word of the cache has the columns of two pairs.
        assert!(!int8.takes(&teams(64, 64, 1)) && int8.takes(&teams(64, 64, 2)));
        let gated = FewRows {
            of: Of::Gated,
            ..int8
        };
        assert!(!gated.takes(&teams(64, 128, 1)) && !gated.takes(&teams(8, 256, 2)));
        assert!(gated.takes(&teams(8, 256, 1)));
        let f32 = FewRows {
            src: Src::F32,
            ..int8
        };
        assert!(!f32.takes(&teams(32, 128, 1)) && f32.takes(&teams(32, 128, 2)));
    }
}
