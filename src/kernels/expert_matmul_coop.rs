//! The products of many rows with the matrices of their experts by cooperative matrices; the twin is
//! [`super::experts::matmul_twin`].

pub(crate) use super::expert_matmul::Params;
use super::{Access, Kernel, Uses};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "expert_matmul_coop",
    wgsl: include_str!("expert_matmul_coop.wgsl"),
    bindings: &[
        ("weights", Access::Read),
        ("src", Access::Read),
        ("scales", Access::Read),
        ("tiles", Access::Read),
        ("bias", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        weight: true,
        f16: true,
        tile: true,
        expert_tiles: true,
        ..Uses::NOTHING
    },
};
