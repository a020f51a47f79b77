//! Bytes on the device that are not what they should be, and work that is not done.

use super::{Damage, Fault, Tool, assert_found};
use crate::device::Activations::F32;
use crate::device::wgpu::tampering::Tampering;
use crate::diagnostics::verify::Checked;

pub(super) fn faults() -> Vec<Fault> {
    let fault = |what, damage, tool, place, also| Fault {
        what,
        damage: Damage::Gpu(F32, damage),
        tool,
        place,
        also,
    };
    let upload = Tool::Verify(Checked::Upload);
    let steps = Tool::Verify(Checked::Steps);
    let embeddings = || Tampering::zeroed("token_embd.weight");
    vec![
        fault(
            "weights that an allocation left zero",
            Tampering::zeroed("blk.1.attn_output.weight"),
            upload,
            "blk.1.attn_output.weight",
            &["attn_output"],
        ),
        fault(
            "weights of two layers in each other's place",
            Tampering::swapped("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
            upload,
            "blk.0.ffn_down.weight",
            &["ffn_out"],
        ),
        fault(
            "embeddings that are zero on the device",
            embeddings(),
            upload,
            "token_embd.weight",
            &["embd", "result_output"],
        ),
        fault(
            "the same, and nobody asks",
            embeddings(),
            Tool::Running,
            "blk.0.l_out",
            &[],
        ),
        fault(
            "an embedding of zeros on the device",
            Tampering::zeroed_row("token_embd.weight", 260),
            upload,
            "token_embd.weight",
            &["embd", "result_output"],
        ),
        fault(
            "memory that is not given back",
            Tampering::kept_buffers(),
            Tool::Verify(Checked::Memory),
            "session",
            &[],
        ),
        fault(
            "angles of another base",
            Tampering::turned_positions(),
            steps,
            "blk.0.Qcur",
            &[],
        ),
        fault(
            "a dispatch that is left out",
            Tampering::skipped("blk.1.ffn_norm"),
            steps,
            "blk.1.ffn_norm",
            &[],
        ),
        fault(
            "a cache that something else writes to",
            Tampering::poisoned_cache(1),
            steps,
            "blk.1.kqv_out",
            &[],
        ),
        fault(
            "a device that is lost",
            Tampering::lost_device(),
            Tool::Verify(Checked::Kernels),
            "device",
            &[],
        ),
    ]
}

#[test]
fn what_is_wrong_on_the_device_is_named() {
    assert_found(faults());
}
