//! Which batches are looked at for results that cannot be right, and what is said of those.

use crate::error::{Error, Result};
use crate::kernels::sentinel::{Slot, Wrong, largest};
use std::str::FromStr;

/// How often a running model is looked at for results that cannot be right: in the result of a layer a value
/// that is not a number, is infinite or reaches 2^56 (from where the next norm may overflow), or a row of
/// zeros. What is found is [`Error::WrongResult`] with step and position.
///
/// Logits are looked at after every token, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sentinels {
    /// Never; nor is an answer refused that repeats one token from its start, whatever was asked.
    Off,
    /// In every batch of several tokens, in the first batch of one token behind these, and in every `n`th from
    /// there on: a fault that stays is found at most `n` tokens after it came.
    Every(usize),
}

impl Default for Sentinels {
    /// Every 32nd token. On a GPU a watched token has one more dispatch for each layer.
    fn default() -> Self {
        Sentinels::Every(32)
    }
}

impl FromStr for Sentinels {
    type Err = Error;

    /// `off`, or a number of tokens.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("off", _) => Ok(Sentinels::Off),
            (_, Ok(n)) => Sentinels::Every(n).checked(),
            (_, Err(_)) => Err(Error::InvalidArgument {
                name: "sentinels",
                message: format!("`{text}`, expected off or a number of tokens"),
            }),
        }
    }
}

impl Sentinels {
    /// # Errors
    /// [`Error::InvalidArgument`] for every 0th token.
    pub(crate) fn checked(self) -> Result<Self> {
        match self {
            Sentinels::Every(0) => Err(Error::InvalidArgument {
                name: "sentinels",
                message: "every 0 tokens, expected at least 1".to_owned(),
            }),
            sound => Ok(sound),
        }
    }
}

/// Decides batch by batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    sentinels: Sentinels,
    /// The first position of the present run of batches of one token.
    start: usize,
    /// Behind the last batch.
    next: usize,
}

impl Watch {
    pub(crate) fn new(sentinels: Sentinels) -> Watch {
        Watch {
            sentinels,
            start: 0,
            next: 0,
        }
    }

    /// Whether a batch would be watched if it came next.
    pub(crate) fn would_take(&self, position: usize, n_rows: usize) -> bool {
        match self.sentinels {
            Sentinels::Off => false,
            Sentinels::Every(n) => {
                n_rows > 1
                    || position != self.next
                    || (position - self.start).is_multiple_of(n.max(1))
            }
        }
    }

    /// Whether the batch that runs now is watched.
    pub(crate) fn takes(&mut self, position: usize, n_rows: usize) -> bool {
        let takes = self.would_take(position, n_rows);
        let end = position + n_rows;
        if n_rows > 1 {
            self.start = end;
        } else if position != self.next {
            self.start = position;
        }
        self.next = end;
        takes
    }
}

fn wrong_result(step: &str, message: String) -> Error {
    Error::WrongResult {
        step: step.to_owned(),
        message,
    }
}

/// What a slot says of `n_rows` rows of a layer's result.
///
/// # Errors
/// [`Error::WrongResult`], also where there were other rows than these.
pub(crate) fn check_slot(step: &str, slot: &Slot, n_rows: usize) -> Result<()> {
    if slot.n_rows as usize != n_rows {
        let message = format!("{} rows were looked at, expected {n_rows}", slot.n_rows);
        return Err(wrong_result(step, message));
    }
    match slot.first_wrong() {
        None => Ok(()),
        Some((position, wrong)) => {
            let message = format!("the row of position {position} has {}", wrong.what());
            Err(wrong_result(step, message))
        }
    }
}

/// Looks at the rows `[n_rows, width]` of a layer's result, of which the first is at `position`.
///
/// # Errors
/// [`Error::WrongResult`] for the first row that cannot be right.
pub(crate) fn check_layer(step: &str, rows: &[f32], width: usize, position: usize) -> Result<()> {
    check_rows(step, rows, width, position, Wrong::of_layer)
}

/// Looks at logits, as [`check_layer`] does. A row of zeros is wrong wherever it is.
///
/// # Errors
/// [`Error::WrongResult`] for the first row that cannot be right.
pub(crate) fn check_logits(rows: &[f32], width: usize, position: usize) -> Result<()> {
    check_rows("result_output", rows, width, position, |largest, _| {
        Wrong::of(largest)
    })
}

fn check_rows(
    step: &str,
    rows: &[f32],
    width: usize,
    position: usize,
    judge: impl Fn(u32, usize) -> Option<Wrong>,
) -> Result<()> {
    for (position, row) in (position..).zip(rows.chunks_exact(width)) {
        let largest_of_row = largest(row);
        if let Some(wrong) = judge(largest_of_row, position) {
            let is_largest = |value: &f32| largest(&[*value]) == largest_of_row;
            let at = match row.iter().position(is_largest) {
                Some(column) if wrong != Wrong::Zero => format!(" in column {column}"),
                _ => String::new(),
            };
            let what = wrong.what();
            let message = format!("the row of position {position} has {what}{at}");
            return Err(wrong_result(step, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_token_behind_a_prompt_is_watched_and_every_nth_from_there() {
        let mut watch = Watch::new(Sentinels::Every(4));
        assert!(watch.takes(0, 7));
        let taken: Vec<usize> = (7..20).filter(|&p| watch.takes(p, 1)).collect();
        assert_eq!(taken, [7, 11, 15, 19]);
        // Elsewhere it begins anew, and so it does behind another prompt.
        let taken: Vec<usize> = (9..15).filter(|&p| watch.takes(p, 1)).collect();
        assert_eq!(taken, [9, 13]);
        assert!(watch.takes(15, 2));
        let taken: Vec<usize> = (17..22).filter(|&p| watch.takes(p, 1)).collect();
        assert_eq!(taken, [17, 21]);
    }

    #[test]
    fn what_is_foretold_of_the_next_batch_comes_true() {
        let mut watch = Watch::new(Sentinels::Every(3));
        for (position, n_rows) in [(0, 1), (1, 1), (2, 5), (7, 1), (8, 1), (9, 1), (10, 1)] {
            let foretold = watch.would_take(position, n_rows);
            assert_eq!(watch.takes(position, n_rows), foretold);
        }
        let mut off = Watch::new(Sentinels::Off);
        assert!((0..40).all(|p| !off.takes(p, 1)) && !off.takes(40, 9));
    }

    #[test]
    fn sentinels_are_read_or_refused() {
        assert_eq!("off".parse::<Sentinels>().unwrap(), Sentinels::Off);
        assert_eq!("3".parse::<Sentinels>().unwrap(), Sentinels::Every(3));
        for (text, expected) in [("0", "at least 1"), ("on", "expected off"), ("-1", "off")] {
            let error = text.parse::<Sentinels>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rows_that_cannot_be_right_are_an_error_with_position_and_column() {
        let limit = 2f32.powi(56);
        let below = f32::from_bits(limit.to_bits() - 1);
        assert!(check_layer("l", &[1.0, below, -1e-45, -0.0], 2, 0).is_ok());
        for (wrong, expected) in [
            (f32::NAN, "not a number in column 1"),
            (-f32::NAN, "not a number in column 1"),
            (f32::NEG_INFINITY, "an infinite value in column 1"),
            (-limit, "2^56 or more in column 1"),
        ] {
            let error = check_layer("blk.3.l_out", &[1.0, 1.0, 1.0, wrong], 2, 6).unwrap_err();
            let error = error.to_string();
            let named = error.contains("`blk.3.l_out`") && error.contains("position 7 has");
            assert!(named && error.contains(expected), "{error}");
        }
        // A row of zeros is right at the first position only, and there for a layer only.
        assert!(check_layer("l", &[0.0, -0.0], 2, 0).is_ok());
        let error = check_layer("l", &[0.0, 0.0, 0.0, -0.0], 2, 0).unwrap_err();
        assert!(error.to_string().contains("position 1 has nothing"));
        assert!(check_logits(&[0.0, -0.0], 2, 0).is_err());
    }

    #[test]
    fn slot_of_other_rows_or_with_a_finding_is_an_error() {
        let mut slot = Slot {
            n_rows: 3,
            first: [0, !9, !8, 0],
        };
        let error = check_slot("blk.1.l_out", &slot, 3).unwrap_err().to_string();
        assert!(error.contains("position 8 has a value of 2^56"), "{error}");
        slot.first = [0; 4];
        assert!(check_slot("blk.1.l_out", &slot, 3).is_ok());
        for n_rows in [2, 4] {
            let error = check_slot("blk.1.l_out", &slot, n_rows).unwrap_err();
            assert!(error.to_string().contains("3 rows were looked at"));
        }
    }
}
