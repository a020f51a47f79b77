//! The gated delta rule: a matrix of each head that decays, and is corrected by each token.

use super::state_scan::{grid_of, n_lanes, softplus};
use super::{Access, Kernel, Uses, row_stride};
use bytemuck::{Pod, Zeroable};

/// The `Params` of `delta_rule.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) n_head: u32,
    pub(crate) n_head_k: u32,
    pub(crate) n_state: u32,
    pub(crate) qkv_stride: u32,
    pub(crate) gate_stride: u32,
    pub(crate) dst_stride: u32,
    pub(crate) n_lanes: u32,
    pub(crate) is_tiled: u32,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
    pub(crate) padding: [u32; 2],
}

/// The sizes of a delta rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Heads of values.
    pub(crate) n_head: usize,
    /// Heads of queries and of keys.
    pub(crate) n_head_k: usize,
    /// Elements of a head.
    pub(crate) n_state: usize,
    /// Whether head `h` has the keys of head `h % n_head_k`, else those of `h / (n_head / n_head_k)`.
    pub(crate) is_tiled: bool,
    /// Added to the sum of squares of a query, or a key.
    pub(crate) eps: f32,
}

impl Shape {
    /// Elements of a row of queries, keys and values.
    pub(crate) fn qkv_width(&self) -> usize {
        (2 * self.n_head_k + self.n_head) * self.n_state
    }

    /// The head of queries and keys of a head.
    pub(crate) fn head_k(&self, head: usize) -> usize {
        match self.is_tiled {
            true => head % self.n_head_k,
            false => head / (self.n_head / self.n_head_k),
        }
    }
}

impl Params {
    pub(crate) fn new(shape: &Shape) -> Params {
        Params {
            n_head: shape.n_head as u32,
            n_head_k: shape.n_head_k as u32,
            n_state: shape.n_state as u32,
            qkv_stride: row_stride(shape.qkv_width()) as u32,
            gate_stride: row_stride(shape.n_head) as u32,
            dst_stride: row_stride(shape.n_head * shape.n_state) as u32,
            n_lanes: n_lanes(shape.n_state) as u32,
            is_tiled: shape.is_tiled.into(),
            eps: shape.eps,
            scale: 1.0 / (shape.n_state as f32).sqrt(),
            padding: [0; 2],
        }
    }
}

pub(crate) const KERNEL: Kernel = Kernel {
    name: "delta_rule",
    wgsl: include_str!("delta_rule.wgsl"),
    bindings: &[
        ("qkv", Access::Read),
        ("alpha", Access::Read),
        ("beta", Access::Read),
        ("a", Access::Read),
        ("bias", Access::Read),
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
    let n_elements = params.n_head as usize * params.n_state as usize;
    grid_of(n_elements, params.n_lanes as usize)
}

/// What a delta rule takes in.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// `[n_rows, (2 * n_head_k + n_head) * n_state]`: queries, keys, values.
    pub(crate) qkv: &'a [f32],
    /// `[n_rows, n_head]`.
    pub(crate) alpha: &'a [f32],
    /// `[n_rows, n_head]`.
    pub(crate) beta: &'a [f32],
    /// `[n_head]`.
    pub(crate) a: &'a [f32],
    /// `[n_head]`.
    pub(crate) bias: &'a [f32],
}

/// For each row and head, with queries and keys of unit length, `decay = exp(a * softplus(alpha + bias))` and
/// `rate = sigmoid(beta)`: `state *= decay`, `change = rate * (v - state k)`, `state += change k^T`,
/// `dst = state q / sqrt(n_state)`: `dst` `[n_rows, n_head, n_state]`, `state` `[n_head, n_state, n_state]`.
pub(crate) fn twin(shape: &Shape, inputs: &Inputs<'_>, state: &mut [f32], dst: &mut [f32]) {
    let (n_head, n) = (shape.n_head, shape.n_state);
    let unit = |x: &[f32]| -> Vec<f64> {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let length = (squares + f64::from(shape.eps)).sqrt();
        x.iter().map(|&x| f64::from(x) / length).collect()
    };
    let rows = inputs.qkv.chunks_exact(shape.qkv_width());
    for (row, (qkv, dst)) in rows.zip(dst.chunks_exact_mut(n_head * n)).enumerate() {
        let heads: Vec<&[f32]> = qkv.chunks_exact(n).collect();
        for (head, dst) in dst.chunks_exact_mut(n).enumerate() {
            let head_k = shape.head_k(head);
            let [q, k] = [head_k, shape.n_head_k + head_k].map(|head| unit(heads[head]));
            let v = heads[2 * shape.n_head_k + head];
            let gate = row * n_head + head;
            let step = softplus(f64::from(inputs.alpha[gate]) + f64::from(inputs.bias[head]));
            let decay = (f64::from(inputs.a[head]) * step).exp();
            let rate = 1.0 / (1.0 + (-f64::from(inputs.beta[gate])).exp());
            let state = state[head * n * n..][..n * n].chunks_exact_mut(n);
            for ((state, dst), &v) in state.zip(dst).zip(v) {
                let seen: f64 = state
                    .iter()
                    .zip(&k)
                    .map(|(&s, k)| f64::from(s) * decay * k)
                    .sum();
                let change = rate * (f64::from(v) - seen);
                let mut sum = 0.0;
                for ((state, k), q) in state.iter_mut().zip(&k).zip(&q) {
                    *state = (f64::from(*state) * decay + change * k) as f32;
                    sum += f64::from(*state) * q;
                }
                *dst = (sum / (n as f64).sqrt()) as f32;
            }
        }
    }
}
