//! Which tensors and rows of a plan a trace takes.

use super::TraceOptions;
use crate::error::{Error, Result};
use crate::plan::{Op, Plan, Step, layer_and_name};
use std::ops::Range;

/// One of the tensors that a step has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// What it writes.
    Output,
    /// The rows of the cache that it stored.
    Keys,
    Values,
    /// What each query gives to each position.
    AttentionWeights,
}

const ATTENTION_WEIGHTS: &str = "attn_weights";

/// The tensors of a step by name, in the order of computation.
pub(super) fn parts(step: &Step) -> Vec<(Part, String)> {
    let name = &step.name;
    match step.op {
        Op::StoreKv { .. } => vec![
            (Part::Keys, format!("{name}.keys")),
            (Part::Values, format!("{name}.values")),
        ],
        Op::Attention { .. } => {
            let prefix = &name[..name.len() - step.name_in_layer().len()];
            vec![
                (
                    Part::AttentionWeights,
                    format!("{prefix}{ATTENTION_WEIGHTS}"),
                ),
                (Part::Output, name.clone()),
            ]
        }
        _ => vec![(Part::Output, name.clone())],
    }
}

/// Whether a text is what a glob describes: `*` is any text, `?` one character.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut at_glob, mut at_text) = (0, 0);
    // Behind the last `*`, and the text that it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while at_text < text.len() {
        match glob.get(at_glob) {
            Some('*') => {
                at_glob += 1;
                star = Some((at_glob, at_text));
            }
            Some(&wanted) if wanted == '?' || wanted == text[at_text] => {
                at_glob += 1;
                at_text += 1;
            }
            _ => {
                let Some((behind, taken)) = &mut star else {
                    return false;
                };
                *taken += 1;
                (at_glob, at_text) = (*behind, *taken);
            }
        }
    }
    glob[at_glob..].iter().all(|&rest| rest == '*')
}

impl TraceOptions {
    /// Whether a tensor of this name is asked for.
    pub(super) fn takes(&self, name: &str) -> bool {
        let (layer, name_in_layer) = layer_and_name(name);
        let is_of_layers =
            self.layers.is_empty() || layer.is_some_and(|layer| self.layers.contains(&layer));
        let is_named = match &self.names[..] {
            [] => name_in_layer != ATTENTION_WEIGHTS,
            globs => globs.iter().any(|glob| is_called(glob, name)),
        };
        is_of_layers && is_named
    }

    /// Whether a row at this position is asked for.
    pub(super) fn takes_position(&self, position: usize) -> bool {
        self.positions.is_empty() || self.positions.contains(&position)
    }

    /// Refuses what is in no plan and at no position that runs: most likely it is misspelt.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(super) fn check(&self, plan: &Plan, n_layer: usize, runs: Range<usize>) -> Result<()> {
        let fail =
            |name: &'static str, message: String| Err(Error::InvalidArgument { name, message });
        let names: Vec<String> = plan
            .steps
            .iter()
            .flat_map(|step| parts(step).into_iter().map(|(_, name)| name))
            .collect();
        for glob in &self.names {
            if !names.iter().any(|name| is_called(glob, name)) {
                return fail("names", format!("`{glob}` matches no tensor of the plan"));
            }
        }
        if let Some(layer) = self.layers.iter().find(|&&layer| layer >= n_layer) {
            return fail("layers", format!("{layer}, expected less than {n_layer}"));
        }
        if let Some(position) = self.positions.iter().find(|at| !runs.contains(at)) {
            let message = format!("{position}, but the positions that run are {runs:?}");
            return fail("positions", message);
        }
        if !names.iter().any(|name| self.takes(name)) {
            let message = "no tensor of these layers has one of these names".to_owned();
            return fail("names", message);
        }
        if self.batch_tokens == Some(0) {
            return fail("batch_tokens", "0, expected at least 1".to_owned());
        }
        Ok(())
    }
}

fn is_called(glob: &str, name: &str) -> bool {
    glob_matches(glob, name) || glob_matches(glob, layer_and_name(name).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glob_matches_whole_texts() {
        for (glob, text) in [
            ("", ""),
            ("*", ""),
            ("*", "embd"),
            ("blk.*.attn_norm", "blk.11.attn_norm"),
            ("*Qcur", "blk.0.Qcur"),
            ("blk.?.Qcur", "blk.7.Qcur"),
            ("*a*b*", "xaxaxbx"),
            ("*ab", "aab"),
            ("a**", "a"),
        ] {
            assert!(glob_matches(glob, text), "`{glob}` and `{text}`");
        }
        for (glob, text) in [
            ("", "a"),
            ("?", ""),
            ("blk.?.Qcur", "blk.17.Qcur"),
            ("attn", "attn_norm"),
            ("*norm", "norm_1"),
            ("a*b", "ab_"),
            ("blk.1*Qcur", "blk.0.Qcur"),
        ] {
            assert!(!glob_matches(glob, text), "`{glob}` and `{text}`");
        }
    }

    #[test]
    fn glob_takes_no_time_that_grows_with_its_stars() {
        let glob = "*a".repeat(200) + "b";
        assert!(!glob_matches(&glob, &"a".repeat(5000)));
    }

    #[test]
    fn names_are_those_of_a_layer_or_of_all() {
        let takes = |names: &[&str], layers: &[usize], name: &str| {
            let options = TraceOptions {
                names: names.iter().map(|&name| name.to_owned()).collect(),
                layers: layers.to_vec(),
                ..TraceOptions::default()
            };
            options.takes(name)
        };
        assert!(takes(&[], &[], "embd"));
        assert!(takes(&[], &[], "blk.3.Qcur"));
        assert!(takes(&["Qcur"], &[], "blk.3.Qcur"));
        assert!(takes(&["blk.3.*"], &[], "blk.3.Qcur"));
        assert!(takes(&["Kcur", "Qcur"], &[2, 3], "blk.3.Qcur"));
        assert!(!takes(&["Qcur"], &[], "blk.3.Kcur"));
        assert!(!takes(&["Qcur"], &[2], "blk.3.Qcur"));
        assert!(!takes(&[], &[0], "embd"));
    }

    #[test]
    fn attention_weights_are_taken_by_name_alone() {
        let mut options = TraceOptions::default();
        assert!(!options.takes("blk.3.attn_weights"));
        for glob in ["*", "attn_*", "blk.3.attn_weights"] {
            options.names = vec![glob.to_owned()];
            assert!(options.takes("blk.3.attn_weights"), "`{glob}`");
        }
    }
}
