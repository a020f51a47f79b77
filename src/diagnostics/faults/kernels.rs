//! Kernels that compute something else.

use super::{Damage, Fault, Tool, assert_found, builder, options};
use crate::device::Activations::{self, F16, F32, Int8};
use crate::device::wgpu::tampering::Tampering;
use crate::device::wgpu::testing::gpu;
use crate::diagnostics::find_feature;
use crate::diagnostics::verify::Checked;

/// `[from, to]` in a kernel, in words, and the step that the check of kernels names.
fn edited(
    what: &'static str,
    activations: Activations,
    kernel: &'static str,
    [from, to]: [&'static str; 2],
    place: &'static str,
) -> Fault {
    Fault {
        what,
        damage: Damage::Gpu(activations, Tampering::wgsl(kernel, from, to)),
        tool: Tool::Verify(Checked::Kernels),
        place,
        also: &[],
    }
}

pub(super) fn of_values() -> Vec<Fault> {
    vec![
        edited(
            "another epsilon",
            F32,
            "rms_norm",
            ["mean + p.eps", "mean + p.eps * 10.0"],
            "blk.0.attn_norm",
        ),
        edited(
            "another activation function",
            F32,
            "gated_activation",
            ["activation == SILU", "activation != SILU"],
            "blk.0.ffn_gated",
        ),
        edited(
            "a residual that is not added",
            F32,
            "matvec",
            ["dst[at] = value + addend.y", "dst[at] = value"],
            "blk.0.ffn_inp",
        ),
        edited(
            "16-bit floats without their scale, which overflow",
            F16,
            "f16_rows",
            [
                "return max(i32(bitcast<u32>(largest) >> 23u) - 127 - 14, -126);",
                "return 0;",
            ],
            "blk.0.attn_output",
        ),
        edited(
            "a scale of 16-bit floats that is not put back",
            F16,
            "matmul_coop",
            [
                "* vec4(scales[row.x], scales[row.y], scales[row.z], scales[row.w])",
                "",
            ],
            "blk.0.attn_q",
        ),
        edited(
            "int8 activations of another scale",
            Int8,
            "rms_norm",
            [
                "let inverses = vec4(inverse_scale(max_sizes.x)",
                "let inverses = vec4(inverse_scale(max_sizes.x * 1.5)",
            ],
            "result_output",
        ),
        Fault {
            tool: Tool::Load,
            ..edited(
                "a kernel that does not compile",
                F32,
                "rms_norm",
                ["mean + p.eps", "mean + p.epsilon"],
                "rms_norm",
            )
        },
    ]
}

#[test]
fn verify_names_the_kernel_of_norms_sums_and_rounding_that_is_wrong() {
    assert_found(of_values());
}

pub(super) fn of_experts() -> Vec<Fault> {
    let by = |activations, what, kernel, [from, to]: [&'static str; 2], place| Fault {
        damage: Damage::Experts(activations, Tampering::wgsl(kernel, from, to)),
        ..edited(what, activations, kernel, [from, to], place)
    };
    let of = |what, kernel, edit, place| by(F32, what, kernel, edit, place);
    vec![
        of(
            "the worst experts",
            "choose_experts",
            ["values[other] > value", "values[other] < value"],
            "blk.0.ffn_moe_topk",
        ),
        Fault {
            damage: Damage::BiasedExperts(Tampering::wgsl(
                "choose_experts",
                "value += bias[i];",
                "",
            )),
            ..of(
                "experts that are chosen without their bias",
                "choose_experts",
                ["value += bias[i];", ""],
                "blk.1.ffn_moe_topk",
            )
        },
        of(
            "weights of experts that are not normalised",
            "expert_weights",
            ["/ divisor * p.scale", "* p.scale"],
            "blk.0.ffn_moe_weights",
        ),
        of(
            "always the first expert",
            "expert_matvec",
            ["i32(expert * p.n_out) -", "0 -"],
            "blk.0.ffn_moe_down",
        ),
        of(
            "always the first expert, of many rows",
            "expert_matmul",
            ["i32(expert * p.n_out) -", "0 -"],
            "blk.0.ffn_moe_gate",
        ),
        of(
            "tiles that lack their last row",
            "expert_tiles",
            [
                "min(next.x + p.tile_rows, end)",
                "min(next.x + p.tile_rows, end) - 1u",
            ],
            "blk.0.ffn_moe_gate",
        ),
        by(
            F16,
            "rows of the slot before, by cooperative matrices",
            "expert_matmul_coop",
            [
                "return dst_rows(places) / p.slots_per_src;",
                "return (dst_rows(places) / p.slots_per_src) ^ vec4(1u);",
            ],
            "blk.0.ffn_moe_gate",
        ),
        by(
            Int8,
            "the rows of up of another expert",
            "expert_gated",
            [
                "return Pair(p.matrix.planes, p.up_planes, vec2(units));",
                "return Pair(p.matrix.planes, p.up_planes, vec2(units, (units + p.n_out) % p.matrix.n_rows));",
            ],
            "blk.0.ffn_moe_up",
        ),
        by(
            Int8,
            "int8 of a block of experts that is another slot's",
            "expert_gated",
            ["store_int8(value, slot,", "store_int8(value, slot ^ 1u,"],
            "blk.0.ffn_moe_down",
        ),
        of(
            "an activation without its clamp",
            "gated_activation",
            ["clamp(up, vec4(-7.0), vec4(7.0)) + 1.0", "up + 1.0"],
            "blk.0.ffn_moe_gated",
        ),
        of(
            "the first expert's weight for all",
            "weighted_sum",
            ["p.weights_stride + slot]", "p.weights_stride]"],
            "blk.0.ffn_moe_out",
        ),
        of(
            "attention without its sinks",
            "attention",
            ["+ exp(sinks[head] - most)", ""],
            "blk.0.kqv_out",
        ),
    ]
}

#[test]
fn verify_names_the_kernel_of_experts_or_sinks_that_is_wrong() {
    assert_found(of_experts());
}

pub(super) fn of_latents() -> Vec<Fault> {
    let of = |what, kernel, [from, to]: [&'static str; 2], place| Fault {
        damage: Damage::Latent(Tampering::wgsl(kernel, from, to)),
        ..edited(what, F32, kernel, [from, to], place)
    };
    vec![
        of(
            "the matrix of the first head for all",
            "head_matvec",
            ["i32(head * p.n_out) -", "0 -"],
            "blk.0.q_absorbed",
        ),
        of(
            "scores without the latents",
            "attention",
            ["if ends {", "if false {"],
            "blk.0.kqv_latent",
        ),
        of(
            "latents that are cut at the width of keys",
            "store_kv",
            ["quad < n_quads.y", "quad < n_quads.x"],
            "blk.0.kv_cache",
        ),
        of(
            "experts of any group",
            "choose_experts",
            ["rank >= p.n_used", "rank >= p.n_group"],
            "blk.1.ffn_moe_topk",
        ),
    ]
}

#[test]
fn verify_names_the_kernel_of_latents_that_is_wrong() {
    assert_found(of_latents());
}

pub(super) fn of_tails() -> Vec<Fault> {
    vec![
        Fault {
            also: &["result_output"],
            ..edited(
                "a last column that is not written",
                F32,
                "matvec",
                [
                    "output < p.matrix.n_rows;",
                    "output + 1u < p.matrix.n_rows;",
                ],
                "blk.0.attn_output",
            )
        },
        edited(
            "a last row that is not written",
            F32,
            "matmul",
            ["if row >= n_rows", "if row + 1u >= n_rows"],
            "blk.0.attn_q",
        ),
        edited(
            "rows of logits that are not the last ones",
            F32,
            "select_outputs",
            [
                "batch.n_rows - batch.n_outputs + workgroup.z",
                "workgroup.z",
            ],
            "result_rows",
        ),
        edited(
            "the embedding of the token before",
            F32,
            "embed",
            ["tokens[row] - p", "tokens[row] - 1u - p"],
            "embd",
        ),
    ]
}

#[test]
fn verify_names_the_product_whose_tail_is_wrong() {
    assert_found(of_tails());
}

pub(super) fn of_attention() -> Vec<Fault> {
    vec![
        edited(
            "attention that sees the future",
            F32,
            "attention",
            ["batch.position + row + 1u", "batch.position + batch.n_rows"],
            "blk.0.kqv_out",
        ),
        edited(
            "attention that does not see its own key",
            F32,
            "attention_few",
            ["batch.position + row + 1u", "max(batch.position + row, 1u)"],
            "blk.0.kqv_out",
        ),
        Fault {
            what: "a window that is dropped",
            damage: Damage::Windowed(Tampering::wgsl_of_feature(
                "attention",
                "end - min(p.window, end)",
                "0u",
            )),
            tool: Tool::Verify(Checked::Kernels),
            place: "blk.0.kqv_out",
            also: &[],
        },
        edited(
            "query heads with the keys of another head",
            F32,
            "attention",
            ["head / (p.n_head / p.n_head_kv)", "head % p.n_head_kv"],
            "blk.0.kqv_out",
        ),
        edited(
            "a split of the keys that is left out",
            F32,
            "attention_merge",
            [
                "first + i * SLICES < p.n_splits)",
                "first + i * SLICES < p.n_splits && first + i * SLICES > 0u)",
            ],
            "blk.0.kqv_out",
        ),
        edited(
            "keys turned by the position behind theirs",
            F32,
            "rope",
            [
                "table[(batch.position + row)",
                "table[(batch.position + row + 1u)",
            ],
            "blk.0.Qcur",
        ),
        edited(
            "keys stored one position further on",
            F32,
            "store_kv",
            [
                "(batch.position + workgroup.z)",
                "(batch.position + workgroup.z + 1u)",
            ],
            "blk.0.kv_cache",
        ),
        edited(
            "keys of one token stored one position further on, by the kernel that makes them",
            Int8,
            "matvec_heads",
            [
                "let position = batch.position + row;",
                "let position = batch.position + row + 1u;",
            ],
            "blk.0.Qcur",
        ),
        edited(
            "keys by the weights of the queries, in the kernel that makes both",
            Int8,
            "matvec_heads",
            ["planes = p.second_planes;", "planes = p.matrix.planes;"],
            "blk.0.attn_k",
        ),
        Fault {
            tool: Tool::Verify(Checked::Rewind),
            place: "kv_cache",
            ..edited(
                "a cache that keeps what an earlier text left there",
                F32,
                "store_kv",
                [
                    "keys[cache_quad.x] = kv_encode(k[row_quad.x]);",
                    "if all(keys[cache_quad.x] == KvWord()) { keys[cache_quad.x] = kv_encode(k[row_quad.x]); }",
                ],
                "blk.0.kv_cache",
            )
        },
    ]
}

#[test]
fn verify_names_attention_that_is_wrong() {
    assert_found(of_attention());
}

pub(super) fn of_choices() -> Vec<Fault> {
    let wrong = |what, kernel, edit| Fault {
        tool: Tool::Verify(Checked::Determinism),
        ..edited(what, F32, kernel, edit, "sample")
    };
    vec![
        wrong(
            "the least probable token",
            "sample",
            ["return a.x > b.x ||", "return a.x < b.x ||"],
        ),
        wrong(
            "a maximum that leaves tokens out",
            "logit_maxima",
            ["return select(a, b, b.x > a.x);", "return a;"],
        ),
    ]
}

#[test]
fn verify_names_the_choice_of_tokens_that_is_wrong() {
    assert_found(of_choices());
}

#[test]
fn the_feature_whose_kernel_is_wrong_is_named() {
    if gpu().is_none() {
        return;
    }
    let find = |kernel, from, to| {
        let engine_with = |features| {
            builder(Int8)
                .gpu_features(features)
                .tamper(Tampering::wgsl_of_feature(kernel, from, to))
                .build()
        };
        find_feature(engine_with, &options()).unwrap()
    };
    let subgroups = find(
        "rms_norm",
        "let result = subgroupAdd(sum)",
        "let result = sum",
    );
    assert_eq!(subgroups.culprits(), ["subgroups"], "{subgroups}");
    let fusion = find("matvec_gated", "up[at] = of_up;", "up[at] = of_gate;");
    assert_eq!(fusion.culprits(), ["fusion"], "{fusion}");
    let int8 = find(
        "quantize",
        "quantize4(value, inverse)",
        "quantize4(value, 0.9 * inverse)",
    );
    assert_eq!(int8.culprits(), ["int8_dot"], "{int8}");
    let every = find("embed", "tokens[row] - p", "tokens[row] - 1u - p");
    assert_eq!(every.culprits(), [""; 0], "{every}");
}
