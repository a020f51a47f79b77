//! Mistakes on purpose in the kernels that read weight matrices.

use super::super::altered;
use super::*;

#[test]
fn mistakes_in_the_kernels_are_found() {
    let Some(context) = gpu() else { return };
    let case = Case {
        seed: 1,
        ty: WeightType::Q4_K,
        n_out: 67,
        n_cols: 256,
        n_rows: 65,
        n_shards: 1,
        bias: true,
        residual: true,
        values: Values::Usual,
    };
    let inputs = Inputs::new(case);
    let cooperative = cooperative(context);
    let few_mistakes = [
        (
            "&& output < p.matrix.n_rows",
            "&& output + 1u < p.matrix.n_rows",
        ),
        ("bias[column]", "bias[0u]"),
        ("= residual[row", "= residual[0u"),
        (
            "2u * p.n_pairs && output < p.matrix.n_rows",
            "2u * p.n_pairs",
        ),
        ("member * stride + 2u * pair", "member * stride + pair"),
        (
            "i = lane; i < team_size",
            "i = lane + stride; i < team_size",
        ),
        ("2u * pair + vec2(0u, 1u)", "2u * pair + vec2(0u, 0u)"),
    ];
    let few_mistakes = few_mistakes.into_iter();
    let mut mistakes: Vec<_> = few_mistakes
        .flat_map(|(from, to)| [(&MATVEC, from, to), (&MATVEC_INT8, from, to)])
        .collect();
    mistakes.extend([
        (
            &MATVEC,
            "decode8(weight3, quarter)",
            "decode8(weight3, 3u - quarter)",
        ),
        (&MATVEC_INT8, "of_src.high.zw", "of_src.high.xy"),
        (
            &MATVEC_INT8,
            "of_src.scales.y * weight.offset",
            "weight.offset",
        ),
        (&MATVEC_INT8, "select(0.0, 1.0,", "select(1.0, 1.0,"),
        (
            &MATVEC_INT8,
            "dot_unit(weight1, src0)",
            "dot_unit(weight0, src0)",
        ),
        (
            &MATVEC_INT8,
            "select(scales.xy, scales.zw",
            "select(scales.zw, scales.xy",
        ),
        (&MATMUL, "output < n_outputs()", "output + 1u < n_outputs()"),
        (&MATMUL, "    if row >= n_rows {", "    if row > n_rows {"),
        (&MATMUL, "unit < n_units", "unit + 1u < n_units"),
        (&MATMUL, "weight2, src3)", "weight2, src2)"),
        (&MATMUL, "= residual[row", "= residual[0u"),
    ]);
    let from_vectors = context.cooperative_matrix.map(|matrix| matrix.from_vectors);
    let is_native = |product: &&Product| match product.src {
        Src::F16(tile) => Some(tile.matrix.from_vectors) == from_vectors,
        Src::F32 | Src::Int8 => false,
    };
    for product in cooperative.iter().filter(is_native) {
        mistakes.extend([
            (
                product,
                "outputs < vec4(p.matrix.n_rows)",
                "outputs + 1u < vec4(p.matrix.n_rows)",
            ),
            (
                product,
                "min(outputs, vec4(n_outputs() - 1u))",
                "min(outputs, vec4(n_outputs() - 2u))",
            ),
            (
                product,
                "min(rows, vec4(place.end - 1u))",
                "min(rows, vec4(place.end - 2u))",
            ),
            (
                product,
                "(rows < vec4(place.end))",
                "(rows + 1u < vec4(place.end))",
            ),
            (product, "unit < task.last", "unit + TILE_UNITS < task.last"),
            (
                product,
                "vec4(scales[row.x], scales[row.y], scales[row.z], scales[row.w])",
                "vec4(1.0)",
            ),
            (product, "bias[column.z]", "bias[0u]"),
            (product, "residual[at.y]", "residual[at.x]"),
            (product, "product[at.w] = value.w;", ""),
            (product, "dst[at.z] = value.z;", "dst[at.z] = value.y;"),
            (
                product,
                "halves(eight.z), halves(eight.w)",
                "halves(eight.w), halves(eight.z)",
            ),
            (
                product,
                "vectors.row0 = src[at.x]",
                "vectors.row0 = src[at.w]",
            ),
            (
                product,
                "unit += 2u * TILE_UNITS",
                "unit += 3u * TILE_UNITS",
            ),
            (product, "min(unit + TILE_UNITS, task.last)", "unit"),
            (
                product,
                "decode8_f16(*header, 3u)",
                "decode8_f16(*header, 2u)",
            ),
        ]);
    }
    for (product, from, to) in mistakes {
        let kernel = altered(&product.kernel, &product.variant(&inputs), from, to);
        let mistaken = Product { kernel, ..*product };
        let dst = run_product(context, &inputs, &mistaken);
        assert!(
            product.judge(&inputs, &dst).is_err(),
            "`{to}` for `{from}` was not noticed"
        );
    }
    for (from, to) in [
        ("decode8(header, eight % 4u)", "decode8(header, 0u)"),
        ("dst[at + 1u] = weight.high * p.scale;", ""),
        ("row >= batch.n_rows", "row + 1u >= batch.n_rows"),
    ] {
        let dst = run_embed(
            context,
            &inputs,
            &altered(&embed::KERNEL, &variant(&inputs), from, to),
        );
        assert!(
            inputs.judge_embed(&dst).is_err(),
            "`{to}` for `{from}` was not noticed"
        );
    }
}
