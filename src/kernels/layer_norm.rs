//! Normalisation by mean and variance, of whole rows or of each head of a row.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `layer_norm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) group: u32,
    pub(crate) n_groups: u32,
    pub(crate) stride: u32,
    pub(crate) n_weight: u32,
    pub(crate) eps: f32,
    pub(crate) has_bias: u32,
    pub(crate) padding: [u32; 2],
}

impl Params {
    /// Rows of `width` elements in groups of `group` (a multiple of 4 where a row has several), with
    /// `n_weight` weights for one group or several.
    pub(crate) fn new(
        width: usize,
        group: usize,
        n_weight: usize,
        eps: f32,
        has_bias: bool,
    ) -> Params {
        Params {
            group: group as u32,
            n_groups: (width / group) as u32,
            stride: row_stride(width) as u32,
            n_weight: n_weight as u32,
            eps,
            has_bias: has_bias.into(),
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "layer_norm",
    wgsl: include_str!("layer_norm.wgsl"),
    bindings: &[
        ("src", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
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

/// `dst = (src - mean) / sqrt(variance + eps) * weight (+ bias)` over each group of `group` elements: `src` and
/// `dst` `[n_rows, n_groups, group]`, `weight` and `bias` `[n * group]`, which the groups of a row take in turn.
pub(crate) fn twin(
    src: &[f32],
    group: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    dst: &mut [f32],
) {
    let n = group as f64;
    let groups = dst.chunks_exact_mut(group).zip(src.chunks_exact(group));
    for (index, (dst, src)) in groups.enumerate() {
        let mean = src.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let squares: f64 = src.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let scale = 1.0 / (squares / n + f64::from(eps)).sqrt();
        let first = index * group % weight.len();
        for (i, (dst, &x)) in dst.iter_mut().zip(src).enumerate() {
            let scaled = (f64::from(x) - mean) * scale * f64::from(weight[first + i]);
            *dst = (scaled + bias.map_or(0.0, |bias| f64::from(bias[first + i]))) as f32;
        }
    }
}
