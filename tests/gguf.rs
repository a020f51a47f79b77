//! GGUF files: what is written is read back, the writer refuses what no file may hold, and blocks
//! decode to the values of an independent decoder.

use std::path::Path;

use trueshot::Error;
use trueshot::gguf::{Array, Gguf, TensorType, Value, WeightType, Writer};

fn values() -> Vec<(&'static str, Value)> {
    vec![
        ("u8", Value::U8(u8::MAX)),
        ("i8", Value::I8(i8::MIN)),
        ("u16", Value::U16(u16::MAX)),
        ("i16", Value::I16(i16::MIN)),
        ("u32", Value::U32(u32::MAX)),
        ("i32", Value::I32(i32::MIN)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f32", Value::F32(f32::MIN_POSITIVE)),
        ("f64", Value::F64(f64::MAX)),
        ("true", Value::Bool(true)),
        ("false", Value::Bool(false)),
        ("string", Value::String("\u{1f426} \0 text".to_owned())),
        ("empty string", Value::String(String::new())),
        ("u8s", vec![0_u8, 255].into()),
        ("i8s", vec![-128_i8, 127].into()),
        ("u16s", vec![0_u16, 65535].into()),
        ("i16s", vec![-32768_i16, 32767].into()),
        ("u32s", vec![1_u32, 2, 3].into()),
        ("i32s", vec![-1_i32].into()),
        ("u64s", vec![u64::MAX].into()),
        ("i64s", vec![i64::MIN].into()),
        ("f32s", vec![0.5_f32, f32::INFINITY].into()),
        ("f64s", vec![0.25_f64].into()),
        ("bools", vec![true, false, true].into()),
        (
            "strings",
            vec!["a".to_owned(), String::new(), "\u{3b2}".to_owned()].into(),
        ),
        ("empty", Vec::<f32>::new().into()),
        (
            "nested",
            vec![
                Array::Array(vec![
                    Array::U16(vec![1, 2]),
                    Array::String(vec!["x".to_owned()]),
                ]),
                Array::Bool(vec![false]),
                Array::Array(vec![]),
            ]
            .into(),
        ),
    ]
}

#[test]
fn metadata_of_every_kind_round_trips_in_both_versions() {
    for version in [2, 3] {
        let writer = Writer::new().version(version).expect("a version");
        let writer = values()
            .into_iter()
            .fold(writer, |w, (key, value)| w.metadata(key, value));
        let gguf = Gguf::from_bytes(writer.to_bytes().expect("a file")).expect("a sound file");
        assert_eq!(gguf.version(), version);
        let read: Vec<_> = gguf
            .metadata()
            .iter()
            .map(|(k, v)| (k, v.clone()))
            .collect();
        assert_eq!(read, values());
        assert!(gguf.tensors().is_empty());
    }
}

#[test]
fn tensors_round_trip_at_every_alignment() {
    for alignment in [1, 8, 24, 32, 64, 4096] {
        let mut writer = Writer::new().alignment(alignment).expect("an alignment");
        let sizes: [(&[usize], TensorType); 4] = [
            (&[7], TensorType::I8),
            (&[2, 3, 5, 32], TensorType::Q8_0),
            (&[1, 256], TensorType::IQ2_XXS),
            (&[3, 1], TensorType::F64),
        ];
        let bytes = |shape: &[usize], ty: TensorType| -> Vec<u8> {
            let n_elements: usize = shape.iter().product();
            let n_bytes = n_elements / ty.block_len() * ty.block_bytes();
            (0..n_bytes).map(|index| (index % 251) as u8).collect()
        };
        for (shape, ty) in sizes {
            writer = writer
                .tensor(ty.name(), shape, ty, bytes(shape, ty))
                .expect("matching bytes");
        }
        let gguf = Gguf::from_bytes(writer.to_bytes().expect("a file")).expect("a sound file");
        assert_eq!(gguf.alignment(), u64::from(alignment));
        assert_eq!(gguf.tensors().len(), sizes.len());
        for (tensor, (shape, ty)) in gguf.tensors().iter().zip(sizes) {
            assert_eq!((tensor.name.as_str(), tensor.ty), (ty.name(), ty));
            assert_eq!(tensor.shape, shape);
            assert_eq!(tensor.offset % u64::from(alignment), 0);
            assert_eq!(gguf.tensor_bytes(tensor), bytes(shape, ty));
            assert_eq!(gguf.tensor(ty.name()), Some(tensor));
        }
        assert_eq!(gguf.tensor("absent"), None);
    }
}

#[test]
fn tensor_rows_and_columns_follow_the_shape() {
    let bytes = vec![0; 2 * 3 * 4 * 4];
    let file = Writer::new()
        .tensor("t", [2, 3, 4], TensorType::F32, bytes)
        .expect("96 bytes");
    let gguf = Gguf::from_bytes(file.to_bytes().expect("a file")).expect("a sound file");
    let tensor = &gguf.tensors()[0];
    assert_eq!(
        (tensor.n_elements(), tensor.n_rows(), tensor.n_cols()),
        (24, 6, 4)
    );
}

#[test]
fn file_reads_the_same_from_disk_before_and_after_release() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf_release.gguf");
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|index| (index % 253) as u8).collect();
    Writer::new()
        .tensor("t", [1 << 20], TensorType::I8, bytes.clone())
        .expect("matching bytes")
        .write_to(&path)
        .expect("written");
    let gguf = Gguf::open(&path).expect("a sound file");
    let tensor = gguf.tensor("t").expect("the tensor");
    assert_eq!(gguf.tensor_bytes(tensor), bytes);
    gguf.release(tensor);
    assert_eq!(gguf.tensor_bytes(tensor), bytes);
    assert_eq!(
        gguf.file_bytes(),
        std::fs::metadata(&path).expect("the file").len()
    );
    drop(gguf);
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn open_names_a_file_that_is_not_there() {
    let error = Gguf::open("no/such/model.gguf").expect_err("no such file");
    assert!(matches!(error, Error::Io { .. }));
    assert!(
        error.to_string().starts_with("`no/such/model.gguf`: "),
        "{error}"
    );
}

#[track_caller]
fn assert_invalid_argument<T: std::fmt::Debug>(result: Result<T, Error>, text: &str) {
    match result {
        Err(error @ Error::InvalidArgument { .. }) => {
            assert!(
                error.to_string().contains(text),
                "found `{error}`, expected `{text}`"
            );
        }
        other => panic!("expected `{text}`, got {other:?}"),
    }
}

#[test]
fn writer_refuses_a_wrong_number_of_bytes() {
    let result = Writer::new().tensor("t", [2, 32], TensorType::Q4_0, vec![0; 35]);
    let text = "tensor `t`: 35 bytes, expected 36 for shape [2, 32] of type q4_0";
    assert_invalid_argument(result, text);
}

#[test]
fn writer_refuses_shapes_that_no_file_can_have() {
    let tensor = |shape: &[usize], ty| Writer::new().tensor("t", shape, ty, Vec::new());
    assert_invalid_argument(tensor(&[], TensorType::F32), "no dimensions");
    assert_invalid_argument(tensor(&[1; 5], TensorType::F32), "5 dimensions");
    assert_invalid_argument(tensor(&[2, 0], TensorType::F32), "has a size of 0");
    assert_invalid_argument(tensor(&[2, 48], TensorType::Q8_0), "rows of 48 elements");
    assert_invalid_argument(
        tensor(&[usize::MAX, 2], TensorType::F32),
        "larger than any memory",
    );
}

#[test]
fn writer_refuses_a_tensor_name_that_occurs_twice() {
    let writer = Writer::new()
        .tensor("t", [1], TensorType::I8, vec![0])
        .expect("one byte");
    let result = writer.tensor("t", [1], TensorType::I8, vec![0]);
    assert_invalid_argument(result, "tensor `t`: the name occurs twice");
}

#[test]
fn writer_refuses_versions_alignments_and_nesting_that_are_not_read() {
    assert_invalid_argument(Writer::new().version(1), "`version`: 1, expected 2 or 3");
    assert_invalid_argument(Writer::new().alignment(0), "`alignment`: u32 0");
    assert_invalid_argument(Writer::new().alignment(12), "`alignment`: u32 12");
    let deep = (0..8).fold(Array::U8(vec![1]), |inner, _| Array::Array(vec![inner]));
    let result = Writer::new().metadata("k", deep).to_bytes();
    assert_invalid_argument(result, "key `k`: arrays nest more than 8 deep");
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).expect("a hex digit") as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// `tests/data/gguf/make_blocks.py` says where the values come from. They are equal bit for bit.
#[test]
fn blocks_decode_bit_for_bit_as_in_the_python_package() {
    let text = include_str!("data/gguf/blocks.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(text).expect("JSON");
    for weight_type in WeightType::ALL {
        let mut n_cases = 0;
        for case in cases
            .iter()
            .filter(|case| case["type"] == weight_type.name())
        {
            let bytes = from_hex(case["bytes"].as_str().expect("hex"));
            let expected = from_hex(case["values"].as_str().expect("hex"));
            let expected: Vec<f32> = expected
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
                .collect();
            let mut found = vec![f32::NAN; expected.len()];
            weight_type.decode(&bytes, &mut found);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "weight {index}: {found}, expected {expected}, in {case}"
                );
            }
            n_cases += 1;
        }
        assert!(n_cases > 0, "no blocks of type {}", weight_type.name());
    }
}
