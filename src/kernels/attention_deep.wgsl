// attention_deep: partials = softmax(scale * q . keys) . values of splits of the visible keys, for each head, of few rows deep in
//   the context, by cooperative matrices; attention_merge makes attention of them
// twin: attention::twin
// shapes: q [n_rows, n_head, head_dim], keys, values [capacity, n_head_kv, head_dim] in 16-bit floats,
//   partials [n_rows, n_head, n_splits, 4 + head_dim]; head_dim is HEAD_DIM
// grid: one workgroup a key-value head (x) by splits (y) by ROWS of the query heads of all rows that share it (z)
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size
// numerics: within 4e-6 * max |values| (measured 2.9e-7) where scores differ by less than 30; |scores| below 1e28
// source: arXiv:2307.08691, algorithm 1; splits https://pytorch.org/blog/flash-decoding/; grouped queries arXiv:2305.13245

// From Tile::source: SIZE, SUBGROUP, N_SUBGROUPS, HEAD_DIM, TILE_KEYS, KEY_THREADS, STAGE_WIDTH, Element, TILE_LENGTH,
// WEIGHT_LENGTH, MatA, MatB, MatC, put_key8, put_value8, put_weight4, fetch_keys, fetch_values, put_keys,
// put_values, load_queries, clear_sums, score, sum_values, rescale_all, finish_all.

struct Params {
    n_head: u32,
    n_head_kv: u32,
    stride: u32,   // elements from a row of q to the next
    n_splits: u32, // of the visible keys
    scale: f32,
    window: u32,   // keys that a query sees, its own included
    has_int8: u32,
    soft_cap: f32, // on scores; 0 for none
    @size(16) has_sinks: u32, // the merge adds them
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;              // [n_rows, stride]
@group(0) @binding(3) var<storage, read> keys: array<mat2x4<f16>>;         // [capacity, n_head_kv, head_dim]
@group(0) @binding(4) var<storage, read> values: array<mat2x4<f16>>;       // [capacity, n_head_kv, head_dim]
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>; // [n_rows, n_head, n_splits, 4 + head_dim]

// A query has two rows of the matrices, and so have its weights: what 16 bits hold, and ROWS below it what they leave. Sums
// of both are as good as those of 32-bit factors, and the rows of a matrix are more than a key-value head has queries.
const ROWS = SIZE / 2u;
const N_THREADS = N_SUBGROUPS * SUBGROUP;
const LANES = N_THREADS / ROWS; // invocations that share a row's softmax, all of one subgroup
const N_QUADS = HEAD_DIM / 4u;
const EIGHTS = HEAD_DIM / 8u;
const KEY_QUADS = TILE_KEYS / 4u;
const SHARE = (KEY_QUADS + LANES - 1u) / LANES; // quads of a row's scores that an invocation has

// 16 bytes of padding put neighbouring rows into other memory banks.
const ROW_EIGHTS = EIGHTS + 1u;
const WEIGHT_QUADS = KEY_QUADS + 2u;
const STAGE_STRIDE = STAGE_WIDTH + 4u;

// Matrices are loaded from and stored to addresses of 16 bytes, and drivers put variables behind each other: all of them
// are multiples of 16 bytes.
var<workgroup> key_tile: array<Element, TILE_LENGTH>; // at first the queries
var<workgroup> value_tile: array<Element, TILE_LENGTH>;
var<workgroup> weights: array<Element, WEIGHT_LENGTH>;
var<workgroup> stage: array<f32, SIZE * STAGE_STRIDE>; // scores of a tile; sums on their way to and from matrices
var<workgroup> factors: array<f32, ROWS>;              // of the rows' sums
var<workgroup> must_rescale: vec4<u32>;                // in x: whether a factor is not 1

// Of the invocation's share of its row's scores.
var<private> scores: array<vec4<f32>, SHARE>;

const LOWEST: f32 = -1e30;  // in place of the scores of keys that a row does not see
const NO_BASE: f32 = -1e29; // below every score, and so far above LOWEST that its weight is zero
// Weights are exp(score - base). The highest score so far had the weight exp(USUAL) when the base was set, so that what 16
// bits leave of small weights keeps its bits too; the base is set anew where a weight would be beyond exp(MOST).
const USUAL: f32 = 5.0;
const MOST: f32 = 10.0;

struct Place {
    head_kv: u32,
    split: u32,
    first_row: u32,  // of the workgroup
    n_rows: u32,     // of all workgroups: a row of the batch has group_size
    group_size: u32, // query heads of a key-value head
    thread: u32,
    subgroup: u32,
    key: u32,        // of a tile, and its eight: the first that the invocation brings
    eight: u32,
    tile_row: u32,   // of the invocation, below ROWS
    part: u32,       // of the row, below LANES
    query_start: u32,
    key_stride: u32, // eights from a position to the next
    key_start: u32,  // of the head in a position
    end: u32,        // of the keys that any row of the workgroup sees
}

@compute @workgroup_size(N_THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // Rows behind the last one repeat it, unused.
    let group_size = p.n_head / p.n_head_kv;
    let n_rows = batch.n_rows * group_size;
    let first_row = workgroup.z * ROWS;
    var place: Place;
    place.head_kv = workgroup.x;
    place.split = workgroup.y;
    place.first_row = first_row;
    place.n_rows = n_rows;
    place.group_size = group_size;
    place.thread = thread;
    place.subgroup = subgroup;
    place.key = thread / KEY_THREADS;
    place.eight = thread % KEY_THREADS;
    place.tile_row = subgroup * (ROWS / N_SUBGROUPS) + lane / LANES;
    place.part = lane % LANES;
    let row = min(first_row + place.tile_row, n_rows - 1u);
    place.query_start = query_at(row, place);
    place.key_stride = p.n_head_kv * EIGHTS;
    place.key_start = workgroup.x * EIGHTS;
    place.end = batch.position + (min(first_row + ROWS, n_rows) - 1u) / group_size + 1u;
    let first_end = batch.position + first_row / group_size + 1u;
    // All rows see the keys from here to first_end.
    let first_whole = place.end - min(p.window, place.end);
    // Of this row.
    let row_end = batch.position + row / group_size + 1u;
    let n_visible = min(p.window, row_end);
    let row_first = row_end - n_visible;

    // Splits take turns at the tiles.
    let start = first_end - min(p.window, first_end) + workgroup.y * TILE_KEYS;
    let stride = p.n_splits * TILE_KEYS;
    fetch_keys(start, place);
    fetch_values(start, place);
    for (var i = thread; i < SIZE * SIZE; i += N_THREADS) {
        stage[i / SIZE * STAGE_STRIDE + i % SIZE] = 0.0;
    }
    must_rescale.x = 0u;
    let exponent = query_exponent(place);
    put_query(power_of_two(-exponent), place);
    workgroupBarrier();
    load_queries();
    clear_sums();
    workgroupBarrier();
    put_keys(place);
    fetch_keys(start + stride, place);
    workgroupBarrier();

    let score_scale = power_of_two(exponent) * p.scale;
    var base = NO_BASE;
    var total = 0.0;
    for (var tile = start; tile < place.end; tile += stride) {
        score(subgroup);
        workgroupBarrier(); // the scores are there, the last tile's values and these keys are used

        let is_whole = tile >= first_whole && tile + TILE_KEYS <= first_end;
        let highest = load_scores(tile - row_first, n_visible, is_whole, score_scale, place);
        var decay = 1.0;
        if highest - base > MOST {
            decay = exp(base - (highest - USUAL));
            if base > NO_BASE {
                must_rescale.x = 1u;
            }
            base = highest - USUAL;
        }
        total *= decay;
        factors[place.tile_row] = decay;
        total += put_weights(base, place);
        put_values(place);
        put_keys(place);
        workgroupBarrier(); // weights, values and the next keys are there

        let next = tile + stride;
        if next < place.end {
            fetch_values(next, place);
            fetch_keys(next + stride, place);
        }
        if must_rescale.x == 1u {
            rescale_all(place);
        }
        sum_values(subgroup);
    }

    let weight = row_sum(total);
    finish_all(place);
    if place.part == 0u && first_row + place.tile_row < n_rows {
        partials[partial_at(row, place)] = vec4(base, weight, 0.0, 0.0);
    }
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

fn largest_of4(four: vec4<f32>) -> f32 {
    return max(max(four.x, four.y), max(four.z, four.w));
}

// The nearest numbers that 16-bit floats hold, of those that are not too small. By their bits, since compilers take what is
// converted there and back for what it was, and then nothing is left.
fn upper_of(four: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(four) + 0x1000u) & vec4(0xffffe000u));
}

// A row counts the query heads of a key-value head, and rows of the batch.
fn query_at(row: u32, place: Place) -> u32 {
    let head = place.head_kv * place.group_size + row % place.group_size;
    return row / place.group_size * (p.stride / 4u) + head * N_QUADS;
}

fn partial_at(row: u32, place: Place) -> u32 {
    let head = place.head_kv * place.group_size + row % place.group_size;
    return ((row / place.group_size * p.n_head + head) * p.n_splits + place.split) * (N_QUADS + 1u);
}

fn query_exponent(place: Place) -> i32 {
    var largest = vec4(0.0);
    for (var quad = place.part; quad < N_QUADS; quad += LANES) {
        largest = max(largest, abs(q[place.query_start + quad]));
    }
    return exponent_of(row_max(largest_of4(largest)));
}

fn put_query(inverse: f32, place: Place) {
    for (var eight = place.part; eight < EIGHTS; eight += LANES) {
        let at = place.tile_row * ROW_EIGHTS + eight;
        let first = q[place.query_start + eight * 2u] * inverse;
        let second = q[place.query_start + eight * 2u + 1u] * inverse;
        let upper = mat2x4(upper_of(first), upper_of(second));
        let lower = mat2x4(first, second) - upper;
        put_key8(at, mat2x4<f16>(vec4<f16>(upper[0]), vec4<f16>(upper[1])));
        put_key8(at + ROWS * ROW_EIGHTS, mat2x4<f16>(vec4<f16>(lower[0]), vec4<f16>(lower[1])));
    }
}

// Where eight elements that the invocation brings to a tile lie in the cache, counted in keys and eights from the first. Keys
// behind the last one that is seen repeat it, since anything may stand there.
fn eight_at(tile: u32, key: u32, eight: u32, place: Place) -> u32 {
    let position = min(tile + place.key + key, place.end - 1u);
    return position * place.key_stride + place.key_start + place.eight + eight;
}

// Where they lie in their tile.
fn put_at(key: u32, eight: u32, place: Place) -> u32 {
    return (place.key + key) * ROW_EIGHTS + place.eight + eight;
}

fn stage4(at: u32) -> vec4<f32> {
    return vec4(stage[at], stage[at + 1u], stage[at + 2u], stage[at + 3u]);
}

// Loads the scores, and gives the highest of the row; `key` is the tile's first, counted from the first that the row sees.
fn load_scores(key: u32, n_visible: u32, is_whole: bool, scale: f32, place: Place) -> f32 {
    var highest = vec4(LOWEST);
    for (var i = 0u; i < SHARE; i++) {
        let quad = i * LANES + place.part;
        var four = vec4(LOWEST);
        if quad < KEY_QUADS {
            let at = place.tile_row * STAGE_STRIDE + quad * 4u;
            four = (stage4(at) + stage4(at + ROWS * STAGE_STRIDE)) * scale;
            if p.soft_cap > 0.0 {
                four = vec4(
                    soft_cap(four.x, p.soft_cap),
                    soft_cap(four.y, p.soft_cap),
                    soft_cap(four.z, p.soft_cap),
                    soft_cap(four.w, p.soft_cap),
                );
            }
            if !is_whole {
                let is_visible = vec4(key + quad * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(n_visible);
                four = select(vec4(LOWEST), four, is_visible);
            }
        }
        scores[i] = four;
        highest = max(highest, four);
    }
    return row_max(largest_of4(highest));
}

// Gives the sum of this invocation's share.
fn put_weights(base: f32, place: Place) -> f32 {
    var sums = vec4(0.0);
    for (var i = 0u; i < SHARE; i++) {
        let quad = i * LANES + place.part;
        if quad < KEY_QUADS {
            let at = place.tile_row * WEIGHT_QUADS + quad;
            let four = exp(scores[i] - base);
            let upper = upper_of(four);
            let lower = four - upper;
            put_weight4(at, vec4<f16>(upper));
            put_weight4(at + ROWS * WEIGHT_QUADS, vec4<f16>(lower));
            sums += four;
        }
    }
    return dot(sums, vec4(1.0));
}

// What is in the stage, each row times its factor.
fn scale_stage(place: Place) {
    workgroupBarrier();
    must_rescale.x = 0u;
    for (var i = place.thread; i < SIZE * STAGE_WIDTH; i += N_THREADS) {
        let row = i / STAGE_WIDTH;
        stage[row * STAGE_STRIDE + i % STAGE_WIDTH] *= factors[row % ROWS];
    }
    workgroupBarrier();
}

// Stores columns of the sums, which are in the stage.
fn finish(column: u32, width: u32, place: Place) {
    workgroupBarrier();
    let n_quads = width / 4u;
    for (var i = place.thread; i < ROWS * n_quads; i += N_THREADS) {
        let tile_row = i / n_quads;
        let row = place.first_row + tile_row;
        if row < place.n_rows {
            let at = tile_row * STAGE_STRIDE + i % n_quads * 4u;
            let quad = partial_at(row, place) + 1u + column / 4u + i % n_quads;
            partials[quad] = stage4(at) + stage4(at + ROWS * STAGE_STRIDE);
        }
    }
    workgroupBarrier();
}
