//! Mistakes on purpose where codewords are looked up.

use super::super::altered;
use super::*;

#[test]
fn mistakes_in_the_decoding_of_codewords_are_found() {
    use WeightType::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
    let Some(context) = gpu() else { return };
    for (ty, from, to) in [
        (IQ3_XXS, "header.signs >> (7u", "header.signs >> (8u"),
        (IQ3_XXS, "countOneBits(seven)", "countOneBits(bits)"),
        (IQ3_XXS, "* 0.25;", "* 0.5;"),
        (IQ3_S, "(highs & 2u) << 7u", "(highs & 1u) << 8u"),
        (IQ3_S, "block + 1u + (i >> 2u)", "block + 1u"),
        (IQ2_XXS, "0x00204081u", "0x00204080u"),
        (IQ2_XXS, "* 17u", "* 16u"),
        (IQ2_XS, "vec2(scales, scales >> 4u)", "vec2(scales, scales)"),
        (IQ2_XS, "bits & 511u", "bits & 255u"),
        (IQ2_S, "vec2(8u, 12u)", "vec2(12u, 8u)"),
        (IQ2_S, "| (high << 8u)", ""),
        (IQ1_S, "0x02020202u * is_down", "0u"),
        (IQ1_S, "(high << 8u)", "(high << 7u)"),
        (IQ1_M, "(high >> 3u) & 1u", "(header.highs >> 3u) & 1u"),
        (IQ1_M, "vec2(bits, bits >> 3u)", "vec2(bits, bits)"),
        (IQ1_M, "vec4(12u, 24u, 4u, 16u)", "vec4(12u, 24u, 4u, 4u)"),
    ] {
        let inputs = Inputs::new(Case {
            seed: 1,
            ty,
            n_out: 16,
            n_cols: 256,
            n_rows: 2,
            n_shards: 1,
            bias: false,
            residual: false,
            values: Values::Usual,
        });
        let dst = run_product(context, &inputs, &MATVEC);
        MATVEC.judge(&inputs, &dst).unwrap();
        let product = Product {
            kernel: altered(&MATVEC.kernel, &MATVEC.variant(&inputs), from, to),
            ..MATVEC
        };
        assert!(
            product
                .judge(&inputs, &run_product(context, &inputs, &product))
                .is_err(),
            "{ty:?}: `{to}` for `{from}` was not noticed"
        );
    }
}
