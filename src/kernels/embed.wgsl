// embed: dst[row] = weights[tokens[row] - first_row] * scale, for the rows whose token lies in this shard; where
//   BY_POSITION the same of positions, where BY_NOTHING of the first row
// twin: embed::twin
// shapes: tokens [n_rows], weights [vocab_size, hidden_size], dst [n_rows, hidden_size]
// grid: one invocation for 8 columns (x, y), rows (z)
// needs: nothing
// numerics: |error| <= 2 eps max |w scale| of the row, eps = 2^-23 (a fused multiply-add); measured 0
// source: the definition

struct Params {
    matrix: Matrix,
    dst_stride: u32, // elements from a row to the next
    scale: f32,
    named_by: u32,   // BY_POSITION, BY_NOTHING, or else by the token
    padding: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;              // [n_rows]
@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>;       // [matrix.n_rows, n_cols], repacked
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>;     // [n_rows, dst_stride] f32

const BY_POSITION = 1u;
const BY_NOTHING = 2u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let eight = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    if row >= batch.n_rows || eight >= p.matrix.units_per_row * 4u {
        return;
    }
    // A token of an earlier shard wraps around to a row that no shard has.
    var shard_row = tokens[row] - p.matrix.first_row;
    if p.named_by == BY_POSITION {
        shard_row = batch.position + row - p.matrix.first_row;
    } else if p.named_by == BY_NOTHING {
        shard_row = 0u - p.matrix.first_row;
    }
    if shard_row >= p.matrix.n_rows {
        return;
    }
    let header = unit_header(p.matrix.planes, shard_row * p.matrix.units_per_row + eight / 4u);
    let weight = decode8(header, eight % 4u);
    let at = row * (p.dst_stride / 4u) + eight * 2u;
    dst[at] = weight.low * p.scale;
    dst[at + 1u] = weight.high * p.scale;
}
