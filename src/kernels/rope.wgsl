// rope: (x, y) of pair i of each head -> (x cos - y sin, x sin + y cos) of table[position, i];
//   dimensions from n_dims on pass through
// twin: rope::twin
// shapes: src, dst [n_rows, n_head, head_dim], table [capacity, n_dims / 2] (cos, sin); head_dim is even
// grid: one invocation a pair (x, y), rows (z)
// needs: nothing
// numerics: within 2.5e-7 * max |src| * max |table| (measured 1.3e-7)
// source: arXiv:2104.09864, equation 34

struct Params {
    n_head: u32,
    head_dim: u32,
    n_dims: u32,
    stride: u32,        // elements from a row to the next
    pair_step: u32,     // elements from the first of a pair to the first of the next pair
    pair_distance: u32, // elements from the first of a pair to the second
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<f32>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> table: array<vec2<f32>>; // [capacity, n_dims / 2]
@group(0) @binding(4) var<storage, read_write> dst: array<f32>;   // [n_rows, stride]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    let head = index / (p.head_dim / 2u);
    let pair = index % (p.head_dim / 2u);
    if head >= p.n_head {
        return;
    }
    let row = workgroup.z;
    let start = row * p.stride + head * p.head_dim;
    let n_pairs = p.n_dims / 2u;
    if pair < n_pairs {
        let first = start + pair * p.pair_step;
        let second = first + p.pair_distance;
        let x = src[first];
        let y = src[second];
        let turn = table[(batch.position + row) * n_pairs + pair];
        dst[first] = x * turn.x - y * turn.y;
        dst[second] = x * turn.y + y * turn.x;
    } else {
        let first = start + 2u * pair;
        dst[first] = src[first];
        dst[first + 1u] = src[first + 1u];
    }
}
