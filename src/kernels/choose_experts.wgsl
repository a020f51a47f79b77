// choose_experts: dst[row] = the experts of the p.n_chosen largest scores (+ bias), largest first, of equal ones the first
// twin: experts::choose_twin
// shapes: logits [n_rows, n_expert], bias [n_expert], dst [n_rows, n_chosen]: ids as floats
// grid: one workgroup a row (z)
// needs: nothing
// numerics: exact without bias and groups; with them sums that differ by less than 1e-6 may change places
// source: arXiv:1701.06538; groups arXiv:2412.19437, section 2.1.2

struct Params {
    n_expert: u32, // at most 1024
    stride: u32,   // elements from a row of logits to the next
    n_chosen: u32,
    dst_stride: u32,
    is_sigmoid: u32,
    has_bias: u32,
    n_group: u32,  // a divisor of n_expert, 1 for no groups
    n_used: u32,   // groups that experts are chosen from
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;    // [n_rows, stride]
@group(0) @binding(3) var<storage, read> bias: array<f32>;      // [n_expert], read where has_bias
@group(0) @binding(4) var<storage, read_write> dst: array<f32>; // [n_rows, dst_stride]

const WORKGROUP = 256u;
const LEAST = -3.0e38;

var<workgroup> values: array<f32, 1024>;
var<workgroup> worths: array<f32, 512>;

fn score(x: f32, highest: f32, total: f32) -> f32 {
    if p.is_sigmoid == 1u {
        let value = select(1.0 / (1.0 + exp(-max(x, -80.0))), 0.0, x < -80.0);
        return select(value, x, (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u); // max makes a number of it
    }
    return exp(x - highest) / total;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.z;
    let start = row * p.stride;
    let is_ordered = p.has_bias == 0u && p.n_group == 1u; // logits have the order of their scores
    var highest = LEAST;
    var total = 1.0;
    if !is_ordered && p.is_sigmoid == 0u {
        for (var i = 0u; i < p.n_expert; i++) {
            highest = max(highest, logits[start + i]);
        }
        total = 0.0;
        for (var i = 0u; i < p.n_expert; i++) {
            total += exp(logits[start + i] - highest);
        }
    }
    for (var i = lane; i < p.n_expert; i += WORKGROUP) {
        var value = logits[start + i];
        if !is_ordered {
            value = score(value, highest, total);
        }
        if p.has_bias == 1u {
            value += bias[i];
        }
        values[i] = value;
    }
    workgroupBarrier();

    let size = p.n_expert / p.n_group;
    if p.n_group > 1u {
        for (var group = lane; group < p.n_group; group += WORKGROUP) {
            var best = LEAST;
            var second = LEAST;
            for (var i = group * size; i < (group + 1u) * size; i++) {
                let value = values[i];
                second = max(second, min(best, value));
                best = max(best, value);
            }
            worths[group] = best + second;
        }
    }
    workgroupBarrier();
    if p.n_group > 1u {
        for (var i = lane; i < p.n_expert; i += WORKGROUP) {
            let group = i / size;
            var rank = 0u;
            for (var other = 0u; other < p.n_group; other++) {
                let is_before = worths[other] == worths[group] && other < group;
                rank += u32(worths[other] > worths[group] || is_before);
            }
            if rank >= p.n_used {
                values[i] = LEAST;
            }
        }
    }
    workgroupBarrier();

    for (var i = lane; i < p.n_expert; i += WORKGROUP) {
        let value = values[i];
        var rank = 0u;
        for (var other = 0u; other < p.n_expert; other++) {
            let is_before = values[other] == value && other < i;
            rank += u32(values[other] > value || is_before);
        }
        if rank < p.n_chosen {
            dst[row * p.dst_stride + rank] = f32(i);
        }
    }
}
