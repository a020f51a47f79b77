// f16_rows: halves[row, i] = src[row, i] / scales[row], in 16-bit floats; scales[row] is the power of two that puts
//           the row's largest magnitude between 2^14 and 2^15
// twin: f16_rows::twin
// shapes: src [n_rows, width], halves, scales rows of common/f16_rows.wgsl; n_rows is n_outputs where p.extent says so
// grid: one workgroup a row (z)
// needs: nothing; subgroups where there are any
// numerics: scales exact; |error| of halves <= 2^-10 |halves| + 2^-24 (drivers may truncate), measured 2^-11 |halves|
// source: the definition

struct Params {
    stride: u32, // elements from a row of src and halves to the next
    extent: u32, // 0: n_slots rows for each of batch.n_rows, 1: batch.n_outputs rows
    n_slots: u32,
    padding: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;          // [n_rows, stride]
@group(0) @binding(3) var<storage, read_write> halves: array<vec2<u32>>; // [n_rows, stride] 16-bit floats, four each
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;       // [n_rows]

const WORKGROUP = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    if row >= select(batch.n_rows * p.n_slots, batch.n_outputs, p.extent == 1u) {
        return;
    }
    let n_quads = p.stride / 4u; // the padding stays zero
    let start = row * n_quads;

    var largest = 0.0;
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        largest = max(largest, largest_of(src[start + quad]));
    }
    let exponent = row_exponent(workgroup_max(largest, lane));
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        halves[start + quad] = pack_halves(src[start + quad], exponent);
    }
    if lane == 0u {
        scales[row] = power_of_two(exponent);
    }
}
