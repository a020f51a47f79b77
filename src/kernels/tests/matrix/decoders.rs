//! Decoders of weight types on blocks of any bits, and mistakes on purpose in them.

use super::super::{Random, altered};
use super::*;

/// Type, product, what is altered and to what.
const MISTAKES: [(WeightType, &Product, &str, &str); 19] = [
    (
        WeightType::Q2_K,
        &MATVEC,
        "select(header.offset.x, header.offset.y, quarter >= 2u)",
        "header.offset.x",
    ),
    (
        WeightType::Q2_K,
        &MATVEC_INT8,
        "dot(weight.offset, vec2(f32(low), f32(high)))",
        "dot(weight.offset, vec2(f32(high), f32(low)))",
    ),
    (
        WeightType::Q2_K,
        &MATVEC,
        "vec2(scales) >> vec2(4u, 12u)",
        "vec2(scales) >> vec2(0u, 8u)",
    ),
    (
        WeightType::Q2_K,
        &MATVEC_INT8,
        "planes.z + (unit >> 3u)",
        "planes.z",
    ),
    (
        WeightType::Q3_K,
        &MATVEC,
        "highs << 4u, highs << 2u",
        "highs << 4u, highs << 4u",
    ),
    (
        WeightType::Q3_K,
        &MATVEC_INT8,
        "- vec2(0x04040404u)",
        "- vec2(0x03030303u)",
    ),
    (
        WeightType::Q3_K,
        &MATVEC,
        "planes.z + (unit >> 3u) * 3u",
        "planes.z",
    ),
    (WeightType::IQ4_NL, &MATVEC, "odd * 16u", "odd * 15u"),
    (
        WeightType::IQ4_NL,
        &MATVEC_INT8,
        "chosen(low, high, bit3)",
        "chosen(high, low, bit3)",
    ),
    (WeightType::IQ4_XS, &MATVEC, "16u + 2u * i", "16u + i"),
    (WeightType::IQ4_XS, &MATVEC_INT8, "(unit >> 3u) * 2u", "0u"),
    (
        WeightType::MXFP4,
        &MATVEC,
        "8u * (unit & 3u)",
        "8u * (unit & 1u)",
    ),
    (
        WeightType::MXFP4,
        &MATVEC_INT8,
        "(low & (high * 3u))",
        "low",
    ),
    (
        WeightType::MXFP4,
        &MATVEC_INT8,
        " ^ (signs << vec2(7u))",
        "",
    ),
    (
        WeightType::TQ1_0,
        &MATVEC,
        "vec2(9u, 27u), i == 6u",
        "vec2(9u, 9u), i == 6u",
    ),
    (
        WeightType::TQ1_0,
        &MATVEC_INT8,
        "without_digits(four, 27u).x",
        "four.x",
    ),
    (WeightType::TQ1_0, &MATVEC, "81u, i == 4u", "27u, i == 4u"),
    (
        WeightType::TQ2_0,
        &MATVEC,
        "vec2(bits, bits >> 2u)",
        "vec2(bits, bits)",
    ),
    (
        WeightType::TQ2_0,
        &MATVEC_INT8,
        "vec2(d), -d)",
        "vec2(d), d)",
    ),
];

/// Random bytes for blocks: what encoders give leaves many scales alike.
fn inputs(ty: WeightType) -> Inputs {
    let mut inputs = Inputs::new(Case {
        seed: 1,
        ty,
        n_out: 7,
        n_cols: 512,
        n_rows: 1,
        n_shards: 1,
        bias: false,
        residual: false,
        values: Values::Usual,
    });
    let mut random = Random::new(1);
    for block in inputs.file.chunks_exact_mut(ty.block_bytes()) {
        // No f16 scale is infinite or not a number where the second bit of each byte is 0.
        let mut byte = || (random.signed() * 128.0) as i8 as u8 & 0xbf;
        block.fill_with(&mut byte);
        if ty == WeightType::MXFP4 {
            block[0] = 0x78 | byte() & 7;
        }
    }
    inputs
}

#[test]
fn decoders_read_blocks_of_any_quants() {
    let Some(context) = gpu() else { return };
    for ty in WeightType::ALL.into_iter().filter(|ty| ty.is_quantised()) {
        let inputs = inputs(ty);
        let judged = inputs.judge_embed(&run_embed(context, &inputs, &embed::KERNEL));
        judged.unwrap_or_else(|message| panic!("embed: {message}"));
        let judged = MATVEC_INT8.judge(&inputs, &run_product(context, &inputs, &MATVEC_INT8));
        judged.unwrap_or_else(|message| panic!("matvec of int8: {message}"));
    }
}

#[test]
fn mistakes_in_the_decoders_are_found() {
    let Some(context) = gpu() else { return };
    for (ty, product, from, to) in MISTAKES {
        let inputs = inputs(ty);
        let kernel = altered(&product.kernel, &product.variant(&inputs), from, to);
        let mistaken = Product { kernel, ..*product };
        let dst = run_product(context, &inputs, &mistaken);
        assert!(
            product.judge(&inputs, &dst).is_err(),
            "{ty:?}: `{to}` for `{from}` was not noticed"
        );
    }
}
