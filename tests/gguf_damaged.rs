//! Damaged GGUF files: each is refused by the offset and the name of what is wrong, none panics.

use trueshot::Error;
use trueshot::gguf::{Array, Gguf, TensorType, WeightType, Writer};

/// A small sound file with two tensors and every sort of metadata that the damage below needs.
fn file() -> Vec<u8> {
    Writer::new()
        .metadata("a.text", "h\u{e9}llo")
        .metadata("b.list", vec![1_u32, 2, 3])
        .metadata("c.flag", true)
        .metadata("d.words", vec!["x".to_owned(), "yz".to_owned()])
        .metadata("e.nested", vec![Array::U8(vec![7]), Array::U8(vec![])])
        .alignment(64)
        .expect("a power of two")
        .tensor("first.weight", [2, 32], TensorType::Q4_0, (0..36).collect())
        .expect("36 bytes")
        .tensor("second.weight", [3], TensorType::F32, (0..12).collect())
        .expect("12 bytes")
        .to_bytes()
        .expect("a sound file")
}

/// Where a name stands in a file. Its length stands 8 bytes before, its fields follow it.
fn position(file: &[u8], name: &str) -> usize {
    let windows = file.windows(name.len());
    windows
        .clone()
        .position(|window| window == name.as_bytes())
        .expect("the name is in the file")
}

/// Where the fields after a name begin.
fn after(file: &[u8], name: &str) -> usize {
    position(file, name) + name.len()
}

fn put<const N: usize>(file: &mut [u8], offset: usize, bytes: [u8; N]) {
    file[offset..offset + N].copy_from_slice(&bytes);
}

/// Checks that a file is refused for the field at `offset`, in words that contain `message`.
#[track_caller]
fn assert_refused(file: Vec<u8>, offset: usize, message: &str) {
    match Gguf::from_bytes(file) {
        Err(Error::Gguf {
            offset: found_offset,
            message: found,
        }) => {
            assert!(
                found.contains(message),
                "found `{found}`, expected `{message}`"
            );
            assert_eq!(found_offset, offset as u64, "{found}");
        }
        other => panic!("expected `{message}` at byte {offset}, got {other:?}"),
    }
}

#[track_caller]
fn assert_unsupported(file: Vec<u8>, text: &str) {
    match Gguf::from_bytes(file) {
        Err(error @ Error::Unsupported { .. }) => {
            assert!(
                error.to_string().starts_with(text),
                "found `{error}`, expected `{text}`"
            );
        }
        other => panic!("expected `{text}`, got {other:?}"),
    }
}

#[test]
fn undamaged_file_is_read() {
    let gguf = Gguf::from_bytes(file()).expect("a sound file");
    assert_eq!(gguf.tensors().len(), 2);
    assert_eq!(gguf.metadata().len(), 6);
}

#[test]
fn magic_of_another_format_is_refused() {
    let mut file = file();
    put(&mut file, 0, *b"ggjt");
    assert_refused(file, 0, "header: magic `ggjt`, expected `GGUF`");
}

#[test]
fn empty_file_is_refused() {
    assert_refused(
        Vec::new(),
        0,
        "header: 4 bytes expected, the file ends after 0",
    );
}

#[test]
fn big_endian_file_is_refused_as_such() {
    let mut file = file();
    put(&mut file, 4, 3_u32.to_be_bytes());
    assert_refused(file, 4, "header: the file is big-endian");
}

#[test]
fn other_versions_are_unsupported() {
    for version in [0, 1, 4, 0x1234_5678_u32] {
        let mut file = file();
        put(&mut file, 4, version.to_le_bytes());
        let text = format!("GGUF version `{version}` is not supported (supported: 2, 3)");
        assert_unsupported(file, &text);
    }
}

#[test]
fn tensor_count_beyond_the_file_is_refused() {
    let mut file = file();
    put(&mut file, 8, (1_u64 << 60).to_le_bytes());
    assert_refused(file, 8, "header: 1152921504606846976 tensors declared");
}

#[test]
fn metadata_count_beyond_the_file_is_refused() {
    let mut file = file();
    put(&mut file, 16, u64::MAX.to_le_bytes());
    assert_refused(
        file,
        16,
        "header: 18446744073709551615 metadata entries declared",
    );
}

#[test]
fn key_longer_than_the_file_is_refused() {
    let mut file = file();
    let length = position(&file, "b.list") - 8;
    put(&mut file, length, (1_u64 << 62).to_le_bytes());
    assert_refused(
        file,
        length,
        "metadata entry 1: 4611686018427387904 bytes of text declared",
    );
}

#[test]
fn key_that_is_not_utf8_is_refused() {
    let mut file = file();
    let key = position(&file, "b.list");
    file[key + 2] = 0xff;
    assert_refused(
        file,
        key + 2,
        "metadata entry 1: text of 6 bytes is not UTF-8 at its byte 2",
    );
}

#[test]
fn key_that_occurs_twice_is_refused() {
    let mut file = file();
    let key = position(&file, "b.list");
    put(&mut file, key, *b"a.text");
    assert_refused(file, key - 8, "key `a.text`: the key occurs twice");
}

#[test]
fn value_of_an_unknown_type_is_refused() {
    let mut file = file();
    let kind = after(&file, "c.flag");
    put(&mut file, kind, 13_u32.to_le_bytes());
    assert_refused(file, kind, "key `c.flag`: value type 13, expected 0 to 12");
}

#[test]
fn bool_that_is_neither_0_nor_1_is_refused() {
    let mut file = file();
    let value = after(&file, "c.flag") + 4;
    file[value] = 2;
    assert_refused(file, value, "key `c.flag`: bool 2, expected 0 or 1");
}

#[test]
fn string_longer_than_the_file_is_refused() {
    let mut file = file();
    let length = after(&file, "a.text") + 4;
    put(&mut file, length, 100_000_u64.to_le_bytes());
    assert_refused(file, length, "key `a.text`: 100000 bytes of text declared");
}

#[test]
fn string_that_is_not_utf8_is_refused() {
    let mut file = file();
    let text = after(&file, "a.text") + 4 + 8;
    // What is left of a two-byte character is its second byte.
    file[text + 1] = b'x';
    assert_refused(
        file,
        text + 2,
        "key `a.text`: text of 6 bytes is not UTF-8 at its byte 2",
    );
}

#[test]
fn array_of_an_unknown_type_is_refused() {
    let mut file = file();
    let kind = after(&file, "b.list") + 4;
    put(&mut file, kind, 99_u32.to_le_bytes());
    assert_refused(file, kind, "key `b.list`: value type 99, expected 0 to 12");
}

#[test]
fn array_counts_beyond_the_file_are_refused() {
    for key in ["b.list", "d.words", "e.nested"] {
        let mut file = file();
        let count = after(&file, key) + 8;
        put(&mut file, count, (1_u64 << 60).to_le_bytes());
        let message = format!("key `{key}`: 1152921504606846976 elements declared");
        assert_refused(file, count, &message);
    }
}

#[test]
fn string_of_an_array_longer_than_the_file_is_refused() {
    let mut file = file();
    let length = after(&file, "d.words") + 16 + 8 + 1;
    put(&mut file, length, u64::MAX.to_le_bytes());
    assert_refused(
        file,
        length,
        "key `d.words`: 18446744073709551615 bytes of text declared",
    );
}

#[test]
fn arrays_that_nest_too_deep_are_refused() {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend([0_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat());
    file.extend(1_u64.to_le_bytes());
    file.push(b'k');
    for _ in 0..100_000 {
        file.extend(9_u32.to_le_bytes());
        file.extend(1_u64.to_le_bytes());
    }
    // The first word is the value's type; each array is 12 bytes: its type and its count.
    file.splice(33..33, 9_u32.to_le_bytes());
    assert_refused(file, 37 + 8 * 12, "key `k`: arrays nest more than 8 deep");
}

#[test]
fn alignments_of_no_use_are_refused() {
    let value = |file: &[u8]| after(file, "general.alignment") + 4;
    for alignment in [0_u32, 12, 33] {
        let mut file = file();
        let offset = value(&file);
        put(&mut file, offset, alignment.to_le_bytes());
        let message = format!("key `general.alignment`: u32 {alignment}, expected a u32");
        assert_refused(file, offset, &message);
    }
}

#[test]
fn alignment_of_another_kind_is_refused() {
    let mut file = file();
    let kind = after(&file, "general.alignment");
    put(&mut file, kind, 5_u32.to_le_bytes());
    assert_refused(
        file,
        kind + 4,
        "key `general.alignment`: i32 64, expected a u32",
    );
}

#[test]
fn tensor_name_that_is_not_utf8_is_refused() {
    let mut file = file();
    let name = position(&file, "second.weight");
    file[name] = 0xc0;
    assert_refused(
        file,
        name,
        "tensor 1: text of 13 bytes is not UTF-8 at its byte 0",
    );
}

#[test]
fn tensor_name_that_occurs_twice_is_refused() {
    let bytes = || vec![0; 4];
    let writer = Writer::new()
        .tensor("same", [1], TensorType::F32, bytes())
        .expect("4 bytes");
    let writer = writer
        .tensor("other", [1], TensorType::F32, bytes())
        .expect("4 bytes");
    let mut file = writer.to_bytes().expect("a file");
    // Four letters of the five take the place of the name; the fifth becomes part of the fields,
    // which are never read.
    let name = position(&file, "other");
    put(&mut file, name - 8, 4_u64.to_le_bytes());
    put(&mut file, name, *b"same");
    assert_refused(file, name - 8, "tensor `same`: the name occurs twice");
}

#[test]
fn numbers_of_dimensions_out_of_range_are_refused() {
    for n_dims in [0_u32, 5, u32::MAX] {
        let mut file = file();
        let offset = after(&file, "first.weight");
        put(&mut file, offset, n_dims.to_le_bytes());
        let message = format!("tensor `first.weight`: {n_dims} dimensions, expected 1 to 4");
        assert_refused(file, offset, &message);
    }
}

#[test]
fn dimension_of_0_is_refused() {
    let mut file = file();
    let dims = after(&file, "first.weight") + 4;
    put(&mut file, dims + 8, 0_u64.to_le_bytes());
    assert_refused(
        file,
        dims,
        "tensor `first.weight`: shape [0, 32] has a size of 0",
    );
}

#[test]
fn dimensions_whose_product_overflows_are_refused() {
    let mut file = file();
    let dims = after(&file, "first.weight") + 4;
    put(&mut file, dims, (1_u64 << 40).to_le_bytes());
    put(&mut file, dims + 8, (1_u64 << 40).to_le_bytes());
    assert_refused(file, dims, "tensor `first.weight`: shape");
}

#[test]
fn row_that_is_not_whole_blocks_is_refused() {
    let mut file = file();
    let dims = after(&file, "first.weight") + 4;
    put(&mut file, dims, 33_u64.to_le_bytes());
    let message = "tensor `first.weight`: rows of 33 elements, expected a multiple of 32";
    assert_refused(file, dims, message);
}

#[test]
fn tensor_types_that_are_not_known_are_unsupported() {
    for (id, name) in [
        (4_u32, "4 (q4_2, which ggml has removed)"),
        (31, "31 (q4_0_4_4, which ggml has removed)"),
        (1000, "1000"),
    ] {
        let mut file = file();
        let offset = after(&file, "first.weight") + 4 + 16;
        put(&mut file, offset, id.to_le_bytes());
        let text =
            format!("tensor type `{name} of first.weight` is not supported (supported: 0 f32, ");
        assert_unsupported(file, &text);
    }
}

#[test]
fn tensor_offset_off_the_alignment_is_refused() {
    let mut file = file();
    let offset = after(&file, "second.weight") + 4 + 8 + 4;
    put(&mut file, offset, 65_u64.to_le_bytes());
    let message = "tensor `second.weight`: data offset 65, expected a multiple of 64";
    assert_refused(file, offset, message);
}

#[test]
fn tensor_that_ends_after_the_file_is_refused() {
    for data_offset in [128, 1 << 62, u64::MAX - 63] {
        let mut file = file();
        let offset = after(&file, "second.weight") + 4 + 8 + 4;
        put(&mut file, offset, data_offset.to_le_bytes());
        let message =
            format!("tensor `second.weight`: 12 bytes at data offset {data_offset} end after");
        assert_refused(file, offset, &message);
    }
}

#[test]
fn tensors_that_overlap_are_refused() {
    let mut file = file();
    let offset = after(&file, "second.weight") + 4 + 8 + 4;
    put(&mut file, offset, 0_u64.to_le_bytes());
    let message = "where tensor `first.weight` extends to";
    assert_refused(file, offset, message);
}

#[test]
fn file_truncated_anywhere_is_refused() {
    let file = file();
    let gguf = Gguf::from_bytes(file.clone()).expect("a sound file");
    let last = gguf.tensor("second.weight").expect("the tensor");
    // After the last tensor there is only padding, which a file may lack.
    let end = (last.offset + last.n_bytes) as usize;
    for length in 0..end {
        match Gguf::from_bytes(file[..length].to_vec()) {
            Err(Error::Gguf { offset, .. }) => assert!(offset <= length as u64, "at {length}"),
            other => panic!("{length} of {end} bytes gave {other:?}"),
        }
    }
    assert!(Gguf::from_bytes(file[..end].to_vec()).is_ok());
}

/// Uses everything of a file that was accepted.
fn exercise(gguf: &Gguf) -> usize {
    let text: usize = gguf
        .metadata()
        .iter()
        .map(|(k, v)| format!("{k} {v}").len())
        .sum();
    gguf.tensors().iter().fold(text, |used, tensor| {
        let bytes = gguf.tensor_bytes(tensor);
        assert_eq!(bytes.len() as u64, tensor.n_bytes);
        if let Ok(weight_type) = WeightType::try_from(tensor.ty) {
            let mut weights = vec![0.0; tensor.n_elements()];
            weight_type.decode(bytes, &mut weights);
        }
        used + bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>() + tensor.n_rows()
    })
}

#[test]
fn every_changed_byte_is_refused_or_harmless() {
    let sound = file();
    for position in 0..sound.len() {
        for change in 1..=255 {
            let mut file = sound.clone();
            file[position] ^= change;
            if let Ok(gguf) = Gguf::from_bytes(file) {
                exercise(&gguf);
            }
        }
    }
}

#[test]
fn random_damage_is_refused_or_harmless() {
    // A linear congruential generator with the constants of Knuth's MMIX.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let sound = file();
    let mut n_accepted = 0;
    for _ in 0..40_000 {
        let mut file = sound.clone();
        for _ in 0..1 + random(6) {
            let position = random(file.len() - 8);
            match random(4) {
                // Small numbers pass more checks than random bytes do.
                0 => file[position] = random(16) as u8,
                1 => file[position] = random(256) as u8,
                2 => put(&mut file, position, (random(100) as u64).to_le_bytes()),
                _ => {
                    file.remove(position);
                }
            }
        }
        if let Ok(gguf) = Gguf::from_bytes(file) {
            exercise(&gguf);
            n_accepted += 1;
        }
    }
    assert!(
        n_accepted > 100,
        "only {n_accepted} damaged files got beyond the reader"
    );
}
