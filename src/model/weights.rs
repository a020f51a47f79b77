//! The weights of a model by name and shape: views into the file, in the type a device will hold.

use super::lora::{Lora, LowRank};
use super::views::{Heads, KeptHeads, Run, View};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo, WeightType};
use half::f16;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Read into the rope tables, not kept as a weight.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The embedding of positions.
pub(super) const POSITIONS: &str = "position_embd.weight";

/// Likewise, of short contexts and of long ones.
pub(super) const LONG_ROPE_DIVISORS: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

/// A weight of a model, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub(crate) usize);

/// The type in which devices hold matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// As in the file; quantised blocks are decoded inside the kernels.
    #[default]
    Native,
    /// Decoded at load and rounded to 16-bit floats.
    F16,
    /// Decoded at load: rules quantised kernels in or out.
    F32,
}

/// A matrix `[n_rows, n_cols]`, or a vector (one row), of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weight {
    /// The tensor's name, with `[a..b]` for a part of a fused one.
    pub(crate) name: String,
    /// Rows (outputs); 1 for a vector.
    pub(crate) n_rows: usize,
    /// Elements of a row (inputs).
    pub(crate) n_cols: usize,
    /// The type in the file.
    pub(crate) file_type: WeightType,
    /// The type on the device: vectors are always F32.
    pub(crate) ty: WeightType,
    /// Index of the tensor in the file.
    tensor: usize,
    /// Elements of the tensor before this weight's first.
    first_element: usize,
    /// Where its elements lie in the tensor.
    view: View,
    /// What adapters add to it.
    added: Vec<Arc<LowRank>>,
}

impl Weight {
    /// Whether the file has the very bytes that the device is to hold.
    pub(crate) fn is_as_in_file(&self) -> bool {
        self.ty == self.file_type && self.added.is_empty() && self.view.has_rows()
    }

    /// Whether adapters add to it.
    pub(crate) fn is_merged(&self) -> bool {
        !self.added.is_empty()
    }

    /// Bytes of the whole weight in the type of the device.
    pub(crate) fn stored_bytes(&self) -> u64 {
        (self.ty.row_bytes(self.n_cols) * self.n_rows) as u64
    }
}

/// Every weight of a model. Clones share the file.
#[derive(Clone)]
pub(crate) struct Weights {
    gguf: Arc<Gguf>,
    entries: Vec<Weight>,
    /// The first weight found to leave its type's range by what adapters add to it.
    overflown: Arc<OnceLock<String>>,
    kept_heads: Arc<KeptHeads>,
}

impl Weights {
    pub(crate) fn get(&self, id: WeightId) -> &Weight {
        &self.entries[id.0]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.entries
            .iter()
            .enumerate()
            .map(|(index, weight)| (WeightId(index), weight))
    }

    /// Bytes of all weights as devices hold them.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.entries.iter().map(Weight::stored_bytes).sum()
    }

    /// The tensors of a weight.
    fn tensors<'a>(&'a self, weight: &'a Weight) -> impl Iterator<Item = &'a TensorInfo> {
        let indices = match &weight.view {
            View::Stacked(tensors) => &tensors[..],
            View::Contiguous | View::Heads(_) | View::Ones => std::slice::from_ref(&weight.tensor),
        };
        indices.iter().map(|&index| &self.gguf.tensors()[index])
    }

    /// The bytes of some rows as they lie in the file: in one piece, where they do.
    fn file_rows(&self, id: WeightId, rows: Range<usize>) -> Cow<'_, [u8]> {
        let weight = self.get(id);
        let elements = |row: usize| weight.first_element + row * weight.n_cols;
        let at = |element: usize| {
            element / weight.file_type.block_len() * weight.file_type.block_bytes()
        };
        let piece = |run: &Run| -> &[u8] {
            let tensor = self.tensors(weight).nth(run.tensor);
            let bytes = tensor.map_or(&[][..], |tensor| self.gguf.tensor_bytes(tensor));
            &bytes[at(elements(run.rows.start))..at(elements(run.rows.end))]
        };
        match &weight.view.runs(weight.n_rows, rows)[..] {
            [run] => Cow::Borrowed(piece(run)),
            runs => Cow::Owned(runs.iter().map(piece).collect::<Vec<_>>().concat()),
        }
    }

    /// Some rows in the type of the device.
    pub(crate) fn stored_rows(&self, id: WeightId, rows: Range<usize>) -> Cow<'_, [u8]> {
        let weight = self.get(id);
        if weight.is_as_in_file() {
            return self.file_rows(id, rows);
        }
        let mut values = vec![0.0; rows.len() * weight.n_cols];
        self.merged_rows(id, rows, &mut values);
        if !weight.added.is_empty() && !values.iter().all(|&value| is_held(weight.ty, value)) {
            self.overflown.get_or_init(|| weight.name.clone());
        }
        Cow::Owned(weight.ty.encode(&values))
    }

    /// Refuses adapters that made a weight too large for its type, as far as rows have been
    /// [stored](Weights::stored_rows).
    ///
    /// # Errors
    /// `InvalidModel`.
    pub(crate) fn check_merged(&self) -> Result<()> {
        match self.overflown.get() {
            None => Ok(()),
            Some(name) => Err(Error::InvalidModel {
                message: format!("tensor `{name}` with its adapters is not finite in its type"),
            }),
        }
    }

    /// The values of some rows, with what adapters add to them, before they are rounded.
    fn merged_rows(&self, id: WeightId, rows: Range<usize>, out: &mut [f32]) {
        let weight = self.get(id);
        match &weight.view {
            View::Heads(heads) if heads.transposed => {
                let tensor = &self.gguf.tensors()[weight.tensor];
                let decode = |rows: Range<usize>, out: &mut [f32]| {
                    let row_bytes = weight.file_type.row_bytes(heads.n_cols);
                    let bytes = self.gguf.tensor_bytes(tensor);
                    let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                    weight.file_type.decode(bytes, out);
                };
                return heads.columns(id, &self.kept_heads, rows, decode, out);
            }
            View::Ones => return out.fill(1.0),
            View::Contiguous | View::Stacked(_) | View::Heads(_) => {}
        }
        let first_row = weight.first_element / weight.n_cols + rows.start;
        weight.file_type.decode(&self.file_rows(id, rows), out);
        for added in &weight.added {
            added.add_to(first_row, out);
        }
    }

    /// The values of some rows as the device holds them: `[rows.len(), n_cols] f32` into `out`.
    pub(crate) fn decode_rows(&self, id: WeightId, rows: Range<usize>, out: &mut [f32]) {
        let weight = self.get(id);
        self.merged_rows(id, rows, out);
        if weight.ty == WeightType::F16 && !weight.is_as_in_file() {
            out.iter_mut()
                .for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }

    /// A whole vector.
    pub(crate) fn vector(&self, id: WeightId) -> Vec<f32> {
        let weight = self.get(id);
        let mut values = vec![0.0; weight.n_rows * weight.n_cols];
        self.decode_rows(id, 0..weight.n_rows, &mut values);
        values
    }

    /// Tells the operating system that the file's pages of a weight are not needed any more.
    pub(crate) fn release(&self, id: WeightId) {
        let tensors = self.tensors(self.get(id));
        tensors.for_each(|tensor| self.gguf.release(tensor));
    }
}

/// Finds the weights of a model in its file and refuses what is left over.
pub(super) struct WeightFinder {
    gguf: Arc<Gguf>,
    storage: WeightStorage,
    loras: Vec<Lora>,
    entries: Vec<Weight>,
    used: BTreeSet<usize>,
    /// Tensors that are matrices.
    matrices: BTreeSet<String>,
}

impl WeightFinder {
    pub(super) fn new(gguf: Arc<Gguf>, storage: WeightStorage, loras: Vec<Lora>) -> Self {
        WeightFinder {
            gguf,
            storage,
            loras,
            entries: Vec::new(),
            used: BTreeSet::new(),
            matrices: BTreeSet::new(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The vector `name`, `[n]`.
    pub(super) fn vector(&mut self, name: &str, n: usize) -> Result<WeightId> {
        self.part(name, &[n], 0..1)
    }

    /// The matrix `name`, `[n_rows, n_cols]`, as a vector of all its rows.
    pub(super) fn flat(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<WeightId> {
        let (tensor, file_type) = self.tensor(name, &[n_rows, n_cols])?;
        Ok(self.push(Weight {
            name: name.to_owned(),
            n_rows: 1,
            n_cols: n_rows * n_cols,
            file_type,
            ty: WeightType::F32,
            tensor,
            first_element: 0,
            view: View::Contiguous,
            added: Vec::new(),
        }))
    }

    /// The matrix `name`, `[n_rows, n_cols]`.
    pub(super) fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<WeightId> {
        self.part(name, &[n_rows, n_cols], 0..n_rows)
    }

    /// The matrices `name`, `[n_matrix, n_rows, n_cols]`, as one of all their rows. No adapter adds to it.
    pub(super) fn matrices(&mut self, name: &str, shape: [usize; 3]) -> Result<WeightId> {
        let [n_matrix, n_rows, n_cols] = shape;
        self.of_rows(name, &shape, n_matrix * n_rows, n_cols)
    }

    /// The vector `name`, `[n]`, as a matrix `[1, n]`.
    pub(super) fn single_row(&mut self, name: &str, n: usize) -> Result<WeightId> {
        self.of_rows(name, &[n], 1, n)
    }

    /// A part of each of `n_head` heads of the tensor `name`, as one matrix of all their rows. What is turned has no
    /// blocks of quantised types any more: it is decoded. No adapter adds to it.
    pub(super) fn heads(
        &mut self,
        name: &str,
        shape: &[usize],
        n_head: usize,
        heads: Heads,
    ) -> Result<WeightId> {
        let (tensor, file_type) = self.tensor(name, shape)?;
        let ty = match self.storage {
            WeightStorage::F16 => WeightType::F16,
            WeightStorage::Native if file_type == WeightType::F16 || !heads.transposed => file_type,
            WeightStorage::Native | WeightStorage::F32 => WeightType::F32,
        };
        let [n_rows, n_cols] = heads.shape();
        Ok(self.push(Weight {
            name: format!(
                "{name}[{:?} of heads{}]",
                heads.first..heads.first + heads.taken,
                if heads.transposed { ", turned" } else { "" }
            ),
            n_rows: n_head * n_rows,
            n_cols,
            file_type,
            ty,
            tensor,
            first_element: 0,
            view: View::Heads(heads),
            added: Vec::new(),
        }))
    }

    /// The matrices that `name` names by their index, each `[n_rows, n_cols]`, as one of all their rows. No adapter
    /// adds to them.
    pub(super) fn stacked(
        &mut self,
        name: impl Fn(usize) -> String,
        [n_matrix, n_rows, n_cols]: [usize; 3],
    ) -> Result<WeightId> {
        let mut tensors = Vec::new();
        let mut first_type = None;
        for index in 0..n_matrix {
            let name = name(index);
            let (tensor, file_type) = self.tensor(&name, &[n_rows, n_cols])?;
            let first_type = *first_type.get_or_insert(file_type);
            if file_type != first_type {
                let (found, expected) = (file_type.name(), first_type.name());
                let message = format!(
                    "tensor `{name}`: type {found}, expected {expected} as of the first expert"
                );
                return Err(Error::InvalidModel { message });
            }
            tensors.push(tensor);
        }
        let file_type = first_type.unwrap_or(WeightType::F32);
        let ty = match self.storage {
            WeightStorage::Native => file_type,
            WeightStorage::F16 => WeightType::F16,
            WeightStorage::F32 => WeightType::F32,
        };
        Ok(self.push(Weight {
            name: format!("{} to {}", name(0), name(n_matrix.saturating_sub(1))),
            n_rows: n_matrix * n_rows,
            n_cols,
            file_type,
            ty,
            tensor: 0,
            first_element: 0,
            view: View::Stacked(tensors.into()),
            added: Vec::new(),
        }))
    }

    /// A vector of ones, `[n]`: the weight of a norm that has none.
    pub(super) fn ones(&mut self, n: usize) -> WeightId {
        let is_it = |weight: &Weight| weight.view == View::Ones && weight.n_cols == n;
        if let Some(found) = self.entries.iter().position(is_it) {
            return WeightId(found);
        }
        self.push(Weight {
            name: format!("{n} ones"),
            n_rows: 1,
            n_cols: n,
            file_type: WeightType::F32,
            ty: WeightType::F32,
            tensor: 0,
            first_element: 0,
            view: View::Ones,
            added: Vec::new(),
        })
    }

    /// Counts the tensors of a layer as used, which no step reads.
    pub(super) fn ignore_layer(&mut self, layer: usize) {
        let prefix = format!("blk.{layer}.");
        let tensors = self.gguf.tensors().iter().enumerate();
        let of_layer = tensors.filter(|(_, tensor)| tensor.name.starts_with(&prefix));
        self.used.extend(of_layer.map(|(index, _)| index));
    }

    fn of_rows(
        &mut self,
        name: &str,
        shape: &[usize],
        n_rows: usize,
        n_cols: usize,
    ) -> Result<WeightId> {
        let (tensor, file_type) = self.tensor(name, shape)?;
        let ty = match self.storage {
            WeightStorage::Native => file_type,
            WeightStorage::F16 => WeightType::F16,
            WeightStorage::F32 => WeightType::F32,
        };
        Ok(self.push(Weight {
            name: name.to_owned(),
            n_rows,
            n_cols,
            file_type,
            ty,
            tensor,
            first_element: 0,
            view: View::Contiguous,
            added: Vec::new(),
        }))
    }

    /// The same tensor as a weight's once more, without what adapters add.
    pub(super) fn without_added(&mut self, id: WeightId) -> WeightId {
        let weight = &self.entries[id.0];
        if weight.added.is_empty() {
            return id;
        }
        let ty = match self.storage {
            WeightStorage::Native => weight.file_type,
            WeightStorage::F16 | WeightStorage::F32 => weight.ty,
        };
        let plain = Weight {
            name: format!("{} without adapters", weight.name),
            ty,
            added: Vec::new(),
            ..weight.clone()
        };
        self.push(plain)
    }

    /// Rows of a matrix, or (for a shape of one dimension) elements of a vector cut in equal units:
    /// `rows` counts matrix rows, or is `0..1` for a whole vector.
    pub(super) fn part(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<WeightId> {
        let (tensor, file_type) = self.tensor(name, shape)?;
        let n_cols = shape[shape.len() - 1];
        let is_matrix = shape.len() > 1;
        let mut added = Vec::new();
        if is_matrix {
            self.matrices.insert(name.to_owned());
            for lora in &self.loras {
                added.extend(lora.product(name, shape)?);
            }
        }
        let ty = match self.storage {
            _ if !is_matrix => WeightType::F32,
            WeightStorage::Native if !added.is_empty() => merged_type(file_type),
            WeightStorage::Native => file_type,
            WeightStorage::F16 => WeightType::F16,
            WeightStorage::F32 => WeightType::F32,
        };
        let whole = !is_matrix || rows == (0..shape[0]);
        let name = if whole {
            name.to_owned()
        } else {
            format!("{name}[{rows:?}]")
        };
        Ok(self.push(Weight {
            name,
            n_rows: rows.len(),
            n_cols,
            file_type,
            ty,
            tensor,
            first_element: rows.start * n_cols,
            view: View::Contiguous,
            added,
        }))
    }

    /// Elements of the vector `name` of `n` elements.
    pub(super) fn vector_part(
        &mut self,
        name: &str,
        n: usize,
        elements: Range<usize>,
    ) -> Result<WeightId> {
        let (tensor, file_type) = self.tensor(name, &[n])?;
        if file_type.block_len() != 1 {
            return Err(Error::Unsupported {
                kind: "type of a fused bias",
                name: file_type.name().to_owned(),
                supported: "f32, f16, bf16".to_owned(),
            });
        }
        Ok(self.push(Weight {
            name: format!("{name}[{elements:?}]"),
            n_rows: 1,
            n_cols: elements.len(),
            file_type,
            ty: WeightType::F32,
            tensor,
            first_element: elements.start,
            view: View::Contiguous,
            added: Vec::new(),
        }))
    }

    /// The index and type of a tensor of this very shape; from here on it counts as used.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<(usize, WeightType)> {
        let found = self.gguf.tensor_index(name);
        let index = found.ok_or_else(|| Error::InvalidModel {
            message: format!("tensor `{name}` is missing"),
        })?;
        let tensor = &self.gguf.tensors()[index];
        if tensor.shape != shape {
            let message = format!(
                "tensor `{name}`: shape {:?}, expected {shape:?}",
                tensor.shape
            );
            return Err(Error::InvalidModel { message });
        }
        self.used.insert(index);
        Ok((index, tensor.weight_type()?))
    }

    fn push(&mut self, weight: Weight) -> WeightId {
        self.entries.push(weight);
        WeightId(self.entries.len() - 1)
    }

    /// Counts a tensor as used that is not kept as a weight.
    pub(super) fn mark_used(&mut self, name: &str) {
        self.used.extend(self.gguf.tensor_index(name));
    }

    /// All weights, if every tensor of the file is used.
    pub(super) fn finish(self) -> Result<Weights> {
        let tensors = self.gguf.tensors().iter().enumerate();
        let unused: Vec<&str> = tensors
            .filter(|(index, _)| !self.used.contains(index))
            .map(|(_, tensor)| tensor.name.as_str())
            .collect();
        if let Some(first) = unused.first() {
            let message = format!(
                "tensor `{first}` is not used by this architecture ({} such tensors)",
                unused.len()
            );
            return Err(Error::InvalidModel { message });
        }
        for lora in &self.loras {
            lora.check_used(|name| self.matrices.contains(name))?;
        }
        Ok(Weights {
            gguf: self.gguf,
            entries: self.entries,
            overflown: Arc::default(),
            kept_heads: Arc::default(),
        })
    }
}

/// Whether a number is finite in a type that adapters' sums are held in.
fn is_held(ty: WeightType, value: f32) -> bool {
    match ty {
        WeightType::F16 => f16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    }
}

/// The type of a matrix that something was added to. Quantised again, it would lose what is smaller than its steps,
/// and that is much of what adapters add: 16-bit floats keep it, in half the bytes of 32-bit ones. These stand where
/// the file has a range that 16-bit floats do not, as the 8-bit exponents of MXFP4's scales have.
fn merged_type(file_type: WeightType) -> WeightType {
    match file_type {
        WeightType::F32 | WeightType::BF16 | WeightType::MXFP4 => WeightType::F32,
        _ => WeightType::F16,
    }
}
