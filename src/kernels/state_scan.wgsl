// state_scan: for each row, with step = softplus(dt[h]): state[h, i, n] = state[h, i, n] * exp(step * a[h, n]) + step * x[h, i] *
//   b[g, n], dst[h, i] = sum_n state[h, i, n] * c[g, n] + d[h] * x[h, i]; g = h / (n_head / n_group)
// twin: state_scan::twin
// shapes: x, dst [n_rows, n_head, head_dim], dt [n_rows, n_head], b, c [n_rows, n_group, n_state], a [n_head, n_state] or [n_head], d
//   [n_head], state [n_head, head_dim, n_state], zeros at position 0; n_state is at most 256
// grid: 64 / n_lanes elements of heads a workgroup (x, y), which goes through all rows; n_lanes invocations share an element
// needs: nothing
// numerics: within 1e-5 of what the magnitudes of all values give, dst and state
// source: arXiv:2312.00752, algorithm 2; arXiv:2405.21060, section 2

struct Params {
    n_head: u32,
    head_dim: u32,
    n_state: u32,
    n_group: u32,
    x_stride: u32, // elements from a row to the next; likewise below
    x_first: u32,  // column
    b_stride: u32,
    b_first: u32,
    c_stride: u32,
    c_first: u32,
    dt_stride: u32,
    dst_stride: u32,
    n_lanes: u32,
    @size(12) has_a_of_each: u32, // whether a has n_state elements for each head, and not one
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;           // [n_rows, x_stride]
@group(0) @binding(3) var<storage, read> dt: array<f32>;          // [n_rows, dt_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;           // [n_rows, b_stride]
@group(0) @binding(5) var<storage, read> c: array<f32>;           // [n_rows, c_stride]
@group(0) @binding(6) var<storage, read> a: array<f32>;           // [n_head, n_state] or [n_head]
@group(0) @binding(7) var<storage, read> d: array<f32>;           // [n_head]
@group(0) @binding(8) var<storage, read_write> state: array<f32>; // [n_head, head_dim, n_state]
@group(0) @binding(9) var<storage, read_write> dst: array<f32>;   // [n_rows, dst_stride]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_elements = p.n_head * p.head_dim;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * (WORKGROUP / p.n_lanes);
    if first >= n_elements {
        return;
    }
    // Those behind the last do what it does, and write nothing.
    let own = first + lane / p.n_lanes;
    let element = min(own, n_elements - 1u);
    let part = lane % p.n_lanes;
    let head = element / p.head_dim;
    let in_group = head / (p.n_head / p.n_group) * p.n_state;

    var states: array<f32, STATES>;
    var rates: array<f32, STATES>;
    for (var i = 0u; i < STATES; i += 1u) {
        let n = i * p.n_lanes + part;
        states[i] = 0.0;
        rates[i] = 0.0;
        if n < p.n_state {
            if batch.position > 0u {
                states[i] = state[element * p.n_state + n];
            }
            rates[i] = a[select(head, head * p.n_state + n, p.has_a_of_each == 1u)];
        }
    }
    for (var row = 0u; row < batch.n_rows; row += 1u) {
        let step = softplus(dt[row * p.dt_stride + head]);
        let value = x[row * p.x_stride + p.x_first + element];
        let b_at = row * p.b_stride + p.b_first + in_group;
        let c_at = row * p.c_stride + p.c_first + in_group;
        var decay = decay_of(step * rates[0]);
        var sum = 0.0;
        for (var i = 0u; i < STATES; i += 1u) {
            let n = i * p.n_lanes + part;
            if n < p.n_state {
                if p.has_a_of_each == 1u {
                    decay = decay_of(step * rates[i]);
                }
                states[i] = states[i] * decay + step * value * b[b_at + n];
                sum += states[i] * c[c_at + n];
            }
        }
        let total = sum_of_lanes(vec3(sum, 0.0, 0.0), lane, p.n_lanes).x;
        if part == 0u && own < n_elements {
            dst[row * p.dst_stride + element] = total + d[head] * value;
        }
    }
    for (var i = 0u; i < STATES; i += 1u) {
        let n = i * p.n_lanes + part;
        if n < p.n_state && own < n_elements {
            state[element * p.n_state + n] = states[i];
        }
    }
}
