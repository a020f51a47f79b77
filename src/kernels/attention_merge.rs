//! Attention from the splits of [`attention_few`](super::attention_few).

use super::attention_few::Params;
use super::{Access, Kernel, Uses};

/// The kernel, with the parameters of the dispatch in front of it; its twin is
/// [`attention::twin`](super::attention::twin).
pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention_merge",
    wgsl: include_str!("attention_merge.wgsl"),
    bindings: &[
        ("partials", Access::Read),
        ("dst", Access::ReadWrite),
        ("int8", Access::ReadWrite),
        ("sinks", Access::Read),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        heads: true,
        quantize: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    [params.n_head, 1, n_rows as u32]
}
