//! The keys of one architecture, with a record of which were read: an unread one could change the mathematics.

use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys that do not change the forward pass, with the reason.
const SAFE_TO_IGNORE: &[(&str, &str)] = &[
    (
        "rope.scaling.finetuned",
        "a note on training; only hybrid models act on it",
    ),
    (
        "rope.scaling.yarn_beta_fast",
        "llama.cpp (src/llama-context.cpp) keeps 32 for these architectures",
    ),
    (
        "rope.scaling.yarn_beta_slow",
        "llama.cpp (src/llama-context.cpp) keeps 1 for these architectures",
    ),
    (
        "tensor_data_layout",
        "the layout of rows follows from the architecture",
    ),
];

/// The metadata under `{architecture}.`.
pub(super) struct Hyperparameters<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Hyperparameters<'a> {
    pub(super) fn new(metadata: &'a Metadata, architecture: &'a str) -> Self {
        Hyperparameters {
            metadata,
            architecture,
            read: RefCell::default(),
        }
    }

    /// The full key; from here on it counts as read.
    fn key(&self, suffix: &str) -> String {
        let key = format!("{}.{suffix}", self.architecture);
        self.read.borrow_mut().insert(key.clone());
        key
    }

    pub(super) fn usize(&self, suffix: &str) -> Result<Option<usize>> {
        self.metadata.usize(&self.key(suffix))
    }

    pub(super) fn require_usize(&self, suffix: &str) -> Result<usize> {
        self.usize(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    /// A count that is one number for the model or an array with one for each layer.
    pub(super) fn per_layer(&self, suffix: &str, n_layer: usize) -> Result<Option<Vec<usize>>> {
        let key = self.key(suffix);
        if !matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            return Ok(self.metadata.usize(&key)?.map(|count| vec![count; n_layer]));
        }
        let Some(counts) = self.metadata.u32s(&key)? else {
            return Ok(None);
        };
        if counts.len() != n_layer {
            let message = format!("key `{key}`: {} entries, expected {n_layer}", counts.len());
            return Err(Error::InvalidModel { message });
        }
        Ok(Some(
            counts.into_iter().map(|count| count as usize).collect(),
        ))
    }

    /// For each layer whether it is windowed: every layer but each `n`-th, or a flag for each. All are where `n` is 0
    /// (llama.cpp `src/llama-hparams.cpp`, `set_swa_pattern`).
    pub(super) fn windowed_layers(
        &self,
        suffix: &str,
        default_period: usize,
        n_layer: usize,
    ) -> Result<Vec<bool>> {
        let key = self.key(suffix);
        if matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            let flags = self.metadata.bools(&key)?.unwrap_or_default();
            if flags.len() != n_layer {
                let message = format!("key `{key}`: {} entries, expected {n_layer}", flags.len());
                return Err(Error::InvalidModel { message });
            }
            return Ok(flags.to_vec());
        }
        let period = self.metadata.usize(&key)?.unwrap_or(default_period);
        Ok((0..n_layer)
            .map(|layer| period == 0 || layer % period < period - 1)
            .collect())
    }

    /// Whether the file does not have a key.
    pub(super) fn is_absent(&self, suffix: &str) -> bool {
        self.metadata.get(&self.key(suffix)).is_none()
    }

    pub(super) fn f32(&self, suffix: &str) -> Result<Option<f32>> {
        let key = self.key(suffix);
        match self.metadata.f32(&key)? {
            Some(value) if !value.is_finite() => Err(Error::InvalidModel {
                message: format!("key `{key}`: {value}, expected a finite number"),
            }),
            value => Ok(value),
        }
    }

    pub(super) fn require_f32(&self, suffix: &str) -> Result<f32> {
        self.f32(suffix)?.ok_or_else(|| self.missing(suffix))
    }

    pub(super) fn bool(&self, suffix: &str) -> Result<Option<bool>> {
        self.metadata.bool(&self.key(suffix))
    }

    pub(super) fn str(&self, suffix: &str) -> Result<Option<&'a str>> {
        self.metadata.str(&self.key(suffix))
    }

    /// An error that names one of this architecture's keys.
    pub(super) fn invalid(&self, suffix: &str, what: impl std::fmt::Display) -> Error {
        Error::InvalidModel {
            message: format!("key `{}.{suffix}`: {what}", self.architecture),
        }
    }

    fn missing(&self, suffix: &str) -> Error {
        self.invalid(suffix, "missing")
    }

    /// Refuses keys of this architecture that nothing has read, unless they are known to be harmless
    /// or say "none of this" (zero or false).
    pub(super) fn refuse_unread(&self, is_causal: bool) -> Result<()> {
        let stated = self.metadata.bool(&self.key("attention.causal"))?;
        if stated.unwrap_or(true) != is_causal {
            let found = stated.map_or("missing".to_owned(), |stated| stated.to_string());
            let what = format!("{found}, expected {is_causal}");
            return Err(self.invalid("attention.causal", what));
        }
        let prefix = format!("{}.", self.architecture);
        let read = self.read.borrow();
        for (key, value) in self.metadata.iter() {
            let Some(suffix) = key.strip_prefix(&prefix) else {
                continue;
            };
            let absent = matches!(value, Value::Bool(false)) || value.integer() == Some(0);
            if read.contains(key) || absent {
                continue;
            }
            match SAFE_TO_IGNORE.iter().find(|(known, _)| *known == suffix) {
                Some((_, reason)) => log::debug!("key `{key}` is ignored: {reason}"),
                None => {
                    return Err(Error::Unsupported {
                        kind: "hyper-parameter",
                        name: key.to_owned(),
                        supported: format!("the keys that `{}` models here use", self.architecture),
                    });
                }
            }
        }
        Ok(())
    }
}
