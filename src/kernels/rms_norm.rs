//! Root-mean-square normalisation of whole rows or of each head of a row.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `rms_norm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) group: u32,
    pub(crate) n_groups: u32,
    pub(crate) stride: u32,
    pub(crate) eps: f32,
    /// [`INT8`] or [`F16`] where rows (of one group) are rounded too, else 0. Any buffer may be bound for
    /// what is not written.
    pub(crate) rounds: u32,
    /// Whether there is no weight; any buffer of a group's size may be bound for it then.
    pub(crate) is_plain: u32,
    pub(crate) padding: [u32; 2],
}

pub(crate) const INT8: u32 = 1;
pub(crate) const F16: u32 = 2;

impl Params {
    /// Rows of `width` elements in groups of `group` (a multiple of 4 where a row has several), not
    /// rounded.
    pub(crate) fn new(width: usize, group: usize, eps: f32) -> Params {
        Params {
            group: group as u32,
            n_groups: (width / group) as u32,
            stride: row_stride(width) as u32,
            eps,
            rounds: 0,
            is_plain: 0,
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "rms_norm",
    wgsl: include_str!("rms_norm.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weight", Access::Read),
        ("dst", Access::ReadWrite),
        ("int8", Access::ReadWrite),
        ("halves", Access::ReadWrite),
        ("scales", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        reduce: true,
        quantize: true,
        f16_rows: true,
        ..Uses::NOTHING
    },
};

pub(crate) fn grid(params: &Params, n_rows: usize) -> [u32; 3] {
    super::grid(params.n_groups as usize, n_rows)
}

/// `dst = src / sqrt(mean(src^2) + eps) (* weight)` over each group: `src` and `dst`
/// `[n_rows, n_groups, group]`, `weight` `[group]`.
pub(crate) fn twin(src: &[f32], group: usize, weight: Option<&[f32]>, eps: f32, dst: &mut [f32]) {
    for (dst, src) in dst.chunks_exact_mut(group).zip(src.chunks_exact(group)) {
        let squares: f64 = src.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = 1.0 / (squares / group as f64 + f64::from(eps)).sqrt();
        for (column, (dst, &x)) in dst.iter_mut().zip(src).enumerate() {
            let weight = weight.map_or(1.0, |weight| f64::from(weight[column]));
            *dst = (f64::from(x) * scale * weight) as f32;
        }
    }
}
