//! Files that hold something else than a model should.

use super::{Damage, Fault, Tool, assert_found};
use crate::diagnostics::verify::Checked;
use crate::gguf::{Gguf, WeightType};
use crate::tiny;

/// The tiny model with other values in the tensors whose names begin so.
fn altered(tensors: &'static str, alter: fn(&mut [f32])) -> Damage {
    let alter = move |name: &str, values: &mut [f32]| {
        if name.starts_with(tensors) {
            alter(values);
        }
    };
    let writer = tiny::altered(WeightType::Q8_0, None, &alter);
    Damage::File(writer.to_bytes().unwrap())
}

/// The tiny model with a bit of a tensor flipped, by its place in the tensor's bytes.
fn flipped(tensor: &str, byte: usize, bit: u32) -> Damage {
    let mut bytes = tiny::llama(WeightType::Q8_0, None).to_bytes().unwrap();
    let gguf = Gguf::from_bytes(bytes.clone()).unwrap();
    let tensor = gguf.tensors().iter().find(|found| found.name == tensor);
    bytes[tensor.unwrap().offset as usize + byte] ^= 1 << bit;
    Damage::File(bytes)
}

pub(super) fn faults() -> Vec<Fault> {
    let fault = |what, damage, tool, place, also| Fault {
        what,
        damage,
        tool,
        place,
        also,
    };
    let in_file = Tool::Verify(Checked::File);
    let mut cut = tiny::llama(WeightType::Q8_0, None).to_bytes().unwrap();
    cut.truncate(cut.len() - 4096);
    vec![
        fault(
            "a file that ends early",
            Damage::File(cut),
            Tool::Load,
            "blk.1.ffn_down.weight",
            &[],
        ),
        fault(
            "a bit of a block's scale, flipped",
            // The highest bit of the exponent of `d`, a half at the start of 34 bytes.
            flipped("blk.1.attn_v.weight", 34 * 5 + 1, 6),
            in_file,
            "blk.1.attn_v.weight",
            &[],
        ),
        fault(
            "a matrix of zeros",
            altered("blk.0.ffn_up.weight", |values| values.fill(0.0)),
            in_file,
            "blk.0.ffn_up.weight",
            &["ffn_up"],
        ),
        fault(
            "a matrix of one value",
            altered("blk.1.attn_q.weight", |values| values.fill(0.25)),
            in_file,
            "blk.1.attn_q.weight",
            &[],
        ),
        fault(
            "an embedding of zeros, of a token that texts have",
            altered("token_embd.weight", |values| values[64..128].fill(0.0)),
            in_file,
            "token_embd.weight",
            &[],
        ),
        fault(
            "a weight that is not a number",
            altered("blk.1.ffn_norm.weight", |values| values[3] = f32::NAN),
            Tool::Running,
            "blk.1.l_out",
            &[],
        ),
        fault(
            "weights so large that sums overflow",
            altered("blk.0.ffn_norm.weight", |values| values.fill(1e30)),
            Tool::Running,
            "blk.0.l_out",
            &[],
        ),
        fault(
            "an output of zeros",
            altered("output_norm.weight", |values| values.fill(0.0)),
            Tool::Running,
            "result_output",
            &[],
        ),
        fault(
            "layers that are all zero: one token, for ever",
            altered("blk.", |values| values.fill(0.0)),
            Tool::Running,
            "result_output",
            &[],
        ),
    ]
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    assert_found(faults());
}
