// attention_coop: dst = softmax(scale * q . keys) . values over the visible keys, and a sink without a value, for each head, for many rows
// twin: attention::twin
// shapes: q, dst [n_rows, n_head, head_dim], keys, values [capacity, n_head_kv, head_dim]; head_dim is HEAD_DIM
// grid: one workgroup a head (x, y) by ROWS rows (z)
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size
// numerics: |error| <= 2^-9 (1 + scale * max over the keys of sum |q k|) max |values|, as queries, weights and a 32-bit cache
//           are rounded to 16 bits; measured 0.09 of it; |scores| below 1e29
// source: arXiv:2307.08691, algorithm 1; online softmax arXiv:1805.02867; sinks arXiv:2309.17453

// From Tile::source: SIZE, SUBGROUP, N_SUBGROUPS, SUBGROUP_ROWS, HEAD_DIM, KEY_THREADS, TILE_KEYS, STAGE_WIDTH, ELEMENT, MatA, MatB, MatC,
// Element, put_key4, put_value4, put_weight4, load_queries, fetch_keys, fetch_values, publish, put_keys, put_values,
// clear_sums, score, sum_values, rescale_all, finish_all. From common/kv_tile_*.wgsl: KvQuad and what begins with kv_.

struct Params {
    n_head: u32,
    n_head_kv: u32,
    head_dim: u32,
    stride: u32, // elements from a row of q and dst to the next
    scale: f32,
    window: u32, // keys that a query sees, its own included
    soft_cap: f32, // 0: `attention` has this and, but for the flags, what follows
    of_heads: u32, // those of SINKS and BOTH_WAYS that hold
    value_dim: u32, // head_dim
    dst_stride: u32, // stride
    @size(8) chunk: u32, // 0: `attention` has them
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> keys: array<KvQuad>;         // [capacity, n_head_kv, head_dim]
@group(0) @binding(4) var<storage, read> values: array<KvQuad>;       // [capacity, n_head_kv, head_dim]
@group(0) @binding(5) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]
@group(0) @binding(6) var<storage, read> sinks: array<f32>;           // [n_head], read where there are any

const SINKS = 2u;
const BOTH_WAYS = 8u; // all keys up to the end of the batch are visible; no window

const N_THREADS = N_SUBGROUPS * SUBGROUP;
const ROWS = N_SUBGROUPS * SUBGROUP_ROWS;
const LANES = SUBGROUP / SUBGROUP_ROWS; // invocations that share a row's softmax
const N_QUADS = HEAD_DIM / 4u;

// Strides in elements; 16 bytes of padding put neighbouring rows into other memory banks.
const TILE_STRIDE = (HEAD_DIM + 8u) / ELEMENT;
const WEIGHT_STRIDE = (TILE_KEYS + 8u) / ELEMENT;
const STAGE_STRIDE = STAGE_WIDTH + 4u;
const TILE_LENGTH = TILE_KEYS * TILE_STRIDE;

// Matrices are loaded from and stored to addresses of 16 bytes, and drivers put variables behind each other: all of them
// are multiples of 16 bytes.
var<workgroup> key_tile: array<Element, TILE_LENGTH>;
var<workgroup> value_tile: array<Element, TILE_LENGTH>;
var<workgroup> weights: array<Element, ROWS * WEIGHT_STRIDE>; // of the keys of a tile; at first the queries
var<workgroup> stage: array<f32, ROWS * STAGE_STRIDE>;        // scores of a tile; sums on their way to and from matrices
var<workgroup> factors: array<f32, ROWS>;                     // of the rows' sums
var<workgroup> must_rescale: vec4<u32>;                       // in x: whether a factor is not 1

// Of the invocation's share of its row's scores.
var<private> scores: array<vec4<f32>, TILE_KEYS / (4u * LANES)>;

const LOWEST: f32 = -1e30;  // in place of the scores of keys that a row does not see
const NO_BASE: f32 = -1e29; // below every score, and so far above LOWEST that its weight is zero
// Weights are 2^(score - base). The highest score so far had this weight when the base was set, so that small weights
// keep their bits in 16-bit floats; the base is set anew where a weight would be beyond 2^MOST. Between the two is room
// for models whose scores differ by much: to set it anew costs as much as several tiles.
const USUAL: f32 = 0.0;
const MOST: f32 = 15.0;

struct Place {
    key: u32,        // of a tile, and its quad: the first that the invocation brings
    quad: u32,
    tile_row: u32,   // of the invocation, in the workgroup's rows
    part: u32,       // of the row, below LANES
    rows_at: u32,    // the subgroup's first row in the workgroup's rows
    row: u32,
    query_start: u32,
    key_stride: u32, // quads from a position to the next
    key_start: u32,  // of the head in a position
    end: u32,        // of the keys that any row of the workgroup sees
}

@compute @workgroup_size(N_THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // The last rows, which see the most keys, go first.
    let n_tiles = (batch.n_rows + ROWS - 1u) / ROWS;
    let head = workgroup.y * n_workgroups.x + workgroup.x;
    if head >= p.n_head || workgroup.z >= n_tiles {
        return;
    }
    let first_row = (n_tiles - 1u - workgroup.z) * ROWS;

    // Rows behind the last one repeat it, unused.
    var place: Place;
    place.key = thread / KEY_THREADS;
    place.quad = thread % KEY_THREADS;
    place.rows_at = subgroup * SUBGROUP_ROWS;
    place.tile_row = place.rows_at + lane / LANES;
    place.part = lane % LANES;
    place.row = first_row + place.tile_row;
    place.query_start = min(place.row, batch.n_rows - 1u) * (p.stride / 4u) + head * N_QUADS;
    place.key_stride = p.n_head_kv * N_QUADS;
    place.key_start = head / (p.n_head / p.n_head_kv) * N_QUADS;
    let sees_all = (p.of_heads & BOTH_WAYS) != 0u;
    place.end = batch.position + select(min(first_row + ROWS, batch.n_rows), batch.n_rows, sees_all);
    let first_end = select(batch.position + first_row + 1u, place.end, sees_all);
    let first = first_end - min(p.window, first_end);
    // All rows see the keys from here to first_end.
    let first_whole = place.end - min(p.window, place.end);
    // Of this row.
    let row_end = min(batch.position + place.row + 1u, place.end);
    let visible_end = select(row_end, place.end, sees_all);
    let n_visible = min(p.window, visible_end);
    let row_first = visible_end - n_visible;

    fetch_keys(first, place);
    publish(subgroup);
    for (var i = thread; i < ROWS * STAGE_STRIDE; i += N_THREADS) {
        stage[i] = 0.0;
    }
    must_rescale.x = 0u;
    let exponent = query_exponent(place);
    load_queries(power_of_two(-exponent), place);
    clear_sums(place);
    var key_exponent = kv_exponents().x;
    put_keys(power_of_two(-key_exponent), place);
    fetch_values(first, place);
    fetch_keys(first + TILE_KEYS, place);
    workgroupBarrier();

    let query_scale = power_of_two(exponent) * (p.scale * 1.44269504); // weights are powers of two
    var value_exponent = KV_LEAST;
    var base = NO_BASE;
    var total = 0.0;
    for (var tile = first; tile < place.end; tile += TILE_KEYS) {
        score(place);
        publish(subgroup);
        workgroupBarrier(); // the scores are there, the last tile's values and these keys are used

        let exponents = kv_exponents();
        let score_scale = query_scale * power_of_two(key_exponent);
        let is_whole = tile >= first_whole && tile + TILE_KEYS <= first_end;
        let highest = load_scores(tile - row_first, n_visible, is_whole, score_scale, place);
        var decay = 1.0;
        var new_base = base;
        if highest - base > MOST {
            new_base = highest - USUAL;
            decay = exp2(base - new_base);
        }
        total *= decay;
        let larger = max(value_exponent, exponents.y);
        decay *= power_of_two(max(value_exponent - larger, -126));
        value_exponent = larger;
        if base > NO_BASE && decay < 1.0 {
            must_rescale.x = 1u;
        }
        factors[place.tile_row] = decay;
        base = new_base;
        total += put_weights(base, place);

        put_values(power_of_two(-value_exponent), place);
        key_exponent = exponents.x;
        put_keys(power_of_two(-key_exponent), place);
        workgroupBarrier(); // weights, values and the next keys are there

        fetch_values(tile + TILE_KEYS, place);
        fetch_keys(tile + 2u * TILE_KEYS, place);
        if must_rescale.x == 1u {
            rescale_all(place);
        }
        sum_values(place);
    }

    var sum = row_sum(total);
    if (p.of_heads & SINKS) != 0u {
        // Far above the scores it leaves nothing of them; a number must stay finite.
        let sink = sinks[head] * 1.44269504 - base;
        let is_nan = (bitcast<u32>(sink) & 0x7fffffffu) > 0x7f800000u;
        sum += select(exp2(min(sink, 100.0)), sink, is_nan);
    }
    factors[place.tile_row] = power_of_two(value_exponent) / sum;
    finish_all(place);
}

// 2^exponent, of a normal number.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// Of the power of two that a number is divided by to come between 2^14 and 2^15; where it is nearly zero, of the smallest
// whose inverse is a normal number.
fn exponent_of(largest: f32) -> i32 {
    return max(i32(bitcast<u32>(largest) >> 23u) - 127 - 14, -126);
}

fn row_max(value: f32) -> f32 {
    var largest = value;
    for (var other = 1u; other < LANES; other *= 2u) {
        largest = max(largest, subgroupShuffleXor(largest, other));
    }
    return largest;
}

fn row_sum(value: f32) -> f32 {
    var sum = value;
    for (var other = 1u; other < LANES; other *= 2u) {
        sum += subgroupShuffleXor(sum, other);
    }
    return sum;
}

fn query_exponent(place: Place) -> i32 {
    var largest = vec4(0.0);
    for (var quad = place.part; quad < N_QUADS; quad += LANES) {
        largest = max(largest, abs(q[place.query_start + quad]));
    }
    return exponent_of(row_max(max(max(largest.x, largest.y), max(largest.z, largest.w))));
}

// TILE_KEYS columns of the queries, or what there is of them.
fn put_queries(column: u32, inverse: f32, place: Place) {
    let n_quads = min(TILE_KEYS, HEAD_DIM - column) / 4u;
    for (var quad = place.part; quad < n_quads; quad += LANES) {
        let query = q[place.query_start + column / 4u + quad] * inverse;
        put_weight4(place.tile_row * WEIGHT_STRIDE + quad * 4u / ELEMENT, vec4<f16>(query));
    }
}

// Where a quad that the invocation brings to a tile lies in the cache, counted in keys and quads from the first. Keys
// behind the last one that is seen repeat it, since anything may stand there.
fn quad_at(tile: u32, key: u32, quad: u32, place: Place) -> u32 {
    let position = min(tile + place.key + key, place.end - 1u);
    return position * place.key_stride + place.key_start + place.quad + quad;
}

// Where that quad lies in its tile.
fn put_at(key: u32, quad: u32, place: Place) -> u32 {
    return (place.key + key) * TILE_STRIDE + (place.quad + quad) * 4u / ELEMENT;
}

// Loads the scores, and gives the highest of the row; `key` is the tile's first, counted from the first that the row sees.
fn load_scores(key: u32, n_visible: u32, is_whole: bool, scale: f32, place: Place) -> f32 {
    var highest = vec4(LOWEST);
    for (var i = 0u; i < TILE_KEYS / (4u * LANES); i++) {
        let column = (i * LANES + place.part) * 4u;
        let at = place.tile_row * STAGE_STRIDE + column;
        var four = vec4(stage[at], stage[at + 1u], stage[at + 2u], stage[at + 3u]) * scale;
        if !is_whole {
            let is_visible = vec4(key + column) + vec4(0u, 1u, 2u, 3u) < vec4(n_visible);
            four = select(vec4(LOWEST), four, is_visible);
        }
        scores[i] = four;
        highest = max(highest, four);
    }
    return row_max(max(max(highest.x, highest.y), max(highest.z, highest.w)));
}

// Gives the sum of this invocation's share.
fn put_weights(base: f32, place: Place) -> f32 {
    var sums = vec4(0.0);
    for (var i = 0u; i < TILE_KEYS / (4u * LANES); i++) {
        let column = (i * LANES + place.part) * 4u;
        let four = vec4<f16>(exp2(scores[i] - base));
        put_weight4(place.tile_row * WEIGHT_STRIDE + column / ELEMENT, four);
        sums += vec4<f32>(four);
    }
    return dot(sums, vec4(1.0));
}

// What is in the stage, each row times its factor.
fn scale_stage(place: Place) {
    workgroupBarrier();
    must_rescale.x = 0u;
    let factor = factors[place.tile_row];
    for (var i = place.part; i < STAGE_WIDTH; i += LANES) {
        stage[place.tile_row * STAGE_STRIDE + i] *= factor;
    }
    workgroupBarrier();
}

// Stores columns of the sums, which are in the stage.
fn finish(column: u32, width: u32, place: Place) {
    workgroupBarrier();
    if place.row < batch.n_rows {
        let factor = factors[place.tile_row];
        for (var i = place.part * 4u; i < width; i += LANES * 4u) {
            let at = place.tile_row * STAGE_STRIDE + i;
            let sums = vec4(stage[at], stage[at + 1u], stage[at + 2u], stage[at + 3u]);
            dst[place.query_start + (column + i) / 4u] = sums * factor;
        }
    }
    workgroupBarrier();
}
