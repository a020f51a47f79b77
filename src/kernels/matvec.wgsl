// matvec: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]), for few rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for 16 rows of the weights, or for 4 that have 2048 columns or more (x, y), rows of src (z)
// needs: nothing
// numerics: |error| <= 4 eps (sum |w x| + |bias|), eps = 2^-23; measured 0.95 eps over 1 to 2304 columns
// source: the definition

struct Params {
    matrix: Matrix,
    src_stride: u32, // elements from a row to the next
    dst_stride: u32,
    extent: u32,     // 0: batch.n_rows rows, 1: batch.n_outputs rows
    has_bias: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<u32>;       // [matrix.n_rows, n_cols], repacked
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>;     // [n_rows, src_stride] f32
@group(0) @binding(4) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(5) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

var<workgroup> partial: array<vec4<f32>, 64>; // each invocation's part of its team's four sums

fn dot8(weight: Eight, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(weight.low, low) + dot(weight.high, high);
}

// A team of 16 or 64 invocations computes four outputs, each invocation every 16th or 64th unit.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let n_rows = select(batch.n_rows, batch.n_outputs, p.extent == 1u);
    let n_units = p.matrix.units_per_row;
    let team_size = select(16u, 64u, n_units >= 64u);
    let n_sums = 256u / team_size;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * n_sums;
    if row >= n_rows || first >= p.matrix.n_rows {
        return;
    }

    // Rows behind the last one repeat it, unused.
    let team_first = first + lane / team_size * 4u;
    let starts = min(team_first + vec4(0u, 1u, 2u, 3u), vec4(p.matrix.n_rows - 1u)) * n_units;
    let src_start = row * (p.src_stride / 4u);
    var sums = vec4<f32>(0.0);
    for (var unit = lane % team_size; unit < n_units; unit += team_size) {
        let header0 = unit_header(starts.x + unit);
        let header1 = unit_header(starts.y + unit);
        let header2 = unit_header(starts.z + unit);
        let header3 = unit_header(starts.w + unit);
        for (var quarter = 0u; quarter < 4u; quarter++) {
            let at = src_start + unit * 8u + quarter * 2u;
            let low = src[at];
            let high = src[at + 1u];
            sums += vec4(
                dot8(decode8(header0, quarter), low, high),
                dot8(decode8(header1, quarter), low, high),
                dot8(decode8(header2, quarter), low, high),
                dot8(decode8(header3, quarter), low, high),
            );
        }
    }
    partial[lane] = sums;
    workgroupBarrier();

    let j = first + lane;
    if lane < n_sums && j < p.matrix.n_rows {
        let team_start = lane / 4u * team_size;
        var sum = 0.0;
        for (var i = 0u; i < team_size; i++) {
            sum += partial[team_start + i][lane % 4u];
        }
        let column = p.matrix.first_row + j;
        if p.has_bias == 1u {
            sum += bias[column];
        }
        dst[row * p.dst_stride + column] = sum;
    }
}
