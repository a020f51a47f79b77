// sample: the next token: top-k, top-p, min-p, then a draw at a temperature; greedy is top-k of 1
// twin: sample::twin
// shapes: logits [n_outputs, n_logits], of which the last row counts; maxima from logit_maxima; tokens [1]
// grid: one workgroup
// needs: nothing
// numerics: the candidates' order is exact; a share of the probability within 1e-5 of the boundary of top-p,
//   min-p or the draw may fall to either side (sums of f32, exp)
// source: the stages of `sampler`. The k largest lie in the k blocks with the largest maxima: whatever is in
//   another block ranks behind the k largest of these. So each level of `maxima` leaves k blocks to open.

struct Params {
    n_tokens: u32, // to choose from
    stride: u32,   // elements from a row of logits to the next
    top_k: u32,    // 1 to 64
    top_p: f32,
    min_p: f32,
    inverse_temperature: f32,
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<u32>;         // [n_outputs, stride] f32, as bits
@group(0) @binding(3) var<storage, read> maxima: array<u32>;         // as logit_maxima writes it
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;   // [1]: the token, to run next
@group(0) @binding(5) var<storage, read_write> chosen: array<u32>;   // [5]: token, magnitude, position, candidates, best

const LANES: u32 = 256u;
const MAX_TOP_K: u32 = 64u;
const ROOM: u32 = MAX_TOP_K * 16u;

// Blocks: `ordered` maximum, a token of the block. In the end logits and tokens.
var<workgroup> list: array<vec2<u32>, ROOM>;
var<workgroup> kept: array<vec2<u32>, MAX_TOP_K>; // the best of the list, in order
var<workgroup> n_listed: atomic<u32>;
var<workgroup> largest: atomic<u32>; // magnitude
var<workgroup> weights: array<f32, MAX_TOP_K>; // of those kept, to the best one's
var<workgroup> n_candidates: atomic<u32>;
var<workgroup> n_passed: atomic<u32>; // candidates before the one that is drawn

// The largest first, the lowest token among equals.
fn ranks_before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// Keeps the `top_k` best of the first `n` of the list: the place of each is the number of those before it.
fn keep_best(n: u32, lane: u32) -> u32 {
    for (var i = lane; i < n; i += LANES) {
        let item = list[i];
        var place = 0u;
        for (var other = 0u; other < n; other++) {
            place += select(0u, 1u, ranks_before(list[other], item));
        }
        if place < p.top_k {
            kept[place] = item;
        }
    }
    workgroupBarrier();
    return min(n, p.top_k);
}

// The maximum of a block of `size` tokens, or the logit where that is 1; 0 where there is none.
fn key_of(token: u32, size: u32) -> u32 {
    if size > 1u {
        let n_groups = (p.stride + 1023u) / 1024u;
        return maxima[select(0u, n_groups * 64u, size == 256u) + token / size];
    }
    if token >= p.n_tokens {
        return 0u;
    }
    return ordered(vec4<u32>(logits[(batch.n_outputs - 1u) * p.stride + token])).x;
}

// Lists the blocks of `size` tokens that the first `n` blocks kept, of `parent` tokens, consist of, as far
// as their maxima reach that of the last one kept; gives their number.
fn open(n: u32, parent: u32, size: u32, lane: u32) -> u32 {
    // With fewer than `top_k` blocks nothing is ruled out but those that are empty.
    var floor = 1u;
    if n == p.top_k {
        floor = max(kept[n - 1u].x, 1u);
    }
    let fan_out = parent / size;
    var found: array<vec2<u32>, ROOM / LANES>; // loaded before any of it is looked at
    for (var i = 0u; i < ROOM / LANES; i++) {
        let item = i * LANES + lane;
        found[i] = vec2<u32>(0u);
        if item < n * fan_out {
            let token = kept[item / fan_out].y / parent * parent + item % fan_out * size;
            found[i] = vec2<u32>(key_of(token, size), token);
        }
    }
    if lane == 0u {
        atomicStore(&n_listed, 0u);
    }
    workgroupBarrier();
    for (var i = 0u; i < ROOM / LANES; i++) {
        if found[i].x >= floor {
            list[atomicAdd(&n_listed, 1u)] = found[i];
        }
    }
    workgroupBarrier();
    return atomicLoad(&n_listed);
}

// The sum of the weights before a candidate's, and that of all.
fn sums(n: u32, lane: u32) -> vec2<f32> {
    var before = 0.0;
    var total = 0.0;
    for (var i = 0u; i < n; i++) {
        before += select(0.0, weights[i], i < lane);
        total += weights[i];
    }
    return vec2<f32>(before, total);
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    let n_groups = (p.stride + 1023u) / 1024u;
    if lane == 0u {
        atomicStore(&largest, 0u);
        atomicStore(&n_candidates, 0u);
        atomicStore(&n_passed, 0u);
    }
    workgroupBarrier();
    for (var group = lane; group < n_groups; group += LANES) {
        list[group] = vec2<u32>(maxima[n_groups * 68u + group], maxima[n_groups * 69u + group]);
        atomicMax(&largest, maxima[n_groups * 70u + group]);
    }
    workgroupBarrier();
    var n = keep_best(n_groups, lane);
    if p.top_k > 1u {
        n = keep_best(open(n, 1024u, 256u, lane), lane);
        n = keep_best(open(n, 256u, 16u, lane), lane);
        n = keep_best(open(n, 16u, 1u, lane), lane);
    }

    var below = 0.0;
    var is_candidate = false;
    if lane < n {
        // By halves, since the difference of two finite numbers may be infinite.
        below = 2.0 * max(0.5 * unordered(kept[lane].x) - 0.5 * unordered(kept[0].x), -1e4);
        weights[lane] = exp(below);
    }
    workgroupBarrier();
    if lane < n {
        let held = sums(n, lane);
        let is_within = p.top_p >= 1.0 || held.x < p.top_p * held.y;
        is_candidate = lane == 0u || (is_within && weights[lane] >= p.min_p);
    }
    workgroupBarrier();
    if lane < n {
        weights[lane] = select(0.0, exp(below * p.inverse_temperature), is_candidate);
    }
    if is_candidate {
        atomicAdd(&n_candidates, 1u);
    }
    workgroupBarrier();
    if is_candidate {
        let held = sums(n, lane);
        let drawn = f32(batch.random >> 8u) * 0x1p-24 * held.y;
        if held.x + weights[lane] <= drawn {
            atomicAdd(&n_passed, 1u);
        }
    }
    workgroupBarrier();
    if lane == 0u {
        var token = 0u;
        var best = 0u;
        let candidates = atomicLoad(&n_candidates);
        if candidates > 0u { // where nothing is a number there are none
            token = kept[min(atomicLoad(&n_passed), candidates - 1u)].y;
            best = kept[0].x;
        }
        tokens[0] = token;
        chosen[0] = token;
        chosen[1] = atomicLoad(&largest);
        chosen[2] = batch.position + batch.n_rows;
        chosen[3] = candidates;
        chosen[4] = best;
    }
}
