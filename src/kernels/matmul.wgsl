// matmul: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for many rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for 64 rows of the weights (x, y) by 64 rows of src (z)
// needs: 16384 bytes of workgroup memory
// numerics: |error| <= 4 eps (sum |w x| + |bias| + |residual|), eps = 2^-23; measured 1.1 eps over 1 to 2304 columns
// source: the definition

const TILE = 64u;

struct Params {
    matrix: Matrix,
    src_stride: u32, // elements from a row to the next
    dst_stride: u32,
    extent: u32,     // 0: batch.n_rows rows, 1: batch.n_outputs rows
    has_bias: u32,
    has_residual: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>;     // [n_rows, src_stride] f32
@group(0) @binding(4) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(5) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(6) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(7) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// One unit of 64 rows each, [64, 8] vectors.
var<workgroup> weight_tile: array<vec4<f32>, 512>;
var<workgroup> src_tile: array<vec4<f32>, 512>;

// Where a row's vector lies in a tile: neighbouring rows differ in the memory bank.
fn in_tile(row: u32, vector: u32) -> u32 {
    return row * 8u + (vector ^ (row & 7u));
}

// A thread computes outputs x, x + 16, x + 32, x + 48 of rows y, y + 16, y + 32, y + 48.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n_rows = select(batch.n_rows, batch.n_outputs, p.extent == 1u);
    let first_j = (workgroup.y * n_workgroups.x + workgroup.x) * TILE;
    let first_row = workgroup.z * TILE;
    if first_row >= n_rows || first_j >= p.matrix.n_rows {
        return;
    }

    // Rows behind the last one repeat it, unused.
    let n_units = p.matrix.units_per_row;
    let load_row = lane % TILE;
    let load_quarter = lane / TILE;
    let load_weight = min(first_j + load_row, p.matrix.n_rows - 1u) * n_units;
    let load_src = min(first_row + load_row, n_rows - 1u) * (p.src_stride / 4u) + load_quarter * 2u;
    let store_low = in_tile(load_row, load_quarter * 2u);
    let store_high = in_tile(load_row, load_quarter * 2u + 1u);

    let x = lane % 16u;
    let y = lane / 16u;
    var sums0 = vec4<f32>(0.0); // of row y, for the thread's four outputs
    var sums1 = vec4<f32>(0.0);
    var sums2 = vec4<f32>(0.0);
    var sums3 = vec4<f32>(0.0);
    for (var unit = 0u; unit < n_units; unit++) {
        let weight = decode8(unit_header(load_weight + unit), load_quarter);
        weight_tile[store_low] = weight.low;
        weight_tile[store_high] = weight.high;
        src_tile[store_low] = src[load_src + unit * 8u];
        src_tile[store_high] = src[load_src + unit * 8u + 1u];
        workgroupBarrier();
        for (var vector = 0u; vector < 8u; vector++) {
            let at_weight = in_tile(x, vector);
            let weight0 = weight_tile[at_weight];
            let weight1 = weight_tile[at_weight + 128u];
            let weight2 = weight_tile[at_weight + 256u];
            let weight3 = weight_tile[at_weight + 384u];
            let at_src = in_tile(y, vector);
            let src0 = src_tile[at_src];
            let src1 = src_tile[at_src + 128u];
            let src2 = src_tile[at_src + 256u];
            let src3 = src_tile[at_src + 384u];
            sums0 += vec4(dot(weight0, src0), dot(weight1, src0), dot(weight2, src0), dot(weight3, src0));
            sums1 += vec4(dot(weight0, src1), dot(weight1, src1), dot(weight2, src1), dot(weight3, src1));
            sums2 += vec4(dot(weight0, src2), dot(weight1, src2), dot(weight2, src2), dot(weight3, src2));
            sums3 += vec4(dot(weight0, src3), dot(weight1, src3), dot(weight2, src3), dot(weight3, src3));
        }
        workgroupBarrier();
    }

    store(first_row + y, n_rows, first_j + x, sums0);
    store(first_row + y + 16u, n_rows, first_j + x, sums1);
    store(first_row + y + 32u, n_rows, first_j + x, sums2);
    store(first_row + y + 48u, n_rows, first_j + x, sums3);
}

// Stores outputs j, j + 16, j + 32, j + 48 of a row, those that there are.
fn store(row: u32, n_rows: u32, j: u32, sums: vec4<f32>) {
    if row >= n_rows {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let output = j + 16u * i;
        if output < p.matrix.n_rows {
            write(row, output, sums[i], added(row, output));
        }
    }
}

// What is added to an output of a row: bias and residual.
fn added(row: u32, output: u32) -> vec2<f32> {
    let column = p.matrix.first_row + output;
    var value = vec2<f32>(0.0);
    if p.has_bias == 1u {
        value.x = bias[column];
    }
    if p.has_residual == 1u {
        value.y = residual[row * p.dst_stride + column];
    }
    return value;
}

// The residual is added to what is rounded already, as a step of its own would.
fn write(row: u32, output: u32, sum: f32, addend: vec2<f32>) {
    let at = row * p.dst_stride + p.matrix.first_row + output;
    let value = sum + addend.x;
    if p.has_residual == 1u {
        product[at] = value;
    }
    dst[at] = value + addend.y;
}
