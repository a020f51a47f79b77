// logit_maxima: the largest logits of every 16, 256 and 1024 tokens, as `ordered` integers, and the largest
//   magnitude, which tells what is wrong (sentinel.wgsl)
// twin: logit_maxima::twin
// shapes: logits [n_outputs, n_logits], of which the last row counts; maxima as `logit_maxima::n_words` says
// grid: one invocation for 16 logits, one workgroup for 1024 (x, y)
// needs: nothing
// numerics: exact, by integers: compilers may assume that floats are finite
// source: the definition

struct Params {
    n_tokens: u32, // the logits behind them count for the magnitude alone
    stride: u32,   // elements from a row to the next
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<vec4<u32>>;    // [n_outputs, stride] f32, as bits
@group(0) @binding(3) var<storage, read_write> maxima: array<u32>;    // [n_groups * (64 + 4 + 1 + 1 + 1)]

const LANES: u32 = 64u;
const BLOCK: u32 = 16u;
const MAGNITUDE: u32 = 0x7fffffffu; // the bits of a float but its sign

var<workgroup> best: array<vec2<u32>, LANES>; // maximum, its token
var<workgroup> largest: array<u32, LANES>;

// The maximum of four tokens, and the first that has it.
fn best_of(bits: vec4<u32>, token: u32) -> vec2<u32> {
    let tokens = vec4<u32>(token) + vec4<u32>(0u, 1u, 2u, 3u);
    let keys = select(vec4<u32>(0u), ordered(bits), tokens < vec4<u32>(p.n_tokens));
    let key = max(max(keys.x, keys.y), max(keys.z, keys.w));
    let in_second = select(tokens.w, tokens.z, keys.z == key);
    let behind_first = select(in_second, tokens.y, keys.y == key);
    return vec2<u32>(key, select(behind_first, tokens.x, keys.x == key));
}

// The better of two, of which `a` has the lower tokens.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, b.x > a.x);
}

// The larger magnitude, of four lanes each.
fn larger(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    return max(a & vec4<u32>(MAGNITUDE), b & vec4<u32>(MAGNITUDE));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = workgroup.y * n_workgroups.x + workgroup.x;
    let n_groups = (p.stride + LANES * BLOCK - 1u) / (LANES * BLOCK);
    if group >= n_groups {
        return;
    }
    let block = group * LANES + lane;
    let token = block * BLOCK;
    var found = vec2<u32>(0u, token);
    var seen = 0u;
    if token < p.stride { // which is a multiple of 32
        let at = ((batch.n_outputs - 1u) * p.stride + token) / 4u;
        let a = logits[at];
        let b = logits[at + 1u];
        let c = logits[at + 2u];
        let d = logits[at + 3u];
        found = better(
            better(best_of(a, token), best_of(b, token + 4u)),
            better(best_of(c, token + 8u), best_of(d, token + 12u)),
        );
        let each = larger(larger(a, b), larger(c, d)); // the padding is zero
        seen = max(max(each.x, each.y), max(each.z, each.w));
    }
    maxima[block] = found.x;
    best[lane] = found;
    largest[lane] = seen;
    for (var gap = 1u; gap < LANES; gap *= 2u) {
        workgroupBarrier();
        if lane % (2u * gap) == 0u {
            best[lane] = better(best[lane], best[lane + gap]);
            largest[lane] = max(largest[lane], largest[lane + gap]);
        }
        if gap == BLOCK / 2u && lane % BLOCK == 0u {
            maxima[n_groups * 64u + block / BLOCK] = best[lane].x;
        }
    }
    if lane == 0u {
        maxima[n_groups * 68u + group] = best[0].x;
        maxima[n_groups * 69u + group] = best[0].y;
        maxima[n_groups * 70u + group] = largest[0];
    }
}
