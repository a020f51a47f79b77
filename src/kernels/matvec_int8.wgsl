// matvec_int8: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for few rows and src of int8
// twin: matmul::twin of quantize::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for 2 rows of the weights for each of its teams (x, y), rows of src (z)
// needs: quantised weights
// numerics: |error| <= 4 eps (sum (|w x| + |offset x|) + |bias| + |residual|), eps = 2^-23; measured 1.0 eps of all but |offset x|
// source: the definition; of src s * q and weights t * r + offset a unit gives s t sum(q r) + offset s sum(q)

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
@group(0) @binding(3) var<storage, read> quants: array<vec4<u32>>;  // [n_rows, src_stride] int8, four a word
@group(0) @binding(4) var<storage, read> scales: array<vec2<f32>>;  // [n_rows, src_stride / 32]: scale, scale * sum of the quants
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(7) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

const WORKGROUP = 128u;
const TEAM_ROWS = 2u; // rows of the weights that a team multiplies

// Each invocation's part of its team's sums, [team_size, n_sums + 1]: the odd stride spreads what is written
// at once over the memory banks.
var<workgroup> partial: array<f32, WORKGROUP * TEAM_ROWS + 64u>;

// A unit of src.
struct Activations {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    sum: f32,
}

fn activations(unit: u32) -> Activations {
    let scale = scales[unit];
    return Activations(quants[unit * 2u], quants[unit * 2u + 1u], scale.x, scale.y);
}

fn dot8(weight: vec2<u32>, src: vec2<u32>) -> i32 {
    return dot4I8Packed(weight.x, src.x) + dot4I8Packed(weight.y, src.y);
}

fn dot_unit(weight: Header, src: Activations) -> f32 {
    let low = dot8(packed8(weight, 0u), src.low.xy) + dot8(packed8(weight, 1u), src.low.zw);
    let high = dot8(packed8(weight, 2u), src.high.xy) + dot8(packed8(weight, 3u), src.high.zw);
    let sum = dot(weight.scale, vec2(f32(low), f32(high)));
    return src.scale * sum + src.sum * weight.offset;
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

// The members of a team take two units each, a team's size apart, and then go on to the next ones.
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
    let starts = min(first + team_sums + vec2(0u, 1u), vec2(p.matrix.n_rows - 1u)) * n_units;
    let src_start = row * (p.src_stride / 32u);
    var sums = vec2<f32>(0.0);
    for (var unit = member; unit < n_units; unit += 2u * team_size) {
        // All loads come before their use. A second unit behind the last one repeats that and counts nothing.
        let second = min(unit + team_size, n_units - 1u);
        let weight0 = unit_header(starts.x + unit);
        let weight1 = unit_header(starts.y + unit);
        let weight2 = unit_header(starts.x + second);
        let weight3 = unit_header(starts.y + second);
        let src0 = activations(src_start + unit);
        let src1 = activations(src_start + second);
        sums += vec2(dot_unit(weight0, src0), dot_unit(weight1, src0));
        let counts = select(0.0, 1.0, unit + team_size < n_units);
        sums += counts * vec2(dot_unit(weight2, src1), dot_unit(weight3, src1));
    }
    let at_partial = member * (n_sums + 1u) + team_sums;
    partial[at_partial] = sums.x;
    partial[at_partial + 1u] = sums.y;
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
