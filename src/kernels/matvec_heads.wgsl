// matvec_heads: for up to three projections of the same src: product = src * weights^T (+ bias), the projection to heads;
//   where HAS_ROPE turned = RoPE of each head of the product; where HAS_CACHE cache[position + row] = that of the two which is
//   the last, in the type of the cache; for few rows. The last of these is written to `firsts`, `seconds` or `thirds`, those
//   before it to `kept`
// twin: matmul::twin, of quantize::twin where src is int8, of rms_norm::twin before that where it is normed here, then rope::twin, then store_kv::twin
// shapes: src [n_rows, n_cols], weights [n_heads * head_dim, n_cols], product, turned [n_rows, n_heads * head_dim],
//   cache [capacity, n_heads * head_dim], table [capacity, n_dims / 2] (cos, sin); head_dim is a multiple of 4
// grid: one workgroup for n_pairs pairs of rows of the weights of one projection (x, y), rows of src (z)
// needs: nothing; quantised weights where src is int8 or normed; all weights and biases in one binding; 9 storage buffers where it is normed
// numerics: as matvec, then as rope, then as store_kv
// source: the definitions

struct Params {
    matrix: Matrix,           // all rows of all projections; the planes of the first
    second_planes: vec4<u32>, // of the second projection, with as many columns
    third_planes: vec4<u32>,
    first: vec4<u32>,         // of a projection: its rows, what it has, the words of weights before its bias, the elements of kept before its own
    second: vec4<u32>,        // likewise; no rows where there is none
    third: vec4<u32>,
    src_stride: u32,          // elements from a row to the next
    n_pairs: u32,             // of a workgroup
    head_dim: u32,            // of those that turn
    n_dims: u32,              // that turn; a multiple of 4
    pair_step: u32,           // elements from the first of a turning pair to the first of the next pair
    pair_distance: u32,       // elements from the first of a turning pair to the second
    eps: f32,                 // of the norm of src, where src is not normed yet
    writes_norm: u32,         // whether the first workgroup writes what the norm gives
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;  // [rows, n_cols] of each, repacked, and biases [rows]
@group(0) @binding(4) var<storage, read> table: array<vec2<f32>>;    // [capacity, n_dims / 2], read where HAS_ROPE
@group(0) @binding(5) var<storage, read_write> kept: array<f32>;     // [KEPT_ROWS, stride] of product, then of turned, of each
@group(0) @binding(6) var<storage, read_write> firsts: array<u32>;   // [n_rows, stride] f32, or the cache [capacity, rows]
@group(0) @binding(7) var<storage, read_write> seconds: array<u32>;  // likewise
@group(0) @binding(8) var<storage, read_write> thirds: array<u32>;   // likewise

const KEPT_ROWS = 4u; // of each result in kept

const HAS_BIAS = 1u;
const HAS_ROPE = 2u;
const HAS_CACHE = 4u;

// What a workgroup multiplies: rows of one projection.
struct Projection {
    index: u32,
    planes: vec4<u32>,
    n_rows: u32,
    has: u32,
    bias_at: u32,
    kept_at: u32,
    workgroup: u32, // among those of the projection
}

var<private> rows_planes: vec4<u32>;
var<private> rows_count: u32;
var<private> rows_turn: bool;

// What each invocation has: the product, then what goes to the cache.
var<workgroup> values: array<f32, WORKGROUP>;

// Each projection begins with a workgroup of its own.
fn projection_of(workgroup: u32) -> Projection {
    let outputs = 2u * p.n_pairs;
    let second_start = (p.first.x + outputs - 1u) / outputs;
    let third_start = second_start + (p.second.x + outputs - 1u) / outputs;
    var index = 0u;
    var planes = p.matrix.planes;
    var given = p.first;
    var start = 0u;
    if workgroup >= third_start {
        index = 2u;
        planes = p.third_planes;
        given = p.third;
        start = third_start;
    } else if workgroup >= second_start {
        index = 1u;
        planes = p.second_planes;
        given = p.second;
        start = second_start;
    }
    return Projection(index, planes, given.x, given.y, given.z, given.w, workgroup - start);
}

// The place of a pair in its head, and whether the two turn.
struct Place {
    columns: vec2<u32>, // of the pair in a row
    index: u32,         // of the pair in its head
    turns: bool,
}

fn place_of(pair: u32, has_rope: bool) -> Place {
    let of_head = p.head_dim / 2u;
    let start = pair / of_head * p.head_dim;
    let index = pair % of_head;
    let turns = has_rope && 2u * index < p.n_dims;
    let turning = start + index * p.pair_step + vec2(0u, p.pair_distance);
    return Place(select(start + 2u * index + vec2(0u, 1u), turning, turns), index, turns);
}

// The two that turn together. Rows behind the last one repeat it, unused.
fn pair_rows(pair: u32) -> Pair {
    let rows = min(place_of(pair, rows_turn).columns, vec2(rows_count - 1u));
    return Pair(rows_planes, rows_planes, rows * p.matrix.units_per_row);
}

// A word of a projection's last result.
fn write_last(projection: u32, at: u32, value: u32) {
    if projection == 0u {
        firsts[at] = value;
    } else if projection == 1u {
        seconds[at] = value;
    } else {
        thirds[at] = value;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let projection = projection_of(workgroup.y * n_workgroups.x + workgroup.x);
    let first_pair = projection.workgroup * p.n_pairs;
    if 2u * first_pair >= projection.n_rows {
        return;
    }
    let has_rope = (projection.has & HAS_ROPE) != 0u;
    let has_cache = (projection.has & HAS_CACHE) != 0u;
    rows_planes = projection.planes;
    rows_count = projection.n_rows;
    rows_turn = has_rope;

    // Loaded now, so that it is there in the end.
    let pair = first_pair + lane / 2u;
    let has_output = lane < 2u * p.n_pairs && 2u * pair < projection.n_rows;
    let is_second = (lane & 1u) == 1u;
    let place = place_of(pair, has_rope);
    let column = select(place.columns.x, place.columns.y, is_second);
    let position = batch.position + row;
    var addend = 0.0;
    if has_output && (projection.has & HAS_BIAS) != 0u {
        addend = bitcast<f32>(word(projection.bias_at + column));
    }
    var turn = vec2(1.0, 0.0);
    if has_output && place.turns {
        turn = table[position * (p.n_dims / 2u) + place.index];
    }

    prepare_src(row, lane, p.writes_norm == 1u && projection.index == 0u && first_pair == 0u);
    var value = pair_product(first_pair, row, lane) + addend;
    let stride = (projection.n_rows + 31u) / 32u * 32u;
    let at = row * stride + column;
    if has_output {
        if has_rope || has_cache {
            kept[projection.kept_at + at] = value;
        } else {
            write_last(projection.index, at, bitcast<u32>(value));
        }
    }
    values[lane] = value;
    workgroupBarrier();
    if place.turns {
        let other = values[lane ^ 1u];
        value = value * turn.x + select(-other, other, is_second) * turn.y;
    }
    if has_output && has_rope {
        if has_cache {
            kept[projection.kept_at + KEPT_ROWS * stride + at] = value;
        } else {
            write_last(projection.index, at, bitcast<u32>(value));
        }
    }
    if !has_cache {
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
        write_last(projection.index, (position * projection.n_rows + column) / KV_PER_WORD, kv_word(value, next));
    }
}
