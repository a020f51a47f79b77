// matvec: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for few rows
// twin: matmul::twin, of quantize::twin where src is int8
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; the rows are those of the grid
// grid: one workgroup for n_pairs pairs of rows of the weights (x, y), rows of src (z)
// needs: nothing; quantised weights where src is int8
// numerics: |error| <= 4 eps (sum |w x| + |bias| + |residual|), eps = 2^-23, where src is int8 with |w x| + |offset x|;
//           measured 1.0 eps over 1 to 2304 columns (int8: of all but |offset x|)
// source: the definition

struct Params {
    matrix: Matrix,
    src_stride: u32, // elements from a row to the next
    dst_stride: u32,
    n_pairs: u32,    // of a workgroup
    has_bias: u32,
    @size(16) has_residual: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(4) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(5) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(6) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(7) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// Neighbours. Rows behind the last one repeat it, unused.
fn pair_rows(pair: u32) -> Pair {
    let rows = min(2u * pair + vec2(0u, 1u), vec2(p.matrix.n_rows - 1u));
    return Pair(p.matrix.planes, p.matrix.planes, rows * p.matrix.units_per_row);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let first_pair = (workgroup.y * n_workgroups.x + workgroup.x) * p.n_pairs;
    if 2u * first_pair >= p.matrix.n_rows {
        return;
    }

    // Loaded now, so that it is there in the end.
    let output = 2u * first_pair + lane;
    let has_output = lane < 2u * p.n_pairs && output < p.matrix.n_rows;
    var addend = vec2<f32>(0.0);
    if has_output {
        addend = added(row, output);
    }
    let sum = pair_product(first_pair, row, lane);
    if has_output {
        write(row, output, sum, addend);
    }
}
