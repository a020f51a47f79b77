//! Adapters of low rank (arXiv:2106.09685) in GGUF files, which are added to the weights when they are read.
//!
//! Source of names and shapes: llama.cpp `src/llama-adapter.cpp` at commit 0c1e57098.

use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The only adapter type there is.
const TYPE: &str = "lora";

/// Tokens from which on an adapter counts, and not before: a merged one counts always.
const INVOCATION_TOKENS: &str = "adapter.alora.invocation_tokens";

/// What is read here.
const READ_KEYS: [&str; 2] = ["adapter.type", "adapter.lora.alpha"];

/// What prompts began with when the adapter was trained.
const PROMPT_PREFIX: &str = "adapter.lora.prompt_prefix";

/// What says nothing of the weights.
const PROMPT_KEYS: [&str; 2] = ["adapter.lora.task_name", PROMPT_PREFIX];

/// What is added to a matrix `[n_rows, n_cols]`: the product of two narrow ones.
#[derive(Debug, PartialEq)]
pub(crate) struct LowRank {
    rank: usize,
    n_cols: usize,
    /// `[n_rows, rank]`, with the factor on all.
    left: Vec<f32>,
    /// `[rank, n_cols]`.
    right: Vec<f32>,
}

impl LowRank {
    /// Adds rows from `first_row` on to `rows`, `[n, n_cols]`.
    pub(super) fn add_to(&self, first_row: usize, rows: &mut [f32]) {
        let mut sum = vec![0.0; self.n_cols];
        let left = self.left.chunks_exact(self.rank).skip(first_row);
        for (row, left) in rows.chunks_exact_mut(self.n_cols).zip(left) {
            sum.fill(0.0);
            for (&factor, right) in left.iter().zip(self.right.chunks_exact(self.n_cols)) {
                for (sum, value) in sum.iter_mut().zip(right) {
                    *sum += factor * value;
                }
            }
            for (value, sum) in row.iter_mut().zip(&sum) {
                *value += sum;
            }
        }
    }
}

/// An adapter, read and checked as far as it can be without the model.
pub(crate) struct Lora {
    /// The file, for errors.
    name: String,
    architecture: String,
    /// By the name of the matrix that it is added to.
    pairs: BTreeMap<String, Pair>,
}

struct Pair {
    n_rows: usize,
    product: Arc<LowRank>,
}

impl Lora {
    /// The adapter of a file, `scale` times as strong as it was trained.
    ///
    /// # Errors
    /// `InvalidModel` for a file that is no adapter, or whose tensors are not pairs of matrices that fit each other;
    /// `Unsupported` for another kind of adapter, `InvalidArgument` for a scale that is not finite.
    pub(crate) fn from_gguf(gguf: &Gguf, name: &str, scale: f32) -> Result<Lora> {
        if !scale.is_finite() {
            return Err(Error::InvalidArgument {
                name: "lora",
                message: format!("scale {scale}, expected a finite number"),
            });
        }
        let refuse = |message: String| Err(invalid(name, message));
        let metadata = gguf.metadata();
        match metadata.str("general.type")? {
            Some("adapter") => {}
            Some(other) => {
                return refuse(format!(
                    "key `general.type` is `{other}`, expected `adapter`"
                ));
            }
            None => return refuse("key `general.type` is missing, expected `adapter`".to_owned()),
        }
        let unsupported = |kind, name: &str, supported: &str| {
            Err(Error::Unsupported {
                kind,
                name: name.to_owned(),
                supported: supported.to_owned(),
            })
        };
        match metadata.require_str("adapter.type")? {
            TYPE => {}
            other => return unsupported("adapter type", other, TYPE),
        }
        if metadata.get(INVOCATION_TOKENS).is_some() {
            return unsupported(
                "adapter key",
                INVOCATION_TOKENS,
                "adapters that count always",
            );
        }
        let alpha = match metadata.f32("adapter.lora.alpha")? {
            Some(alpha) if !alpha.is_finite() => {
                return refuse(format!("key `adapter.lora.alpha` is {alpha}"));
            }
            alpha => alpha.unwrap_or(0.0),
        };
        for (key, _) in metadata.iter() {
            if !key.starts_with("adapter.") || READ_KEYS.contains(&key) {
                continue;
            }
            if !PROMPT_KEYS.contains(&key) {
                return unsupported("adapter key", key, "the type and the alpha of an adapter");
            }
            if key == PROMPT_PREFIX {
                log::warn!(
                    "adapter `{name}` was trained with a prefix that prompts must begin with (`{key}`)"
                );
            }
        }
        let mut pairs = BTreeMap::new();
        for tensor in gguf.tensors() {
            let sides = [".lora_a", ".lora_b"].map(|end| tensor.name.strip_suffix(end));
            let (target, other) = match sides {
                [Some(target), _] => (target, "lora_b"),
                [_, Some(target)] => (target, "lora_a"),
                _ => {
                    let message = format!(
                        "tensor `{}` is neither a `.lora_a` nor a `.lora_b`",
                        tensor.name
                    );
                    return refuse(message);
                }
            };
            let other_name = format!("{target}.{other}");
            let Some(other) = gguf.tensor(&other_name) else {
                return refuse(format!("tensor `{other_name}` is missing"));
            };
            if sides[0].is_some() {
                let pair = Pair::new(gguf, target, tensor, other, alpha, scale)
                    .map_err(|message| invalid(name, message))?;
                pairs.insert(target.to_owned(), pair);
            }
        }
        Ok(Lora {
            name: name.to_owned(),
            architecture: metadata.require_str("general.architecture")?.to_owned(),
            pairs,
        })
    }

    /// Refuses a model of another architecture.
    ///
    /// # Errors
    /// `InvalidModel`.
    pub(super) fn check_architecture(&self, architecture: &str) -> Result<()> {
        if self.architecture == architecture {
            return Ok(());
        }
        let message = format!(
            "for architecture `{}`, the model has `{architecture}`",
            self.architecture
        );
        Err(invalid(&self.name, message))
    }

    /// What is added to the matrix of that name, if anything.
    ///
    /// # Errors
    /// `InvalidModel` where it is for a matrix of another shape, or `shape` is no matrix.
    pub(super) fn product(&self, tensor: &str, shape: &[usize]) -> Result<Option<Arc<LowRank>>> {
        let Some(pair) = self.pairs.get(tensor) else {
            return Ok(None);
        };
        // A matrix to which nothing is added is not rounded either.
        let is_nothing = pair.product.left.iter().all(|&value| value == 0.0);
        let for_shape = [pair.n_rows, pair.product.n_cols];
        if for_shape != shape {
            let message = format!("`{tensor}` is for shape {for_shape:?}, the model has {shape:?}");
            return Err(invalid(&self.name, message));
        }
        Ok((!is_nothing).then(|| pair.product.clone()))
    }

    /// Refuses tensors for others than those of which `is_used` says that they are in the model.
    ///
    /// # Errors
    /// `InvalidModel`.
    pub(super) fn check_used(&self, is_used: impl Fn(&str) -> bool) -> Result<()> {
        match self.pairs.keys().find(|target| !is_used(target)) {
            None => Ok(()),
            Some(target) => {
                let message = format!("tensor `{target}` is no matrix of the model");
                Err(invalid(&self.name, message))
            }
        }
    }
}

impl Pair {
    fn new(
        gguf: &Gguf,
        target: &str,
        a: &TensorInfo,
        b: &TensorInfo,
        alpha: f32,
        scale: f32,
    ) -> Result<Pair, String> {
        let (&[a_rows, a_cols], &[b_rows, rank]) = (&a.shape[..], &b.shape[..]) else {
            return Err(format!(
                "tensors of `{target}`: shapes {:?} and {:?}, expected two matrices",
                a.shape, b.shape
            ));
        };
        // Of the embedding, whose rows are looked up, the sides are the other way round.
        let is_embedding = target.ends_with("token_embd.weight");
        let a_rank = if is_embedding { a_cols } else { a_rows };
        if a_rank != rank {
            return Err(format!(
                "tensors of `{target}`: shapes {:?} and {:?}, which have no rank in common",
                a.shape, b.shape
            ));
        }
        let (n_rows, n_cols) = match is_embedding {
            true => (a_rows, b_rows),
            false => (b_rows, a_cols),
        };
        // More than the smaller side adds nothing, but adapters have one rank for matrices of many shapes.
        let most = n_rows.max(n_cols);
        if rank > most {
            return Err(format!(
                "tensors of `{target}`: rank {rank}, expected at most {most} for shape [{n_rows}, {n_cols}]"
            ));
        }
        let factor = match alpha {
            0.0 => f64::from(scale),
            alpha => f64::from(scale) * f64::from(alpha) / rank as f64,
        };
        let (a, b) = (values(gguf, a)?, values(gguf, b)?);
        let (mut left, right) = match is_embedding {
            true => (a, transposed(&b, rank)),
            false => (b, a),
        };
        for value in &mut left {
            let scaled = (f64::from(*value) * factor) as f32;
            if !scaled.is_finite() {
                return Err(format!(
                    "tensors of `{target}`: {value} times {factor} is not finite in 32 bits"
                ));
            }
            *value = scaled;
        }
        Ok(Pair {
            n_rows,
            product: Arc::new(LowRank {
                rank,
                n_cols,
                left,
                right,
            }),
        })
    }
}

fn values(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, String> {
    let ty = tensor.weight_type().map_err(|error| error.to_string())?;
    let mut values = vec![0.0; tensor.shape.iter().product()];
    ty.decode(gguf.tensor_bytes(tensor), &mut values);
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => Err(format!("tensor `{}` has the value {value}", tensor.name)),
    }
}

fn transposed(matrix: &[f32], n_cols: usize) -> Vec<f32> {
    let rows = || matrix.chunks_exact(n_cols);
    (0..n_cols)
        .flat_map(|column| rows().map(move |row| row[column]))
        .collect()
}

fn invalid(name: &str, message: String) -> Error {
    Error::InvalidModel {
        message: format!("adapter `{name}`: {message}"),
    }
}
