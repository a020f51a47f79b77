//! Kernels that compute what only some families of models have.

use super::{Damage, Fault, Tool, assert_found};
use crate::device::wgpu::tampering::Tampering;
use crate::diagnostics::verify::Checked;

/// `[from, to]` in a kernel, of a tiny model, in words, and the step that the check of kernels names.
fn edited(
    what: &'static str,
    [model, kernel]: [&'static str; 2],
    [from, to]: [&'static str; 2],
    place: &'static str,
) -> Fault {
    Fault {
        what,
        damage: Damage::Model(model, Tampering::wgsl(kernel, from, to)),
        tool: Tool::Verify(Checked::Kernels),
        place,
        also: &[],
    }
}

pub(super) fn faults() -> Vec<Fault> {
    vec![
        edited(
            "an encoder that does not see what follows",
            ["bert", "attention"],
            ["(p.of_heads & BOTH_WAYS) != 0u", "false"],
            "blk.0.kqv_out",
        ),
        edited(
            "an encoder that does not see the last token",
            ["nomic-bert", "attention"],
            [
                "end = batch.position + batch.n_rows",
                "end = batch.position + max(batch.n_rows, 2u) - 1u",
            ],
            "blk.0.kqv_out",
        ),
        edited(
            "types of tokens that are named by the token",
            ["bert", "embed"],
            ["p.named_by == BY_NOTHING", "p.named_by == 7u"],
            "type_embd",
        ),
        Fault {
            tool: Tool::Verify(Checked::Rewind),
            place: "kv_cache",
            ..edited(
                "an encoder that keeps what an earlier text left",
                ["bert", "store_kv"],
                [
                    "keys[cache_quad.x] = kv_encode(k[row_quad.x]);",
                    "if all(keys[cache_quad.x] == KvWord()) { keys[cache_quad.x] = kv_encode(k[row_quad.x]); }",
                ],
                "blk.0.kv_cache",
            )
        },
        edited(
            "the input of another layer",
            ["gemma4-e2b", "take_columns"],
            ["p.period + p.first + column", "p.period + column"],
            "blk.1.inp_of_layer",
        ),
        edited(
            "a norm that weighs what has no weights",
            ["gemma4-e2b", "rms_norm"],
            [
                "select(weight[quad], vec4(1.0), p.is_plain == 1u)",
                "weight[quad]",
            ],
            "blk.0.Vcur_normed",
        ),
        edited(
            "results of experts without their factors",
            ["gemma4-moe", "expert_weights"],
            ["p.has_factors == 1u", "false"],
            "blk.0.ffn_moe_weights",
        ),
    ]
}

#[test]
fn verify_names_what_is_wrong_in_a_family_of_its_own() {
    assert_found(faults());
}
