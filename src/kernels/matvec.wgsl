// matvec: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for few rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for 4 rows of the weights for each of its teams (x, y), rows of src (z)
// needs: nothing
// numerics: |error| <= 4 eps (sum |w x| + |bias| + |residual|), eps = 2^-23; measured 1.0 eps over 1 to 2304 columns
// source: the definition

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

const WORKGROUP = 128u;
const TEAM_ROWS = 4u; // rows of the weights that a team multiplies

// Each invocation's part of its team's sums, [team_size, n_sums + 1]: the odd stride spreads what is written
// at once over the memory banks.
var<workgroup> partial: array<f32, WORKGROUP * TEAM_ROWS + 64u>;

fn dot8(weight: Eight, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(weight.low, low) + dot(weight.high, high);
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

// The members of a team take a unit each and then go on to the next ones.
@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let n_rows = select(batch.n_rows, batch.n_outputs, p.extent == 1u);
    let n_units = p.matrix.units_per_row;
    let team_size = p.matrix.team_size;
    let team_bits = firstTrailingBit(team_size);
    let n_sums = (WORKGROUP * TEAM_ROWS) >> team_bits;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * n_sums;
    if row >= n_rows || first >= p.matrix.n_rows {
        return;
    }

    // Loaded now, so that it is there in the end.
    let output = first + lane;
    let has_output = lane < n_sums && output < p.matrix.n_rows;
    var addend = vec2<f32>(0.0);
    if has_output {
        addend = added(row, output);
    }

    // Rows behind the last one repeat it, unused.
    let member = lane & (team_size - 1u);
    let team_sums = (lane >> team_bits) * TEAM_ROWS;
    let starts = min(first + team_sums + vec4(0u, 1u, 2u, 3u), vec4(p.matrix.n_rows - 1u)) * n_units;
    let src_start = row * (p.src_stride / 4u);
    var sums = vec4<f32>(0.0);
    for (var unit = member; unit < n_units; unit += team_size) {
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
    let at_partial = member * (n_sums + 1u) + team_sums;
    partial[at_partial] = sums.x;
    partial[at_partial + 1u] = sums.y;
    partial[at_partial + 2u] = sums.z;
    partial[at_partial + 3u] = sums.w;
    workgroupBarrier();

    if has_output {
        let stride = n_sums + 1u;
        var sum = 0.0;
        for (var i = lane; i < team_size * stride; i += 4u * stride) {
            sum += (partial[i] + partial[i + stride]) + (partial[i + 2u * stride] + partial[i + 3u * stride]);
        }
        write(row, output, sum, addend);
    }
}
