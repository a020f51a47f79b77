// attention_merge: dst = attention from the splits of attention_few; where has_int8 also int8 = dst as int8
// twin: attention::twin, quantize::twin
// shapes: partials [n_rows, n_head, n_splits, 4 + head_dim], dst [n_rows, n_head, head_dim]; head_dim as there
// grid: one workgroup a head (x), rows (z)
// needs: nothing
// numerics: as attention_few
// source: online softmax arXiv:1805.02867

struct Params {
    n_head: u32,
    n_head_kv: u32,
    stride: u32,   // elements from a row of dst to the next
    n_splits: u32,
    scale: f32,
    window: u32,
    has_int8: u32,
    soft_cap: f32,
    @size(16) has_sinks: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;  // [n_rows, n_head, n_splits, 4 + head_dim]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]
@group(0) @binding(4) var<storage, read_write> int8: array<u32>;      // [n_rows] rows of common/quantize.wgsl
@group(0) @binding(5) var<storage, read> sinks: array<f32>;           // [n_head], read where has_sinks

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(lane);
    let head = workgroup.x;
    let row = workgroup.z;
    let start = (row * p.n_head + head) * p.n_splits;

    var sums = Sums(mat2x4(vec4(0.0), vec4(0.0)), 0.0, LOWEST);
    for (var first = at.slice; first < p.n_splits; first += LOADS * SLICES) {
        // All loads come before their use. Splits behind the last repeat it and count nothing.
        var weights: array<vec2<f32>, LOADS>; // highest score, sum of the weights
        var values: array<mat2x4<f32>, LOADS>;
        for (var i = 0u; i < LOADS; i++) {
            let split = min(first + i * SLICES, p.n_splits - 1u);
            let partial = (start + split) * (QUADS + 1u);
            let quad = partial + 1u + at.unit * 2u;
            weights[i] = partials[partial].xy;
            values[i] = mat2x4(partials[quad], partials[quad + 1u]);
        }
        var highest = sums.highest;
        for (var i = 0u; i < LOADS; i++) {
            highest = max(highest, weights[i].x);
        }
        let decay = exp(sums.highest - highest);
        sums = Sums(sums.values * decay, sums.weight * decay, highest);
        for (var i = 0u; i < LOADS; i++) {
            let factor = select(0.0, exp(weights[i].x - highest), first + i * SLICES < p.n_splits);
            sums.weight += factor * weights[i].y;
            sums.values += factor * values[i];
        }
    }
    store_slices(array(sums), at);
    store_head(row, head, lane);
}
