//! Looks for values that cannot be right in the rows of a step's result.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// 2^56, as bits: squares of 65536 such values add up to more than 32-bit floats hold, so that the next norm may
/// be infinite. Sound models stay far below, but not below the largest 16-bit float: 128 tokens of prose reach
/// 24758 in SmolLM2 135M and 103795 in Gemma 3 270M.
const SATURATED: u32 = 0x5B80_0000;
/// All bits of a float but its sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
const INFINITY: u32 = 0x7F80_0000;

/// Why a row cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    NotANumber,
    Infinite,
    /// As large as 2^56.
    Saturated,
    /// All of it is zero.
    Zero,
}

impl Wrong {
    /// In the order of [`Slot::first`].
    pub(crate) const ALL: [Wrong; 4] = [
        Wrong::NotANumber,
        Wrong::Infinite,
        Wrong::Saturated,
        Wrong::Zero,
    ];

    /// What the [`largest`] of a row says of it.
    pub(crate) fn of(largest: u32) -> Option<Wrong> {
        match largest {
            0 => Some(Wrong::Zero),
            INFINITY => Some(Wrong::Infinite),
            bits if bits > INFINITY => Some(Wrong::NotANumber),
            bits if bits >= SATURATED => Some(Wrong::Saturated),
            _ => None,
        }
    }

    /// As [`Wrong::of`], for the row of a layer at a position: at the first one zeros are right where the
    /// embedding is zero, as that of a padding token may be.
    pub(crate) fn of_layer(largest: u32, position: usize) -> Option<Wrong> {
        Wrong::of(largest).filter(|wrong| *wrong != Wrong::Zero || position > 0)
    }

    /// What a row of this kind has.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Wrong::NotANumber => "a value that is not a number",
            Wrong::Infinite => "an infinite value",
            Wrong::Saturated => "a value of 2^56 or more",
            Wrong::Zero => "nothing but zeros",
        }
    }
}

/// The largest magnitude of some values, as bits: by them infinity is larger than every number, and what is
/// not a number larger than that.
pub(crate) fn largest(values: &[f32]) -> u32 {
    let magnitudes = values.iter().map(|value| value.to_bits() & MAGNITUDE);
    magnitudes.max().unwrap_or(0)
}

/// What was seen of the result of one step. Zeroed before the first batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Slot {
    /// Rows that were looked at.
    pub(crate) n_rows: u32,
    /// For each of [`Wrong::ALL`] the complement of the first position that has it; 0 for none.
    pub(crate) first: [u32; 4],
}

impl Slot {
    /// The first position at fault.
    pub(crate) fn first_wrong(&self) -> Option<(usize, Wrong)> {
        let found = self.first.iter().zip(Wrong::ALL);
        let found = found.filter(|(complement, _)| **complement > 0);
        found
            .map(|(complement, wrong)| (!complement as usize, wrong))
            .min_by_key(|(position, _)| *position)
    }
}

/// The `Params` of `sentinel.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) slot: u32,
    pub(crate) stride: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    pub(crate) fn new(slot: usize, width: usize) -> Params {
        Params {
            slot: slot as u32,
            stride: row_stride(width) as u32,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "sentinel",
    wgsl: include_str!("sentinel.wgsl"),
    bindings: &[("src", Access::Read), ("slots", Access::ReadWrite)],
    params_bytes: size_of::<Params>(),
    uses: Uses::NOTHING,
};

pub(crate) fn grid(_: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(1, n_rows)
}

/// Adds the rows `[n_rows, width]`, the first of them at `position`, to what a slot holds.
#[cfg(test)]
pub(crate) fn twin(rows: &[f32], width: usize, position: usize, slot: &mut Slot) {
    for (position, row) in (position..).zip(rows.chunks_exact(width)) {
        slot.n_rows += 1;
        if let Some(wrong) = Wrong::of_layer(largest(row), position) {
            let first = &mut slot.first[wrong as usize];
            *first = (*first).max(!(position as u32));
        }
    }
}
