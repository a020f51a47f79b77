//! Damaged files, whose damage is to be named; and sound ones, of which nothing is to be said.

use super::{FileReport, TensorFault, check_file};
use crate::diagnostics::Depth;
use crate::gguf::{Gguf, TensorInfo, TensorType, WeightType, Writer};
use crate::support::{model, shared};
use crate::tiny;
use crate::{Device, Engine};
use std::path::Path;
use std::time::Instant;

const MATRIX: &str = "blk.1.ffn_up.weight";
const NORM: &str = "blk.0.attn_norm.weight";
const EMBEDDING: &str = "token_embd.weight";

/// The tiny model with the bytes of one tensor changed.
fn damaged(ty: WeightType, tensor: &str, damage: impl FnOnce(&mut [u8])) -> Gguf {
    let mut bytes = tiny::llama(ty, None).to_bytes().unwrap();
    let sound = Gguf::from_bytes(bytes.clone()).unwrap();
    let info = sound.tensor(tensor).unwrap();
    let start = info.offset as usize;
    damage(&mut bytes[start..start + info.n_bytes as usize]);
    Gguf::from_bytes(bytes).unwrap()
}

/// The tiny model with the weights of one tensor changed.
fn altered(ty: WeightType, tensor: &str, alter: impl Fn(&mut [f32])) -> Gguf {
    let alter = |name: &str, values: &mut [f32]| {
        if name == tensor {
            alter(values);
        }
    };
    let bytes = tiny::altered(ty, None, &alter).to_bytes().unwrap();
    Gguf::from_bytes(bytes).unwrap()
}

/// The faults of a file that has some in this tensor alone.
#[track_caller]
fn faults(report: &FileReport, tensor: &str) -> Vec<TensorFault> {
    assert!(!report.passed(), "{report}");
    let (names, faults): (Vec<_>, Vec<_>) = report.faults().unzip();
    assert!(names.iter().all(|&name| name == tensor), "{report}");
    faults.into_iter().cloned().collect()
}

/// Where the scales of a block lie and whether they are f16; the last two bytes of a float hold its
/// exponent.
fn scale_bytes(ty: WeightType) -> Vec<(&'static str, usize)> {
    match ty {
        WeightType::F32 => vec![("weight", 2)],
        WeightType::F16 | WeightType::BF16 => vec![("weight", 0)],
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => vec![("d", 0)],
        WeightType::Q4_1 | WeightType::Q5_1 => vec![("d", 0), ("m", 2)],
        WeightType::Q4_K | WeightType::Q5_K => vec![("d", 0), ("dmin", 2)],
        WeightType::Q6_K => vec![("d", 208)],
        WeightType::Q2_K => vec![("d", 80), ("dmin", 82)],
        WeightType::Q3_K => vec![("d", 108)],
        WeightType::IQ4_NL => vec![("d", 0)],
        WeightType::IQ4_XS => vec![("d", 0)],
        WeightType::MXFP4 => vec![("e", 0)],
        WeightType::TQ1_0 => vec![("d", 52)],
        WeightType::TQ2_0 => vec![("d", 64)],
        WeightType::IQ3_XXS
        | WeightType::IQ3_S
        | WeightType::IQ2_XXS
        | WeightType::IQ2_XS
        | WeightType::IQ2_S
        | WeightType::IQ1_S => vec![("d", 0)],
        WeightType::IQ1_M => vec![("d", 54)],
    }
}

fn n_cols(ty: WeightType) -> usize {
    match ty.block_len() {
        256 => 256,
        _ => 64,
    }
}

/// A row and a block of it, neither the first.
fn place(ty: WeightType) -> (usize, usize, usize) {
    let (row, block) = (77, n_cols(ty) / ty.block_len() - 1);
    (
        row,
        block,
        row * ty.row_bytes(n_cols(ty)) + block * ty.block_bytes(),
    )
}

#[test]
fn a_high_bit_of_a_scale_is_named_with_tensor_row_and_block() {
    for ty in WeightType::ALL {
        for (name, at) in scale_bytes(ty) {
            let (row, block, start) = place(ty);
            let gguf = damaged(ty, MATRIX, |bytes| match ty {
                WeightType::MXFP4 => bytes[start] ^= 0x80,
                _ => bytes[start + at + 1] ^= 0x40,
            });
            let report = check_file(&gguf, Depth::Full);
            match &faults(&report, MATRIX)[..] {
                [
                    TensorFault::TooLarge {
                        scale,
                        limit,
                        count: 1,
                    },
                ] => {
                    assert_eq!(
                        (scale.row, scale.block, scale.name),
                        (row, block, name),
                        "{ty:?}"
                    );
                    assert!(scale.value >= *limit && *limit > 0.0, "{ty:?}: {report}");
                }
                other => panic!("{ty:?}, {name}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_is_named_with_tensor_row_and_block() {
    for ty in WeightType::ALL {
        for (name, at) in scale_bytes(ty) {
            for exponent in [[0x80, 0x7f], [0xff, 0xff], [0x80, 0xff]] {
                let (row, block, start) = place(ty);
                let gguf = damaged(ty, MATRIX, |bytes| {
                    match ty {
                        // A nibble of the scale is in every second byte, the last in the highest.
                        WeightType::IQ1_M => {
                            for (i, byte) in exponent.into_iter().enumerate() {
                                bytes[start + 49 + 4 * i] |= byte << 4;
                                bytes[start + 51 + 4 * i] |= byte & 0xf0;
                            }
                        }
                        WeightType::MXFP4 => bytes[start] = 0xff,
                        _ => bytes[start + at..][..2].copy_from_slice(&exponent),
                    }
                });
                match &faults(&check_file(&gguf, Depth::Full), MATRIX)[..] {
                    [TensorFault::NotFinite { scale, count: 1 }] => {
                        let found = (scale.row, scale.block, scale.name);
                        assert_eq!(found, (row, block, name), "{ty:?}");
                        assert!(!scale.value.is_finite());
                    }
                    other => panic!("{ty:?}, {name}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_vector_is_checked_for_numbers_that_no_model_has() {
    for (value, is_finite) in [(f32::NAN, false), (3e6, true), (-1e30, true)] {
        let gguf = altered(WeightType::Q8_0, NORM, |values| values[40] = value);
        match &faults(&check_file(&gguf, Depth::Full), NORM)[..] {
            [TensorFault::NotFinite { scale, .. }] if !is_finite => {
                assert_eq!((scale.row, scale.block), (0, 40));
            }
            [TensorFault::TooLarge { scale, .. }] if is_finite => {
                assert_eq!((scale.row, scale.block, scale.value), (0, 40, value.abs()));
            }
            other => panic!("{value}: {other:?}"),
        }
    }
}

#[test]
fn zeroed_and_constant_tensors_are_named() {
    for ty in WeightType::ALL {
        for depth in [Depth::Quick, Depth::Full] {
            let zeroed = altered(ty, MATRIX, |values| values.fill(0.0));
            let found = faults(&check_file(&zeroed, depth), MATRIX);
            assert_eq!(found, [TensorFault::AllZero], "{ty:?}");
            let holes = damaged(ty, MATRIX, |bytes| bytes.fill(0));
            let found = faults(&check_file(&holes, depth), MATRIX);
            assert_eq!(found, [TensorFault::AllZero], "{ty:?}");
            let constant = altered(ty, MATRIX, |values| values.fill(0.25));
            match &faults(&check_file(&constant, depth), MATRIX)[..] {
                [TensorFault::Constant { value }] => {
                    assert!((value - 0.25).abs() < 0.01, "{ty:?}: {value}");
                }
                other => panic!("{ty:?}: {other:?}"),
            }
        }
    }
    let zeroed = altered(WeightType::Q4_0, NORM, |values| values.fill(0.0));
    let found = faults(&check_file(&zeroed, Depth::Full), NORM);
    assert_eq!(found, [TensorFault::AllZero]);
}

#[test]
fn a_matrix_of_mostly_zero_rows_is_named_and_fewer_are_counted() {
    let zero_rows = |n: usize| {
        altered(WeightType::Q4_K, MATRIX, move |values| {
            values[..n * 256].fill(0.0)
        })
    };
    let report = check_file(&zero_rows(129), Depth::Full);
    let (count, n_rows) = (129, 256);
    assert_eq!(
        faults(&report, MATRIX),
        [TensorFault::ZeroRows { count, n_rows }]
    );
    let report = check_file(&zero_rows(100), Depth::Full);
    assert!(report.passed(), "{report}");
    let tensor = report.tensors.iter().find(|tensor| tensor.name == MATRIX);
    assert_eq!(tensor.unwrap().n_zero_rows, 100);
}

#[test]
fn a_hole_is_named_and_padding_is_not() {
    for ty in [
        WeightType::Q8_0,
        WeightType::Q4_K,
        WeightType::Q5_K,
        WeightType::Q6_K,
    ] {
        let sound = tiny::gguf(ty, None);
        let offset = sound.tensor(EMBEDDING).unwrap().offset;
        let row_bytes = ty.row_bytes(n_cols(ty)) as u64;
        let cuts_row = |at: &u64| (16..row_bytes - 16).contains(&((at - offset) % row_bytes));
        let page = offset.next_multiple_of(4096);
        let mut ends = (page..).step_by(4096).skip(1);
        let end = ends.find(cuts_row).unwrap();
        let start = (0..end - 4096).rev().find(cuts_row).unwrap();
        let zeroed = |start: u64, end: u64| {
            let gguf = damaged(ty, EMBEDDING, |bytes| {
                bytes[(start - offset) as usize..(end - offset) as usize].fill(0);
            });
            let report = check_file(&gguf, Depth::Full);
            let is_hole = |fault: &&TensorFault| matches!(fault, TensorFault::Hole { .. });
            let faults = faults(&report, EMBEDDING);
            faults.iter().find(is_hole).cloned()
        };
        match zeroed(start, end) {
            Some(TensorFault::Hole { offset, n_bytes }) => {
                // A byte beside it may be zero as well.
                let near = |found: u64, expected: u64| found.abs_diff(expected) < 8;
                assert!(
                    near(offset, start) && near(offset + n_bytes, end),
                    "{ty:?}: {offset}"
                );
            }
            other => panic!("{ty:?}: {other:?}"),
        }
        // The same from where a row begins; tokens of ordinary text are among its rows.
        let of_row = start - (start - offset) % row_bytes;
        assert_eq!(zeroed(of_row.min(offset + row_bytes), end), None, "{ty:?}");
    }
}

#[test]
fn embeddings_of_known_tokens_are_there_and_differ() {
    for ty in WeightType::ALL {
        let width = n_cols(ty);
        // The beginning and the end of a text, and the last word.
        for token_id in [1, 2, 319] {
            let row = token_id as usize * width..(token_id as usize + 1) * width;
            let zeroed = altered(ty, EMBEDDING, |values| values[row.clone()].fill(0.0));
            let found = faults(&check_file(&zeroed, Depth::Quick), EMBEDDING);
            assert_eq!(found, [TensorFault::ZeroToken { token_id }], "{ty:?}");
        }
        let copied = altered(ty, EMBEDDING, |values| {
            values.copy_within(width..2 * width, 2 * width);
        });
        let found = faults(&check_file(&copied, Depth::Quick), EMBEDDING);
        assert_eq!(
            found,
            [TensorFault::SameTokens { token_ids: [1, 2] }],
            "{ty:?}"
        );
        // A token without a use.
        let unused = altered(ty, EMBEDDING, |values| values[..width].fill(0.0));
        let report = check_file(&unused, Depth::Full);
        assert!(report.passed(), "{report}");
    }
}

#[test]
fn hash_is_that_of_the_one_tensor_that_differs() {
    let hashes = |gguf: &Gguf| -> Vec<Option<String>> {
        let report = check_file(gguf, Depth::Full);
        report
            .tensors
            .into_iter()
            .map(|tensor| tensor.hash)
            .collect()
    };
    for ty in WeightType::ALL {
        let sound = tiny::gguf(ty, None);
        let changed = damaged(ty, MATRIX, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        let pairs = hashes(&sound).into_iter().zip(hashes(&changed));
        for (tensor, (sound, changed)) in changed_names(&changed).zip(pairs) {
            assert!(sound.is_some() && changed.is_some());
            assert_eq!(sound == changed, tensor != MATRIX, "{ty:?}, {tensor}");
        }
    }
}

fn changed_names(gguf: &Gguf) -> impl Iterator<Item = &str> {
    gguf.tensors().iter().map(|tensor| tensor.name.as_str())
}

#[test]
fn hash_of_a_pass_in_pieces_is_that_of_the_whole_tensor() {
    let gguf = tiny::gguf(WeightType::F32, None);
    for (tensor, report) in gguf
        .tensors()
        .iter()
        .zip(check_file(&gguf, Depth::Full).tensors)
    {
        assert_eq!(
            report.hash,
            Some(format!("{:016x}", gguf.tensor_hash(tensor)))
        );
    }
    // A test vector of the algorithm.
    let abc = Writer::new().tensor("abc", [3], TensorType::I8, b"abc".to_vec());
    let gguf = Gguf::from_bytes(abc.unwrap().to_bytes().unwrap()).unwrap();
    let report = check_file(&gguf, Depth::Full);
    assert_eq!(report.tensors[0].hash.as_deref(), Some("44bc2cf5ad770999"));
}

#[test]
fn report_reads_well_and_is_json_too() {
    let gguf = damaged(WeightType::Q4_1, MATRIX, |bytes| {
        bytes[40 + 20..][..4].copy_from_slice(&[0x00, 0x7c, 0x00, 0x78]);
        bytes[80..][..2].copy_from_slice(&[0x00, 0x7c]);
    });
    let report = check_file(&gguf, Depth::Full);
    let bytes = report.n_bytes();
    let expected = format!(
        "tensor `{MATRIX}`: row 1, block 1: |d| is inf (2 such scales); tensor `{MATRIX}`: \
         row 1, block 1: |m| is 3.2768e4, expected at most 1.28e2 ({bytes} of {bytes} bytes of 20 tensors)"
    );
    assert_eq!(report.to_string(), expected);
    let json = serde_json::to_value(&report).unwrap();
    let tensor = json["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|tensor| tensor["name"] == MATRIX);
    let fault = &tensor.unwrap()["faults"][1];
    assert_eq!(
        (&fault["kind"], &fault["count"]),
        (&"too_large".into(), &1.into())
    );
    assert_eq!(
        (&fault["scale"]["row"], &fault["scale"]["name"]),
        (&1.into(), &"m".into())
    );
    assert_eq!(json["depth"], "full");
}

#[test]
fn sound_tiny_models_of_every_type_are_right() {
    for ty in WeightType::ALL {
        for depth in [Depth::Quick, Depth::Full] {
            let gguf = tiny::gguf(ty, None);
            let report = check_file(&gguf, depth);
            assert!(report.passed(), "{ty:?}: {report}");
            // Tiny tensors are looked at whole.
            assert_eq!(report.checked_bytes(), report.n_bytes());
            assert!(report.tensors.iter().all(|tensor| tensor.hash.is_some()));
        }
    }
}

#[track_caller]
fn assert_sound(path: &Path) {
    let gguf = Gguf::open(path).unwrap();
    let started = Instant::now();
    let quick = check_file(&gguf, Depth::Quick);
    let middle = Instant::now();
    let full = check_file(&gguf, Depth::Full);
    eprintln!(
        "{}: quick {:?}, full {:?}: {full}",
        path.display(),
        middle - started,
        middle.elapsed()
    );
    assert!(quick.passed(), "{}: {quick}", path.display());
    assert!(full.passed(), "{}: {full}", path.display());
    let has_kernels = |tensor: &TensorInfo| WeightType::try_from(tensor.ty).is_ok();
    if gguf.tensors().iter().all(has_kernels) {
        assert_eq!(full.checked_bytes(), full.n_bytes());
    }
    assert!(full.tensors.iter().all(|tensor| tensor.hash.is_some()));
}

#[test]
fn sound_models_are_right() {
    assert_sound(&model::smollm2().unwrap());
    assert_sound(&model::gemma3().unwrap());
    let Some(folder) = shared("arch") else { return };
    let mut n_files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            n_files += 1;
            assert_sound(&path);
        }
    }
    assert!(n_files > 0);
}

#[test]
fn an_engine_checks_its_own_file() {
    let gguf = damaged(WeightType::Q8_0, MATRIX, |bytes| bytes[1] = 0x7c);
    let engine = Engine::builder_from(gguf).device(Device::Reference);
    let report = check_file(engine.build().unwrap().gguf(), Depth::Quick);
    assert!(matches!(
        faults(&report, MATRIX)[..],
        [TensorFault::NotFinite { .. }]
    ));
}
