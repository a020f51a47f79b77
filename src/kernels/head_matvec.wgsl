// head_matvec: dst[row, h] = [src[row, h, n_cols..], weights[h] src[row, h, ..n_cols]]
// twin: head_matvec::twin
// shapes: src [n_rows, n_head, src_dim], weights [n_head * n_out, n_cols], dst [n_rows, n_head, n_rest + n_out],
//   n_rest = src_dim - n_cols; src_dim is a multiple of 4
// grid: one workgroup for n_pairs pairs of rows of a head's weights, head by head (x, y), rows (z)
// needs: numbers behind the n_cols elements of a head, up to a multiple of 32: zero weights meet them
// numerics: |error| <= 4 eps sum |w x|, eps = 2^-23; what is not multiplied is exact
// source: the definition; arXiv:2405.04434, section 2.1.2, for what it serves

struct Params {
    matrix: Matrix,
    src_stride: u32, // 4: what common/matvec.wgsl takes for rows are quads, since heads begin at any of them
    row_quads: u32,  // from a row of src to the next
    dst_stride: u32, // elements from a row of dst to the next
    n_pairs: u32,    // of a workgroup
    n_head: u32,
    src_dim: u32,
    n_out: u32,      // rows of a head
    n_rest: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(4) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// The head's first row, seen from the first row of the shard: it may be before that.
var<private> first_row: i32;

// Neighbours. Rows outside the shard repeat one of it, unused.
fn pair_rows(pair: u32) -> Pair {
    let rows = vec2(first_row) + vec2<i32>(2u * pair + vec2(0u, 1u));
    let inside = clamp(rows, vec2(0), vec2(i32(p.matrix.n_rows) - 1));
    return Pair(p.matrix.planes, p.matrix.planes, vec2<u32>(inside) * p.matrix.units_per_row);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * n_workgroups.x + workgroup.x;
    let n_blocks = (p.n_out + 2u * p.n_pairs - 1u) / (2u * p.n_pairs);
    let head = index / n_blocks;
    if head >= p.n_head {
        return;
    }
    let first_pair = index % n_blocks * p.n_pairs;
    let src_quad = workgroup.z * p.row_quads + head * (p.src_dim / 4u);
    let dst_start = workgroup.z * p.dst_stride + head * (p.n_rest + p.n_out);
    if first_pair == 0u {
        for (var i = lane; i < p.n_rest; i += WORKGROUP) {
            let at = p.src_dim - p.n_rest + i;
            dst[dst_start + i] = src[src_quad + at / 4u][at % 4u];
        }
    }
    first_row = i32(head * p.n_out) - i32(p.matrix.first_row);
    let output = 2u * first_pair + lane;
    let sum = pair_product(first_pair, src_quad, lane);
    let row_in_shard = first_row + i32(output);
    let is_inside = row_in_shard >= 0 && row_in_shard < i32(p.matrix.n_rows);
    if lane < 2u * p.n_pairs && output < p.n_out && is_inside {
        dst[dst_start + p.n_rest + output] = sum;
    }
}
