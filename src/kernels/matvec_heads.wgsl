// matvec_heads: product = src * weights^T (+ bias), the projection to heads; where has_rope dst = RoPE of each head of the product;
//   where has_cache cache[position + row] = that of the two which is the last, in the type of the cache; for few rows
// twin: matmul::twin, of quantize::twin where src is int8, of rms_norm::twin before that where it is normed here, then rope::twin, then store_kv::twin
// shapes: src [n_rows, n_cols], weights [n_heads * head_dim, n_cols], product, dst [n_rows, n_heads * head_dim], cache [capacity, n_heads * head_dim],
//   table [capacity, n_dims / 2] (cos, sin); head_dim is a multiple of 4
// grid: one workgroup for n_pairs pairs of rows of the weights (x, y), rows of src (z)
// needs: nothing; quantised weights where src is int8 or normed; 9 storage buffers where it is normed
// numerics: as matvec, then as rope, then as store_kv
// source: the definitions

struct Params {
    matrix: Matrix,     // all rows: no shard of them
    src_stride: u32,    // elements from a row to the next
    dst_stride: u32,    // of product and dst
    n_pairs: u32,       // of a workgroup
    head_dim: u32,
    n_dims: u32,        // that turn; a multiple of 4
    pair_step: u32,     // elements from the first of a turning pair to the first of the next pair
    pair_distance: u32, // elements from the first of a turning pair to the second
    has_bias: u32,
    has_rope: u32,
    has_cache: u32,
    eps: f32,           // of the norm of src, where src is not normed yet
    writes_norm: u32,   // whether the first workgroup writes what the norm gives
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;  // [matrix.n_rows, n_cols], repacked
@group(0) @binding(4) var<storage, read> bias: array<f32>;           // [matrix.n_rows], read where has_bias
@group(0) @binding(5) var<storage, read> table: array<vec2<f32>>;    // [capacity, n_dims / 2], read where has_rope
@group(0) @binding(6) var<storage, read_write> product: array<f32>;  // [n_rows, dst_stride]
@group(0) @binding(7) var<storage, read_write> dst: array<f32>;      // [n_rows, dst_stride], written where has_rope
@group(0) @binding(8) var<storage, read_write> cache: array<u32>;    // [capacity, matrix.n_rows], written where has_cache

// What each invocation has: the product, then what goes to the cache.
var<workgroup> values: array<f32, WORKGROUP>;

// The place of a pair in its head, and whether the two turn.
struct Place {
    columns: vec2<u32>, // of the pair in a row
    index: u32,         // of the pair in its head
    turns: bool,
}

fn place_of(pair: u32) -> Place {
    let of_head = p.head_dim / 2u;
    let start = pair / of_head * p.head_dim;
    let index = pair % of_head;
    let turns = 2u * index < p.n_dims;
    let turning = start + index * p.pair_step + vec2(0u, p.pair_distance);
    return Place(select(start + 2u * index + vec2(0u, 1u), turning, turns), index, turns);
}

// The two that turn together. Rows behind the last one repeat it, unused.
fn pair_rows(pair: u32) -> Pair {
    let rows = min(place_of(pair).columns, vec2(p.matrix.n_rows - 1u));
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
    let pair = first_pair + lane / 2u;
    let has_output = lane < 2u * p.n_pairs && 2u * pair < p.matrix.n_rows;
    let is_second = (lane & 1u) == 1u;
    let place = place_of(pair);
    let column = select(place.columns.x, place.columns.y, is_second);
    let position = batch.position + row;
    var addend = 0.0;
    if has_output && p.has_bias == 1u {
        addend = bias[column];
    }
    let turns = p.has_rope == 1u && place.turns;
    var turn = vec2(1.0, 0.0);
    if has_output && turns {
        turn = table[position * (p.n_dims / 2u) + place.index];
    }

    prepare_src(row, lane, p.writes_norm == 1u && first_pair == 0u);
    var value = pair_product(first_pair, row, lane) + addend;
    let at = row * p.dst_stride + column;
    if has_output {
        product[at] = value;
    }
    values[lane] = value;
    workgroupBarrier();
    if turns {
        let other = values[lane ^ 1u];
        value = value * turn.x + select(-other, other, is_second) * turn.y;
    }
    if has_output && p.has_rope == 1u {
        dst[at] = value;
    }
    if p.has_cache == 0u {
        return;
    }

    // A word of the cache holds KV_PER_WORD neighbouring columns: the next one is the pair's second, or the
    // first of the next pair.
    workgroupBarrier();
    values[lane] = value;
    workgroupBarrier();
    if has_output && column % KV_PER_WORD == 0u {
        let is_halves = place.turns && p.pair_step == 1u;
        let next = values[lane + select(1u, 2u, is_halves)];
        cache[(position * p.matrix.n_rows + column) / KV_PER_WORD] = kv_word(value, next);
    }
}
