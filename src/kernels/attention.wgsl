// attention: dst = softmax(scale * q . keys) . values over the visible keys, for each head; scores capped where
//   soft_cap, and lowered by distance where ALIBI; where SINKS each head has one more score, without a value
// twin: attention::twin
//   Where VALUES_END_KEYS a key is that of keys and, behind it, its value.
// shapes: q [n_rows, n_head, head_dim (+ value_dim where VALUES_END_KEYS)], dst [n_rows, n_head, value_dim],
//   keys [capacity, n_head_kv, head_dim], values [capacity, n_head_kv, value_dim];
//   head_dim and value_dim are multiples of 4, at most 512
// grid: one workgroup a head (x, y), rows (z)
// needs: nothing; subgroups where there are any
// numerics: within 2e-6 * max |values| (measured 1.8e-7) where scores differ by less than 30; |scores| below 1e30
// source: arXiv:1706.03762, equation 1; grouped queries arXiv:2305.13245; online softmax arXiv:1805.02867;
//   soft caps arXiv:2408.00118, section 2; ALiBi arXiv:2108.12409; sinks arXiv:2309.17453

struct Params {
    n_head: u32,
    n_head_kv: u32,
    head_dim: u32,
    stride: u32, // elements from a row of q to the next
    scale: f32,
    window: u32, // keys that a query sees, its own included
    soft_cap: f32, // on scores; 0 for none
    of_heads: u32, // ALIBI, SINKS and VALUES_END_KEYS
    value_dim: u32,
    dst_stride: u32,
    @size(8) chunk: u32, // a query sees no key before the last multiple of it; 0 for none
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> keys: array<KvWord>;         // [capacity, n_head_kv, head_dim]
@group(0) @binding(4) var<storage, read> values: array<KvWord>;       // [capacity, n_head_kv, value_dim]
@group(0) @binding(5) var<storage, read> sinks: array<f32>;           // [n_head], read where SINKS
@group(0) @binding(6) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, dst_stride]

const ALIBI: u32 = 1u; // distance lowers scores
const SINKS: u32 = 2u;
const VALUES_END_KEYS: u32 = 4u;

const MAX_QUADS: u32 = 256u; // of a query; a value has at most two for each invocation
const LOWEST: f32 = -1e30;   // below every score

const WORKGROUP = 64u;

var<workgroup> query: array<vec4<f32>, MAX_QUADS>;
var<workgroup> weights: array<f32, WORKGROUP>;      // of the keys of a tile
var<workgroup> slices: array<vec4<f32>, WORKGROUP>; // sums over a slice of the keys

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = workgroup.y * n_workgroups.x + workgroup.x;
    if head >= p.n_head {
        return;
    }
    let row = workgroup.z;
    let key_quads = p.head_dim / 4u;
    let n_quads = p.value_dim / 4u;
    let ends = (p.of_heads & VALUES_END_KEYS) != 0u;
    let query_quads = key_quads + select(0u, n_quads, ends);
    let query_start = row * (p.stride / 4u) + head * query_quads;
    for (var quad = lane; quad < query_quads; quad += WORKGROUP) {
        query[quad] = q[query_start + quad] * p.scale;
    }

    let head_kv = head / (p.n_head / p.n_head_kv);
    let end = batch.position + row + 1u;
    var first = end - min(p.window, end);
    if p.chunk != 0u {
        first = max(first, (end - 1u) / p.chunk * p.chunk);
    }

    // An invocation scores one key of a tile, then sums quad `quad` of the values (and `far_quad` in
    // heads that have it) over its slice of the tile's keys. What slices beyond the last sum is unused.
    let n_slices = max(WORKGROUP / n_quads, 1u);
    let slice = lane / n_quads;
    let quad = lane % n_quads;
    let far_quad = quad + WORKGROUP;
    let has_far = far_quad < n_quads;
    var near = vec4(0.0);
    var far = vec4(0.0);
    var weight_sum = 0.0;
    var highest = LOWEST;
    for (var tile = first; tile < end; tile += WORKGROUP) {
        workgroupBarrier(); // the query is there, the last tile's weights are used
        let n_keys = min(end - tile, WORKGROUP);
        var score = LOWEST;
        if lane < n_keys {
            let at = (tile + lane) * p.n_head_kv + head_kv;
            var products = vec4(0.0);
            for (var i = 0u; i < key_quads; i++) {
                products += query[i] * kv_decode(keys[at * key_quads + i]);
            }
            if ends {
                for (var i = 0u; i < n_quads; i++) {
                    products += query[key_quads + i] * kv_decode(values[at * n_quads + i]);
                }
            }
            score = dot(products, vec4(1.0));
            if p.soft_cap > 0.0 {
                score = soft_cap(score, p.soft_cap);
            }
            if (p.of_heads & ALIBI) != 0u {
                score -= alibi_slope(head) * f32(end - 1u - tile - lane);
            }
        }
        let new_highest = max(highest, workgroup_max(score, lane));
        let weight = select(0.0, exp(score - new_highest), lane < n_keys);
        let decay = exp(highest - new_highest);
        highest = new_highest;
        weight_sum = weight_sum * decay + weight;
        weights[lane] = weight;
        workgroupBarrier();

        near *= decay;
        far *= decay;
        for (var i = slice; i < n_keys; i += n_slices) {
            let value = ((tile + i) * p.n_head_kv + head_kv) * n_quads;
            near += weights[i] * kv_decode(values[value + quad]);
            if has_far {
                far += weights[i] * kv_decode(values[value + far_quad]);
            }
        }
    }

    slices[lane] = near;
    var total = workgroup_sum(weight_sum, lane); // its barriers publish the slices too
    var shrink = 1.0;
    if (p.of_heads & SINKS) != 0u {
        let most = max(highest, sinks[head]);
        shrink = exp(highest - most);
        total = total * shrink + exp(sinks[head] - most);
    }
    let dst_start = row * (p.dst_stride / 4u) + head * n_quads;
    if lane < n_quads {
        var sum = slices[lane];
        for (var i = 1u; i < n_slices; i++) {
            sum += slices[i * n_quads + lane];
        }
        dst[dst_start + lane] = sum * shrink / total;
    }
    if has_far {
        dst[dst_start + far_quad] = far * shrink / total;
    }
}

// By the powers of two below the number of heads; heads behind them lie between.
fn alibi_slope(head: u32) -> f32 {
    let n = 1u << firstLeadingBit(p.n_head);
    let exponent = select(-4.0 * f32(2u * (head - n) + 1u), -8.0 * f32(head + 1u), head < n);
    return exp2(exponent / f32(n));
}
