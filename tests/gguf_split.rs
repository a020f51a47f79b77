//! Models split into several files: any part opens all, and parts that do not make a model are refused.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::path::PathBuf;

use trueshot::gguf::{Gguf, TensorType, WeightType, Writer};
use trueshot::{Device, Engine, Error};

const N_PARTS: usize = 3;

/// The files of the tiny model in a folder of the test's own.
fn files(test: &str, writer: &Writer, prefix: &str) -> Vec<PathBuf> {
    let folder = std::env::temp_dir().join(format!("trueshot-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let parts = writer.to_parts(N_PARTS).unwrap();
    let paths = (1..).map(|part| folder.join(format!("{prefix}-{part:05}-of-00003.gguf")));
    parts
        .into_iter()
        .zip(paths)
        .map(|(bytes, path)| {
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect()
}

fn remove(files: &[PathBuf]) {
    std::fs::remove_dir_all(files[0].parent().unwrap()).unwrap();
}

fn refusal(result: trueshot::Result<Gguf>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn any_part_opens_all_of_them() {
    let writer = tiny::llama(WeightType::Q4_0, None);
    let whole = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    let files = files("any-part", &writer, "tiny");
    for path in &files {
        let split = Gguf::open(path).unwrap();
        assert_eq!(split.n_parts(), N_PARTS);
        let names = |gguf: &Gguf| {
            gguf.tensors()
                .iter()
                .map(|t| t.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&split), names(&whole));
        let sizes = files.iter().map(|path| path.metadata().unwrap().len());
        assert_eq!(split.file_bytes(), sizes.sum::<u64>());
        for (key, value) in whole.metadata().iter() {
            assert_eq!(split.metadata().get(key), Some(value), "{key}");
        }
        let parts: Vec<usize> = split.tensors().iter().map(|tensor| tensor.part).collect();
        assert!(parts.is_sorted() && parts.contains(&0) && parts.contains(&(N_PARTS - 1)));
        for (a, b) in split.tensors().iter().zip(whole.tensors()) {
            assert_eq!(split.tensor_bytes(a), whole.tensor_bytes(b), "{}", a.name);
            split.release(a);
            assert_eq!(split.tensor_hash(a), whole.tensor_hash(b), "{}", a.name);
        }
    }
    remove(&files);
}

#[test]
fn a_split_model_answers_as_the_whole_one() {
    let writer = tiny::llama(WeightType::Q8_0, None);
    let files = files("answers", &writer, "tiny");
    let logits = |gguf: Gguf| {
        let engine = Engine::builder_from(gguf)
            .device(Device::Cpu)
            .build()
            .unwrap();
        let mut session = engine.session().unwrap();
        session.eval(&[1, 260, 270]).unwrap().to_vec()
    };
    let whole = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    assert_eq!(logits(Gguf::open(&files[1]).unwrap()), logits(whole));
    remove(&files);
}

#[test]
fn a_missing_part_is_named() {
    let files = files("missing", &tiny::llama(WeightType::Q4_0, None), "tiny");
    std::fs::remove_file(&files[1]).unwrap();
    let error = Gguf::open(&files[2]).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == files[1]),
        "{error:?}"
    );
    remove(&files);
}

#[test]
fn a_damaged_part_is_named() {
    let files = files("damaged", &tiny::llama(WeightType::Q4_0, None), "tiny");
    let mut bytes = std::fs::read(&files[1]).unwrap();
    bytes.truncate(bytes.len() - 64);
    std::fs::write(&files[1], bytes).unwrap();
    let error = Gguf::open(&files[0]).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
    assert!(text.contains("tiny-00002-of-00003.gguf"), "{text}");
    remove(&files);
}

#[test]
fn a_part_by_another_name_is_refused() {
    let files = files("name", &tiny::llama(WeightType::Q4_0, None), "tiny");
    let other = files[1].with_file_name("model.gguf");
    std::fs::rename(&files[1], &other).unwrap();
    let text = refusal(Gguf::open(&other));
    let expected = "part 2 of 3, expected a name that ends in `-00002-of-00003.gguf`";
    assert!(
        text.contains("model.gguf") && text.ends_with(expected),
        "{text}"
    );
    remove(&files);
}

#[test]
fn parts_that_do_not_make_a_model_are_refused() {
    let writer = tiny::llama(WeightType::Q4_0, None);
    let three = || writer.to_parts(3).unwrap();
    let four = || writer.to_parts(4).unwrap();
    let whole = writer.to_bytes().unwrap();
    let [a, b, c] = three().try_into().unwrap();
    for (parts, expected) in [
        (vec![a.clone()], "part 1: part 1 of 3, expected part 1 of 1"),
        (
            vec![a.clone(), b.clone()],
            "part 1: part 1 of 3, expected part 1 of 2",
        ),
        (
            vec![a.clone(), c.clone(), b.clone()],
            "part 2: part 3 of 3, expected part 2 of 3",
        ),
        (
            vec![a.clone(), four()[1].clone(), c.clone()],
            "part 2: part 2 of 4, expected part 2 of 3",
        ),
        (
            vec![a.clone(), whole, c.clone()],
            "part 2: a whole model (no key `split.count`), expected part 2 of 3",
        ),
    ] {
        assert_eq!(refusal(Gguf::from_parts(parts)), expected);
    }
    assert!(Gguf::from_parts(vec![a, b, c]).is_ok());
    let error = Gguf::from_parts(Vec::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
}

/// Four tensors by these names, and a key.
fn model(names: [&str; 4], key: u32) -> Vec<Vec<u8>> {
    let writer = Writer::new().metadata("test.key", key);
    let writer = names.into_iter().fold(writer, |writer, name| {
        writer.tensor(name, [1], TensorType::I8, vec![1]).unwrap()
    });
    writer.to_parts(2).unwrap()
}

#[test]
fn parts_of_different_models_are_refused() {
    let first = model(["a", "b", "c", "d"], 1);
    let mix = |second: Vec<u8>| refusal(Gguf::from_parts(vec![first[0].clone(), second]));

    let text = mix(model(["x", "y", "c", "a"], 1)[1].clone());
    assert_eq!(text, "part 2: tensor `a` is in part 1 too");

    let part = |n_tensors: i32, key: u32| {
        Writer::new()
            .metadata("split.no", 1_u16)
            .metadata("split.count", 2_u16)
            .metadata("split.tensors.count", n_tensors)
            .metadata("test.key", key)
    };
    let other_key = part(4, 2).to_bytes().unwrap();
    assert_eq!(
        mix(other_key),
        "part 2: key `test.key`: 2, but 1 in part 1: parts of different models"
    );
    let more = part(4, 1).metadata("test.more", 1_u32).to_bytes().unwrap();
    assert_eq!(
        mix(more),
        "part 2: key `test.more`: missing in part 1, which has those of the model"
    );
    let own = part(4, 1).metadata("split.note", 1_u32).to_bytes().unwrap();
    assert!(mix(own).contains("all parts have 2 together"));
    let other_count = part(5, 1).to_bytes().unwrap();
    assert!(mix(other_count).contains("key `split.tensors.count`: 5, but 4 in part 1"));
    let too_few = part(4, 1).to_bytes().unwrap();
    assert_eq!(
        mix(too_few),
        "part 1: key `split.tensors.count`: 4, but all parts have 2 together"
    );
}

#[test]
fn numbers_of_parts_out_of_range_are_refused() {
    let writer = Writer::new();
    for n_parts in [0, 65_536] {
        let error = writer.to_parts(n_parts).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    }
    let bytes = Writer::new()
        .metadata("split.no", 3_u16)
        .metadata("split.count", 3_u16)
        .to_bytes()
        .unwrap();
    let text = refusal(Gguf::from_bytes(bytes));
    assert_eq!(text, "key `split.no`: 3, expected less than 3");
}
