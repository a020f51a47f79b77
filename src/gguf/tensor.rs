//! Tensor types and the tensor table's entries.

use std::fmt;

use crate::error::{Error, Result};
use crate::gguf::WeightType;

/// How a tensor's elements are stored: every type that ggml knows, also those that no executor
/// computes with (see [`WeightType`]).
///
/// Source: `enum ggml_type` in ggml.h and the block structs in ggml-common.h of llama.cpp.
#[expect(non_camel_case_types, reason = "the names are ggml's")]
#[expect(missing_docs, reason = "the names say all there is to say here")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

impl TensorType {
    /// Every type, in the order of the ids.
    pub const ALL: [TensorType; 35] = {
        use TensorType::*;
        [
            F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K,
            IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64,
            IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0,
        ]
    };

    /// The type with ggml's number `id`, or `None` where there is no such type (any more).
    pub fn from_id(id: u32) -> Option<TensorType> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// The ids of types that ggml had once, with their names: no tensor of today has them.
    pub const REMOVED: [(u32, &str); 8] = [
        (4, "q4_2"),
        (5, "q4_3"),
        (31, "q4_0_4_4"),
        (32, "q4_0_4_8"),
        (33, "q4_0_8_8"),
        (36, "iq4_nl_4_4"),
        (37, "iq4_nl_4_8"),
        (38, "iq4_nl_8_8"),
    ];

    /// ggml's number of the type, as it stands in files.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name of the type, e.g. `q4_K`.
    pub const fn name(self) -> &'static str {
        self.layout().0
    }

    /// Elements in a block.
    pub const fn block_len(self) -> usize {
        self.layout().1
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.layout().2
    }

    /// Name, elements of a block, bytes of a block.
    const fn layout(self) -> (&'static str, usize, usize) {
        match self {
            TensorType::F32 => ("f32", 1, 4),
            TensorType::F16 => ("f16", 1, 2),
            TensorType::Q4_0 => ("q4_0", 32, 18),
            TensorType::Q4_1 => ("q4_1", 32, 20),
            TensorType::Q5_0 => ("q5_0", 32, 22),
            TensorType::Q5_1 => ("q5_1", 32, 24),
            TensorType::Q8_0 => ("q8_0", 32, 34),
            TensorType::Q8_1 => ("q8_1", 32, 36),
            TensorType::Q2_K => ("q2_K", 256, 84),
            TensorType::Q3_K => ("q3_K", 256, 110),
            TensorType::Q4_K => ("q4_K", 256, 144),
            TensorType::Q5_K => ("q5_K", 256, 176),
            TensorType::Q6_K => ("q6_K", 256, 210),
            TensorType::Q8_K => ("q8_K", 256, 292),
            TensorType::IQ2_XXS => ("iq2_xxs", 256, 66),
            TensorType::IQ2_XS => ("iq2_xs", 256, 74),
            TensorType::IQ3_XXS => ("iq3_xxs", 256, 98),
            TensorType::IQ1_S => ("iq1_s", 256, 50),
            TensorType::IQ4_NL => ("iq4_nl", 32, 18),
            TensorType::IQ3_S => ("iq3_s", 256, 110),
            TensorType::IQ2_S => ("iq2_s", 256, 82),
            TensorType::IQ4_XS => ("iq4_xs", 256, 136),
            TensorType::I8 => ("i8", 1, 1),
            TensorType::I16 => ("i16", 1, 2),
            TensorType::I32 => ("i32", 1, 4),
            TensorType::I64 => ("i64", 1, 8),
            TensorType::F64 => ("f64", 1, 8),
            TensorType::IQ1_M => ("iq1_m", 256, 56),
            TensorType::BF16 => ("bf16", 1, 2),
            TensorType::TQ1_0 => ("tq1_0", 256, 54),
            TensorType::TQ2_0 => ("tq2_0", 256, 66),
            TensorType::MXFP4 => ("mxfp4", 32, 17),
            TensorType::NVFP4 => ("nvfp4", 64, 36),
            TensorType::Q1_0 => ("q1_0", 128, 18),
            TensorType::Q2_0 => ("q2_0", 64, 18),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<WeightType> for TensorType {
    fn from(weight_type: WeightType) -> TensorType {
        match weight_type {
            WeightType::F32 => TensorType::F32,
            WeightType::F16 => TensorType::F16,
            WeightType::BF16 => TensorType::BF16,
            WeightType::Q4_0 => TensorType::Q4_0,
            WeightType::Q4_1 => TensorType::Q4_1,
            WeightType::Q5_0 => TensorType::Q5_0,
            WeightType::Q5_1 => TensorType::Q5_1,
            WeightType::Q8_0 => TensorType::Q8_0,
            WeightType::Q4_K => TensorType::Q4_K,
            WeightType::Q5_K => TensorType::Q5_K,
            WeightType::Q6_K => TensorType::Q6_K,
            WeightType::Q2_K => TensorType::Q2_K,
            WeightType::Q3_K => TensorType::Q3_K,
            WeightType::IQ4_NL => TensorType::IQ4_NL,
            WeightType::IQ4_XS => TensorType::IQ4_XS,
            WeightType::MXFP4 => TensorType::MXFP4,
            WeightType::TQ1_0 => TensorType::TQ1_0,
            WeightType::TQ2_0 => TensorType::TQ2_0,
            WeightType::IQ3_XXS => TensorType::IQ3_XXS,
            WeightType::IQ3_S => TensorType::IQ3_S,
            WeightType::IQ2_XXS => TensorType::IQ2_XXS,
            WeightType::IQ2_XS => TensorType::IQ2_XS,
            WeightType::IQ2_S => TensorType::IQ2_S,
            WeightType::IQ1_S => TensorType::IQ1_S,
            WeightType::IQ1_M => TensorType::IQ1_M,
        }
    }
}

/// # Errors
/// `Unsupported` with the type's id and name and those of the weight types.
impl TryFrom<TensorType> for WeightType {
    type Error = Error;

    fn try_from(ty: TensorType) -> Result<WeightType> {
        find(ty).ok_or_else(|| no_weight_type(format!("{} ({ty})", ty.id())))
    }
}

fn find(ty: TensorType) -> Option<WeightType> {
    WeightType::ALL
        .into_iter()
        .find(|&weight_type| TensorType::from(weight_type) == ty)
}

fn no_weight_type(name: String) -> Error {
    let mut types = WeightType::ALL.map(TensorType::from);
    types.sort_by_key(|ty| ty.id());
    Error::Unsupported {
        kind: "weight type",
        name,
        supported: types.map(|ty| format!("{} {ty}", ty.id())).join(", "),
    }
}

/// What is wrong with a tensor whose type has an id that is not ggml's, or is no longer.
pub(super) fn unknown_type(id: u32, tensor: &str) -> Error {
    let removed = TensorType::REMOVED.iter().find(|removed| removed.0 == id);
    let name = match removed {
        Some((_, name)) => format!("{id} ({name}, which ggml has removed) of {tensor}"),
        None => format!("{id} of {tensor}"),
    };
    let known = TensorType::ALL.map(|ty| format!("{} {ty}", ty.id()));
    let removed = TensorType::REMOVED.map(|(id, name)| format!("{id} {name}"));
    Error::Unsupported {
        kind: "tensor type",
        name,
        supported: format!("{}; removed: {}", known.join(", "), removed.join(", ")),
    }
}

impl TensorInfo {
    /// The type of its elements as one that the engine computes with.
    ///
    /// # Errors
    /// `Unsupported` with the name and the type of the tensor.
    pub(crate) fn weight_type(&self) -> Result<WeightType> {
        let (ty, name) = (self.ty, &self.name);
        find(ty).ok_or_else(|| no_weight_type(format!("{} ({ty}) of {name}", ty.id())))
    }
}

/// A tensor of a file: what it is called, its shape and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// One to four sizes, none of them 0, outermost first: a matrix is `[n_rows, n_cols]`. (The file
    /// has them innermost first.)
    pub shape: Vec<usize>,
    /// How the elements are stored. Every row is a whole number of blocks.
    pub ty: TensorType,
    /// Which of the model's files has it: 0 for a model in one file, see [`Gguf::open`].
    ///
    /// [`Gguf::open`]: crate::gguf::Gguf::open
    pub part: usize,
    /// Where the tensor begins, in bytes from the start of the file.
    pub offset: u64,
    /// The tensor's size in bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The innermost size: the elements of a row.
    pub fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The number of rows: the product of all sizes but the innermost.
    pub fn n_rows(&self) -> usize {
        self.shape
            .split_last()
            .map_or(1, |(_, outer)| outer.iter().product())
    }
}

/// The largest number of dimensions that ggml has (`GGML_MAX_DIMS`).
pub(super) const MAX_DIMS: usize = 4;

/// The size in bytes of a tensor of the given shape (outermost first), or what is wrong with it.
pub(super) fn tensor_bytes(shape: &[usize], ty: TensorType) -> Result<u64, String> {
    let Some(&n_cols) = shape.last() else {
        return Err("no dimensions".to_owned());
    };
    if shape.len() > MAX_DIMS {
        return Err(format!(
            "{} dimensions, expected at most {MAX_DIMS}",
            shape.len()
        ));
    }
    if shape.contains(&0) {
        return Err(format!("shape {shape:?} has a size of 0"));
    }
    if !n_cols.is_multiple_of(ty.block_len()) {
        let block_len = ty.block_len();
        return Err(format!(
            "rows of {n_cols} elements, expected a multiple of {block_len} for type {ty}"
        ));
    }
    shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size))
        .and_then(|n_elements| (n_elements / ty.block_len()).checked_mul(ty.block_bytes()))
        .map(|n_bytes| n_bytes as u64)
        .ok_or_else(|| format!("shape {shape:?} of type {ty} is larger than any memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_type_ids_round_trip() {
        for ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        }
        assert!(TensorType::ALL.is_sorted_by_key(|ty| ty.id()));
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(TensorType::from_id(removed), None, "id {removed}");
        }
        let mut ids: Vec<u32> = TensorType::ALL.map(TensorType::id).to_vec();
        ids.extend(TensorType::REMOVED.map(|(id, _)| id));
        ids.sort();
        assert!(ids.into_iter().eq(0..=42), "each id has one name");
    }

    #[test]
    fn weight_type_of_a_tensor_type_without_kernels_is_refused_by_name() {
        let error = WeightType::try_from(TensorType::NVFP4).expect_err("no kernel has it");
        let text = error.to_string();
        assert!(
            text.starts_with("weight type `40 (nvfp4)` is not supported (supported: 0 f32, 1 f16,"),
            "{text}"
        );
        assert!(
            text.contains("2 q4_0") && text.contains("14 q6_K"),
            "{text}"
        );
    }

    #[test]
    fn weight_type_round_trips_through_tensor_type() {
        for weight_type in WeightType::ALL {
            let ty = TensorType::from(weight_type);
            assert_eq!(
                WeightType::try_from(ty).expect("a weight type"),
                weight_type
            );
            assert_eq!(ty.name(), weight_type.name());
        }
    }
}
