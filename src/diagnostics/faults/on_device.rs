//! Bytes on the device that are not what they should be, and work that is not done.

use super::{Fault, assert_found, builder, options};
use crate::device::Activations::F32;
use crate::device::wgpu::tampering::Tampering;
use crate::device::wgpu::testing::gpu;
use crate::diagnostics::verify::Checked;
use crate::error::Error;

fn damaged(what: &'static str, damage: Tampering, checked: Checked, place: &'static str) -> Fault {
    Fault {
        what,
        activations: F32,
        damage,
        checked,
        place,
        also: &[],
    }
}

#[test]
fn verify_names_the_step_that_was_left_out_or_had_other_bytes() {
    assert_found(vec![
        damaged(
            "a dispatch that is left out",
            Tampering::skipped("blk.1.ffn_norm"),
            Checked::Steps,
            "blk.1.ffn_norm",
        ),
        damaged(
            "angles of the position behind",
            Tampering::turned_positions(),
            Checked::Steps,
            "blk.0.Qcur",
        ),
        damaged(
            "a cache that something else writes to",
            Tampering::poisoned_cache(1),
            Checked::Steps,
            "blk.1.kqv_out",
        ),
        damaged(
            "weights of two layers in each other's place",
            Tampering::swapped("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
            Checked::Steps,
            "blk.0.ffn_out",
        ),
        damaged(
            "weights that an allocation left zero",
            Tampering::zeroed("blk.1.attn_output.weight"),
            Checked::Steps,
            "blk.1.attn_output",
        ),
    ]);
}

#[test]
fn a_lost_device_is_an_error() {
    if gpu().is_none() {
        return;
    }
    let engine = builder(F32)
        .tamper(Tampering::lost_device())
        .build()
        .unwrap();
    let error = engine.verify(&options()).unwrap_err();
    assert!(
        matches!(&error, Error::Gpu { message, .. } if message.contains("lost")),
        "{error}"
    );
}
