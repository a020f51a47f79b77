//! States that are not what the tokens before made of them, and the kernels that keep them.

use super::{Damage, Fault, Tool, assert_found};
use crate::device::wgpu::tampering::Tampering;
use crate::diagnostics::verify::Checked;

pub(super) fn faults() -> Vec<Fault> {
    let fault = |what, file, tampering, checked, place| Fault {
        what,
        damage: Damage::Recurrent(file, tampering),
        tool: Tool::Verify(checked),
        place,
        // A state that is left from another batch shows where a batch runs once more.
        also: &["result_output"],
    };
    vec![
        fault(
            "a convolution that keeps the row before the last",
            "lfm2",
            Tampering::wgsl(
                "causal_conv",
                "window[5u - p.n_taps + kept]",
                "window[4u - p.n_taps + kept]",
            ),
            Checked::Kernels,
            "blk.0.shortconv_conv",
        ),
        fault(
            "a state that is not zero in front of the first token",
            "lfm2",
            Tampering::wgsl("causal_conv", "&& batch.position > 0u", ""),
            Checked::Kernels,
            "blk.0.shortconv_conv",
        ),
        fault(
            "a state space that does not decay",
            "mamba2",
            Tampering::wgsl("state_scan", "states[i] * decay +", "states[i] +"),
            Checked::Kernels,
            "blk.0.ssm_scan",
        ),
        fault(
            "a delta rule that adds what it knows already",
            "qwen35",
            Tampering::wgsl("delta_rule", "(value - sums.x * key_scale)", "value"),
            Checked::Kernels,
            "blk.0.ssm_delta",
        ),
        fault(
            "a state that something else writes to",
            "lfm2",
            Tampering::poisoned_state(1),
            Checked::Steps,
            "blk.1.shortconv_conv",
        ),
    ]
}

#[test]
fn verify_names_the_state_that_is_wrong() {
    assert_found(faults());
}
