//! Parses and validates a whole file, so that nothing later has to.
//!
//! Layout: the GGUF specification, `docs/gguf.md` in ggml.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gguf::cursor::{Cursor, Owner, Scalar};
use crate::gguf::metadata::Metadata;
use crate::gguf::tensor::{MAX_DIMS, TensorInfo, TensorType, tensor_bytes, unknown_type};
use crate::gguf::value::{Array, Value};

/// The first four bytes of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// The newest version; the oldest that is read is 2. They differ in nothing but the byte order that
/// version 3 also allows.
pub(super) const VERSION: u32 = 3;

/// The key that states the alignment of tensor data in bytes.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment of a file that does not state one.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// How deep arrays may nest. No known key nests deeper than 2; the limit bounds the recursion.
pub(super) const MAX_ARRAY_DEPTH: usize = 8;

/// What a file holds besides the tensors' data.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    /// Tensor name to position in `tensors`.
    pub(super) tensor_index: HashMap<String, usize>,
}

/// Reads everything but the tensors' data.
pub(super) fn read(file: &[u8]) -> Result<Contents> {
    let mut cursor = Cursor::new(file);
    let version = read_version(&mut cursor)?;
    // The smallest entries: an empty name, and a one-byte value or one dimension.
    let n_tensors = cursor.count(8 + 4 + 8 + 4 + 8, "tensors", Owner::Header)?;
    let n_entries = cursor.count(8 + 4 + 1, "metadata entries", Owner::Header)?;
    let (metadata, alignment) = read_metadata(&mut cursor, n_entries)?;
    let (tensors, tensor_index) = read_tensors(&mut cursor, n_tensors, alignment, file.len())?;
    Ok(Contents {
        version,
        alignment,
        metadata,
        tensors,
        tensor_index,
    })
}

fn read_version(cursor: &mut Cursor) -> Result<u32> {
    let magic = cursor.take(MAGIC.len() as u64, Owner::Header)?;
    if magic != MAGIC {
        let message = format!("magic `{}`, expected `GGUF`", magic.escape_ascii());
        return Err(Owner::Header.error(0, message));
    }
    let offset = cursor.offset();
    let version = cursor.scalar::<u32>(Owner::Header)?;
    match version {
        2..=VERSION => Ok(version),
        _ if (1..=VERSION).contains(&version.swap_bytes()) => {
            let message = "the file is big-endian, expected little-endian";
            Err(Owner::Header.error(offset, message))
        }
        _ => Err(Error::Unsupported {
            kind: "GGUF version",
            name: version.to_string(),
            supported: "2, 3".to_owned(),
        }),
    }
}

/// The metadata and the alignment that it states.
fn read_metadata(cursor: &mut Cursor, n_entries: usize) -> Result<(Metadata, u64)> {
    let mut metadata = Metadata::default();
    let mut alignment = DEFAULT_ALIGNMENT;
    for index in 0..n_entries {
        let key_offset = cursor.offset();
        let key = cursor.string(Owner::Entry(index))?;
        let owner = Owner::Key(key);
        let kind_offset = cursor.offset();
        let kind = cursor.scalar::<u32>(owner)?;
        let value_offset = cursor.offset();
        let value = read_value(cursor, kind, owner)?
            .ok_or_else(|| unknown_kind(owner, kind_offset, kind))?;
        if key == ALIGNMENT_KEY {
            alignment =
                check_alignment(&value).map_err(|message| owner.error(value_offset, message))?;
        }
        if metadata.insert(key, value).is_some() {
            return Err(owner.error(key_offset, "the key occurs twice"));
        }
    }
    Ok((metadata, alignment))
}

/// The alignment that a value of [`ALIGNMENT_KEY`] states. The specification asks for a multiple of
/// 8, llama.cpp for a power of two; files of either kind are sound.
pub(super) fn check_alignment(value: &Value) -> Result<u64, String> {
    match *value {
        Value::U32(bytes) if bytes.is_power_of_two() || (bytes > 0 && bytes.is_multiple_of(8)) => {
            Ok(bytes.into())
        }
        _ => Err(format!(
            "{} {value}, expected a u32 that is a power of two or a multiple of 8",
            value.kind()
        )),
    }
}

/// A value of the given kind, or `None` where there is no such kind.
///
/// Strings must be UTF-8 as the specification has it, tokens too: converters write bytes that are
/// no text as `<0x0A>` or in GPT-2's byte alphabet, so a token that is not UTF-8 is damage, and
/// replacing its bytes would make another token of it.
fn read_value(cursor: &mut Cursor, kind: u32, owner: Owner) -> Result<Option<Value>> {
    Ok(Some(match kind {
        0 => Value::U8(cursor.scalar(owner)?),
        1 => Value::I8(cursor.scalar(owner)?),
        2 => Value::U16(cursor.scalar(owner)?),
        3 => Value::I16(cursor.scalar(owner)?),
        4 => Value::U32(cursor.scalar(owner)?),
        5 => Value::I32(cursor.scalar(owner)?),
        6 => Value::F32(cursor.scalar(owner)?),
        7 => Value::Bool(cursor.bool(owner)?),
        8 => Value::String(cursor.string(owner)?.to_owned()),
        9 => Value::Array(read_array(cursor, owner, 1)?),
        10 => Value::U64(cursor.scalar(owner)?),
        11 => Value::I64(cursor.scalar(owner)?),
        12 => Value::F64(cursor.scalar(owner)?),
        _ => return Ok(None),
    }))
}

/// An array: the kind of the elements, their number, the elements.
fn read_array(cursor: &mut Cursor, owner: Owner, depth: usize) -> Result<Array> {
    let offset = cursor.offset();
    if depth > MAX_ARRAY_DEPTH {
        let message = format!("arrays nest more than {MAX_ARRAY_DEPTH} deep");
        return Err(owner.error(offset, message));
    }
    Ok(match cursor.scalar::<u32>(owner)? {
        0 => Array::U8(read_scalars(cursor, owner)?),
        1 => Array::I8(read_scalars(cursor, owner)?),
        2 => Array::U16(read_scalars(cursor, owner)?),
        3 => Array::I16(read_scalars(cursor, owner)?),
        4 => Array::U32(read_scalars(cursor, owner)?),
        5 => Array::I32(read_scalars(cursor, owner)?),
        6 => Array::F32(read_scalars(cursor, owner)?),
        7 => Array::Bool(read_items(cursor, 1, owner, |cursor| cursor.bool(owner))?),
        8 => Array::String(read_items(cursor, 8, owner, |cursor| {
            cursor.string(owner).map(str::to_owned)
        })?),
        9 => Array::Array(read_items(cursor, 4 + 8, owner, |cursor| {
            read_array(cursor, owner, depth + 1)
        })?),
        10 => Array::U64(read_scalars(cursor, owner)?),
        11 => Array::I64(read_scalars(cursor, owner)?),
        12 => Array::F64(read_scalars(cursor, owner)?),
        kind => return Err(unknown_kind(owner, offset, kind)),
    })
}

/// The number of elements and the elements, each of at least `min_bytes` bytes.
fn read_items<T>(
    cursor: &mut Cursor,
    min_bytes: usize,
    owner: Owner,
    read_item: impl Fn(&mut Cursor) -> Result<T>,
) -> Result<Vec<T>> {
    let count = cursor.count(min_bytes, "elements", owner)?;
    (0..count).map(|_| read_item(cursor)).collect()
}

fn read_scalars<T: Scalar>(cursor: &mut Cursor, owner: Owner) -> Result<Vec<T>> {
    read_items(cursor, T::BYTES, owner, |cursor| cursor.scalar(owner))
}

fn unknown_kind(owner: Owner, offset: u64, kind: u32) -> Error {
    owner.error(offset, format!("value type {kind}, expected 0 to 12"))
}

/// The tensor table: names, shapes, types, and offsets that are made to count from the file's start.
fn read_tensors(
    cursor: &mut Cursor,
    n_tensors: usize,
    alignment: u64,
    file_bytes: usize,
) -> Result<(Vec<TensorInfo>, HashMap<String, usize>)> {
    let mut tensors = Vec::with_capacity(n_tensors);
    let mut index = HashMap::with_capacity(n_tensors);
    let mut offset_fields = Vec::with_capacity(n_tensors);
    for number in 0..n_tensors {
        let name_offset = cursor.offset();
        let name = cursor.string(Owner::TensorNumber(number))?;
        let owner = Owner::Tensor(name);
        if index.insert(name.to_owned(), number).is_some() {
            return Err(owner.error(name_offset, "the name occurs twice"));
        }
        let tensor = read_tensor(cursor, name)?;
        // The last field read is the offset.
        let offset_field = cursor.offset() - 8;
        if !tensor.offset.is_multiple_of(alignment) {
            let message = format!(
                "data offset {}, expected a multiple of {alignment}",
                tensor.offset
            );
            return Err(owner.error(offset_field, message));
        }
        tensors.push(tensor);
        offset_fields.push(offset_field);
    }

    let data_start = cursor.offset().next_multiple_of(alignment);
    for (tensor, &offset_field) in tensors.iter_mut().zip(&offset_fields) {
        let start = tensor.offset.checked_add(data_start);
        let end = start.and_then(|start| start.checked_add(tensor.n_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => tensor.offset = start,
            _ => {
                let message = format!(
                    "{} bytes at data offset {} end after the file, which has {} bytes of data",
                    tensor.n_bytes,
                    tensor.offset,
                    (file_bytes as u64).saturating_sub(data_start)
                );
                return Err(Owner::Tensor(&tensor.name).error(offset_field, message));
            }
        }
    }
    check_overlaps(&tensors, &offset_fields)?;
    Ok((tensors, index))
}

/// One entry of the tensor table. Its offset still counts from the start of the tensors' data.
fn read_tensor(cursor: &mut Cursor, name: &str) -> Result<TensorInfo> {
    let owner = Owner::Tensor(name);
    let dims_offset = cursor.offset();
    let n_dims = cursor.scalar::<u32>(owner)? as usize;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        let message = format!("{n_dims} dimensions, expected 1 to {MAX_DIMS}");
        return Err(owner.error(dims_offset, message));
    }
    let mut shape = Vec::with_capacity(n_dims);
    for _ in 0..n_dims {
        let offset = cursor.offset();
        let size = cursor.scalar::<u64>(owner)?;
        let size = usize::try_from(size)
            .map_err(|_| owner.error(offset, format!("size {size} is larger than any memory")))?;
        shape.push(size);
    }
    // The file has the innermost size first.
    shape.reverse();
    let id = cursor.scalar::<u32>(owner)?;
    let ty = TensorType::from_id(id).ok_or_else(|| unknown_type(id, name))?;
    let n_bytes =
        tensor_bytes(&shape, ty).map_err(|message| owner.error(dims_offset + 4, message))?;
    let offset = cursor.scalar(owner)?;
    Ok(TensorInfo {
        name: name.to_owned(),
        shape,
        ty,
        part: 0,
        offset,
        n_bytes,
    })
}

fn check_overlaps(tensors: &[TensorInfo], offset_fields: &[u64]) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| tensors[index].offset);
    for pair in order.windows(2) {
        let (before, after) = (&tensors[pair[0]], &tensors[pair[1]]);
        let end = before.offset + before.n_bytes;
        if after.offset < end {
            let message = format!(
                "starts at byte {}, where tensor `{}` extends to byte {end}",
                after.offset, before.name
            );
            return Err(Owner::Tensor(&after.name).error(offset_fields[pair[1]], message));
        }
    }
    Ok(())
}
