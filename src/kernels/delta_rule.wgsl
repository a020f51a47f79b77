// delta_rule: for each row and head, with unit = x / sqrt(sum(x^2) + eps) of q and k, decay = exp(a[h] * softplus(alpha[h] + bias[h]))
//   and rate = sigmoid(beta[h]): state *= decay, change[i] = rate * (v[i] - sum_n state[i, n] * k[n]), state[i, n] += change[i] * k[n],
//   dst[i] = sum_n state[i, n] * q[n] / sqrt(n_state)
// twin: delta_rule::twin
// shapes: qkv [n_rows, (2 * n_head_k + n_head) * n_state], alpha, beta [n_rows, n_head], a, bias [n_head], state [n_head, n_state,
//   n_state], zeros at position 0, dst [n_rows, n_head, n_state]; n_state is at most 256
// grid: 64 / n_lanes elements of heads a workgroup (x, y), which goes through all rows; n_lanes invocations share an element
// needs: nothing
// numerics: within 2e-5 of the largest of v and the state before
// source: arXiv:2412.06464, equation 10

struct Params {
    n_head: u32,
    n_head_k: u32,
    n_state: u32,
    qkv_stride: u32, // elements from a row to the next; likewise below
    gate_stride: u32,
    dst_stride: u32,
    n_lanes: u32,
    is_tiled: u32, // head h has the keys of head h % n_head_k, else those of h / (n_head / n_head_k)
    eps: f32,
    @size(12) scale: f32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;         // [n_rows, qkv_stride]
@group(0) @binding(3) var<storage, read> alpha: array<f32>;       // [n_rows, gate_stride]
@group(0) @binding(4) var<storage, read> beta: array<f32>;        // [n_rows, gate_stride]
@group(0) @binding(5) var<storage, read> a: array<f32>;           // [n_head]
@group(0) @binding(6) var<storage, read> bias: array<f32>;        // [n_head]
@group(0) @binding(7) var<storage, read_write> state: array<f32>; // [n_head, n_state, n_state]
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;   // [n_rows, dst_stride]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_elements = p.n_head * p.n_state;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * (WORKGROUP / p.n_lanes);
    if first >= n_elements {
        return;
    }
    // Those behind the last do what it does, and write nothing.
    let own = first + lane / p.n_lanes;
    let element = min(own, n_elements - 1u);
    let part = lane % p.n_lanes;
    let head = element / p.n_state;
    let head_k = select(head / (p.n_head / p.n_head_k), head % p.n_head_k, p.is_tiled == 1u);

    var states: array<f32, STATES>;
    var queries: array<f32, STATES>;
    var keys: array<f32, STATES>;
    for (var i = 0u; i < STATES; i += 1u) {
        let n = i * p.n_lanes + part;
        states[i] = 0.0;
        queries[i] = 0.0;
        keys[i] = 0.0;
        if n < p.n_state && batch.position > 0u {
            states[i] = state[element * p.n_state + n];
        }
    }
    for (var row = 0u; row < batch.n_rows; row += 1u) {
        let at = row * p.qkv_stride + head_k * p.n_state;
        let gate = row * p.gate_stride + head;
        let decay = decay_of(a[head] * softplus(alpha[gate] + bias[head]));
        var sums = vec3(0.0); // of the state with the key, and of squares
        for (var i = 0u; i < STATES; i += 1u) {
            let n = i * p.n_lanes + part;
            if n < p.n_state {
                queries[i] = qkv[at + n];
                keys[i] = qkv[at + p.n_head_k * p.n_state + n];
                states[i] *= decay;
                sums += vec3(states[i] * keys[i], keys[i] * keys[i], queries[i] * queries[i]);
            }
        }
        sums = sum_of_lanes(sums, lane, p.n_lanes);
        let key_scale = 1.0 / sqrt(sums.y + p.eps);
        let value = qkv[row * p.qkv_stride + 2u * p.n_head_k * p.n_state + element];
        let change = logistic(beta[gate]) * (value - sums.x * key_scale) * key_scale;
        var sum = 0.0;
        for (var i = 0u; i < STATES; i += 1u) {
            states[i] += change * keys[i];
            sum += states[i] * queries[i];
        }
        let total = sum_of_lanes(vec3(sum, 0.0, 0.0), lane, p.n_lanes).x;
        if part == 0u && own < n_elements {
            dst[row * p.dst_stride + element] = total * p.scale / sqrt(sums.z + p.eps);
        }
    }
    for (var i = 0u; i < STATES; i += 1u) {
        let n = i * p.n_lanes + part;
        if n < p.n_state && own < n_elements {
            state[element * p.n_state + n] = states[i];
        }
    }
}
