//! Models in several files, as llama.cpp's `gguf-split` writes them: the metadata is in the first, the
//! tensors are in all, and keys say which part of how many a file is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::gguf::metadata::Metadata;
use crate::gguf::reader::{ALIGNMENT_KEY, Contents};

/// Which part a file is, from 0.
pub(super) const NUMBER_KEY: &str = "split.no";

/// How many parts there are.
pub(super) const COUNT_KEY: &str = "split.count";

/// How many tensors all parts have together.
pub(super) const TENSORS_KEY: &str = "split.tensors.count";

/// How the keys begin that a part may have for itself.
const KEYS: &str = "split.";

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) number: usize,
    pub(super) count: usize,
}

impl Split {
    /// `None` for a file that is a whole model.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<Split>> {
        let count = metadata.usize(COUNT_KEY)?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        let number = metadata.require_usize(NUMBER_KEY)?;
        if number >= count {
            let message = format!("key `{NUMBER_KEY}`: {number}, expected less than {count}");
            return Err(Error::InvalidModel { message });
        }
        Ok(Some(Split { number, count }))
    }

    /// The files of all parts, given the path of this one.
    pub(super) fn paths(self, path: &Path) -> Result<impl Iterator<Item = PathBuf>> {
        let Split { number, count } = self;
        let name = path.file_name().and_then(|name| name.to_str());
        let suffix = suffix(number, count);
        let Some(prefix) = name.and_then(|name| name.strip_suffix(&suffix)) else {
            let message = format!(
                "{}: part {} of {count}, expected a name that ends in `{suffix}`",
                quoted(path),
                number + 1
            );
            return Err(Error::InvalidModel { message });
        };
        let prefix = prefix.to_owned();
        let path = path.to_owned();
        Ok((0..count).map(move |number| {
            path.with_file_name(format!("{prefix}{}", self::suffix(number, count)))
        }))
    }
}

/// How the name of a part ends; `number` is from 0.
pub(super) fn suffix(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// The name of a file, for errors.
pub(super) fn quoted(path: &Path) -> String {
    format!("`{}`", path.display())
}

/// Makes one model of the contents of all parts, given in order with the names that errors call them by.
pub(super) fn join(names: &[String], parts: Vec<Contents>) -> Result<Contents> {
    let refused = |part: usize, message: String| Error::InvalidModel {
        message: format!("{}: {message}", names[part]),
    };
    let count = parts.len();
    let mut parts = parts.into_iter();
    let Some(mut all) = parts.next() else {
        let message = "no parts, expected at least one".to_owned();
        return Err(Error::InvalidArgument {
            name: "parts",
            message,
        });
    };
    let expected = |number| (count > 1).then_some(Split { number, count });
    let check_place = |number: usize, metadata: &Metadata| {
        let found = Split::from_metadata(metadata)?;
        if found == expected(number) {
            return Ok(());
        }
        let found = match found {
            Some(split) => format!("part {} of {}", split.number + 1, split.count),
            None => format!("a whole model (no key `{COUNT_KEY}`)"),
        };
        Err(refused(
            number,
            format!("{found}, expected part {} of {count}", number + 1),
        ))
    };
    check_place(0, &all.metadata)?;
    let mut part_of: HashMap<String, usize> = all
        .tensors
        .iter()
        .map(|tensor| (tensor.name.clone(), 0))
        .collect();
    for (part, contents) in (1..).zip(parts) {
        check_place(part, &contents.metadata)?;
        for (key, value) in contents.metadata.iter() {
            if [NUMBER_KEY, ALIGNMENT_KEY].contains(&key) {
                continue;
            }
            let message = match all.metadata.get(key) {
                Some(first) if first == value => continue,
                Some(first) => format!(
                    "key `{key}`: {value}, but {first} in {}: parts of different models",
                    names[0]
                ),
                None if key.starts_with(KEYS) => continue,
                None => format!(
                    "key `{key}`: missing in {}, which has those of the model",
                    names[0]
                ),
            };
            return Err(refused(part, message));
        }
        for mut tensor in contents.tensors {
            if let Some(other) = part_of.insert(tensor.name.clone(), part) {
                let message = format!("tensor `{}` is in {} too", tensor.name, names[other]);
                return Err(refused(part, message));
            }
            tensor.part = part;
            let index = all.tensors.len();
            all.tensor_index.insert(tensor.name.clone(), index);
            all.tensors.push(tensor);
        }
    }
    if let Some(n_tensors) = all.metadata.usize(TENSORS_KEY)?
        && count > 1
        && n_tensors != all.tensors.len()
    {
        let message = format!(
            "key `{TENSORS_KEY}`: {n_tensors}, but all parts have {} together",
            all.tensors.len()
        );
        return Err(refused(0, message));
    }
    Ok(all)
}
