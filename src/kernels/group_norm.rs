//! Normalisation of the groups of a row, each by weights of its own.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `group_norm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) group: u32,
    pub(crate) n_groups: u32,
    pub(crate) stride: u32,
    pub(crate) eps: f32,
}

impl Params {
    pub(crate) fn new(width: usize, group: usize, eps: f32) -> Params {
        Params {
            group: group as u32,
            n_groups: (width / group) as u32,
            stride: row_stride(width) as u32,
            eps,
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "group_norm",
    wgsl: include_str!("group_norm.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weight", Access::Read),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        reduce: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(params.n_groups as usize, n_rows)
}

/// `dst = src / sqrt(mean(src^2) + eps) * weight` over each group of `group` elements: `src` and `dst`
/// `[n_rows, n_groups, group]`, `weight` `[n_groups, group]`.
pub(crate) fn twin(src: &[f32], group: usize, weight: &[f32], eps: f32, dst: &mut [f32]) {
    let groups = dst.chunks_exact_mut(group).zip(src.chunks_exact(group));
    for ((dst, src), weight) in groups.zip(weight.chunks_exact(group).cycle()) {
        let squares: f64 = src.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = 1.0 / (squares / group as f64 + f64::from(eps)).sqrt();
        for ((dst, &x), &weight) in dst.iter_mut().zip(src).zip(weight) {
            *dst = (f64::from(x) * scale * f64::from(weight)) as f32;
        }
    }
}
