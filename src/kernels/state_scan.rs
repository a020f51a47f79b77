//! The selective state spaces of Mamba and Mamba 2.

use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `state_scan.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_head: u32,
    pub(crate) head_dim: u32,
    pub(crate) n_state: u32,
    pub(crate) n_group: u32,
    pub(crate) x_stride: u32,
    pub(crate) x_first: u32,
    pub(crate) b_stride: u32,
    pub(crate) b_first: u32,
    pub(crate) c_stride: u32,
    pub(crate) c_first: u32,
    pub(crate) dt_stride: u32,
    pub(crate) dst_stride: u32,
    pub(crate) n_lanes: u32,
    pub(crate) has_a_of_each: u32,
    pub(crate) padding: [u32; 2],
}

/// The sizes of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) n_head: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_state: usize,
    pub(crate) n_group: usize,
    /// Whether `a` has `n_state` elements for each head, and not one.
    pub(crate) has_a_of_each: bool,
}

/// Rows of a wider buffer: how wide it is, and the first column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) width: usize,
    pub(crate) first: usize,
}

impl Params {
    pub(crate) fn new(shape: &Shape, [x, b, c]: [Place; 3]) -> Params {
        let stride = |place: Place| row_stride(place.width) as u32;
        Params {
            n_head: shape.n_head as u32,
            head_dim: shape.head_dim as u32,
            n_state: shape.n_state as u32,
            n_group: shape.n_group as u32,
            x_stride: stride(x),
            x_first: x.first as u32,
            b_stride: stride(b),
            b_first: b.first as u32,
            c_stride: stride(c),
            c_first: c.first as u32,
            dt_stride: row_stride(shape.n_head) as u32,
            dst_stride: row_stride(shape.n_head * shape.head_dim) as u32,
            n_lanes: n_lanes(shape.n_state) as u32,
            has_a_of_each: shape.has_a_of_each.into(),
            padding: [0; 2],
        }
    }
}

/// States that an invocation holds, as `common/recurrence.wgsl` says.
const STATES: usize = 16;

/// Invocations that share a row of a state.
pub(super) fn n_lanes(n_state: usize) -> usize {
    n_state.div_ceil(STATES).next_power_of_two()
}

/// For so many rows of states.
pub(super) fn grid_of(n_elements: usize, n_lanes: usize) -> [u32; 3] {
    super::grid(n_elements.div_ceil(64 / n_lanes), 1)
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "state_scan",
    wgsl: include_str!("state_scan.wgsl"),
    bindings: &[
        ("x", Access::Read),
        ("dt", Access::Read),
        ("b", Access::Read),
        ("c", Access::Read),
        ("a", Access::Read),
        ("d", Access::Read),
        ("state", Access::ReadWrite),
        ("dst", Access::ReadWrite),
    ],
    params_bytes: size_of::<Params>(),
    uses: Uses {
        recurrence: true,
        ..Uses::NOTHING
    },
};

/// The rows are a loop of the kernel: each needs those before it.
pub(crate) fn grid(params: &Params, _: usize) -> [u32; 3] {
    let n_elements = params.n_head as usize * params.head_dim as usize;
    grid_of(n_elements, params.n_lanes as usize)
}

/// What a scan takes in, with the places of `x`, `b` and `c` in their buffers.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) x: (&'a [f32], Place),
    /// `[n_rows, n_head]`.
    pub(crate) dt: &'a [f32],
    pub(crate) b: (&'a [f32], Place),
    pub(crate) c: (&'a [f32], Place),
    /// `[n_head, n_state]`, or `[n_head]`.
    pub(crate) a: &'a [f32],
    /// `[n_head]`.
    pub(crate) d: &'a [f32],
}

/// `len` elements of a row, from one on.
pub(crate) fn elements(
    (rows, place): (&[f32], Place),
    row: usize,
    from: usize,
    len: usize,
) -> &[f32] {
    &rows[row * place.width + place.first + from..][..len]
}

/// `log(1 + exp(x))`.
pub(crate) fn softplus(x: f64) -> f64 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// For each row and head, with `step = softplus(dt)`, `state = state * exp(step * a) + step * x * b` and
/// `dst = sum_n state * c + d * x`: `dst` `[n_rows, n_head, head_dim]`, `state` `[n_head, head_dim, n_state]`.
pub(crate) fn twin(shape: &Shape, inputs: &Inputs<'_>, state: &mut [f32], dst: &mut [f32]) {
    let Shape {
        n_head,
        head_dim,
        n_state,
        n_group,
        has_a_of_each,
    } = *shape;
    for (row, dst) in dst.chunks_exact_mut(n_head * head_dim).enumerate() {
        for (element, dst) in dst.iter_mut().enumerate() {
            let head = element / head_dim;
            let group = head / (n_head / n_group);
            let step = softplus(f64::from(inputs.dt[row * n_head + head]));
            let x = f64::from(elements(inputs.x, row, element, 1)[0]);
            let b = elements(inputs.b, row, group * n_state, n_state);
            let c = elements(inputs.c, row, group * n_state, n_state);
            let mut sum = f64::from(inputs.d[head]) * x;
            for n in 0..n_state {
                let rate = inputs.a[if has_a_of_each {
                    head * n_state + n
                } else {
                    head
                }];
                let state = &mut state[element * n_state + n];
                let decayed = f64::from(*state) * (step * f64::from(rate)).exp();
                *state = (decayed + step * x * f64::from(b[n])) as f32;
                sum += f64::from(*state) * f64::from(c[n]);
            }
            *dst = sum as f32;
        }
    }
}
