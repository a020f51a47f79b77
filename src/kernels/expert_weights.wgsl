// expert_weights: dst[row, s] = score(logits[row, chosen[row, s]]) (/ their sum) * p.scale (* factors[chosen[row, s]])
// twin: experts::weights_twin
// shapes: logits [n_rows, n_expert], chosen, dst [n_rows, n_chosen], factors [n_expert]
// grid: one workgroup a row (z)
// needs: nothing; subgroups where there are any
// numerics: within 1e-5 of the largest weight of the row
// source: arXiv:1701.06538; sigmoid arXiv:2412.19437, section 2.1.2; the least sum llama.cpp, src/llama-graph.cpp

struct Params {
    n_expert: u32,
    stride: u32,        // elements from a row of logits to the next
    n_chosen: u32,
    chosen_stride: u32, // and of chosen and dst
    is_sigmoid: u32,
    is_normalised: u32,
    scale: f32,
    least_sum: f32,     // the least that the sum counts as
    @size(16) has_factors: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;    // [n_rows, stride]
@group(0) @binding(3) var<storage, read> chosen: array<f32>;    // [n_rows, chosen_stride]
@group(0) @binding(4) var<storage, read> factors: array<f32>;   // [n_expert], read where has_factors
@group(0) @binding(5) var<storage, read_write> dst: array<f32>; // [n_rows, chosen_stride]

const WORKGROUP = 64u;

fn expert_of(row: u32, slot: u32) -> u32 {
    return min(u32(chosen[row * p.chosen_stride + slot]), p.n_expert - 1u);
}

fn score(row: u32, slot: u32, highest: f32, total: f32) -> f32 {
    let expert = expert_of(row, slot);
    let x = logits[row * p.stride + expert];
    if p.is_sigmoid == 1u {
        let value = select(1.0 / (1.0 + exp(-max(x, -80.0))), 0.0, x < -80.0);
        return select(value, x, (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u); // max makes a number of it
    }
    return exp(x - highest) / total;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.z;
    var highest = -3.0e38;
    var total = 1.0;
    if p.is_sigmoid == 0u {
        for (var i = lane; i < p.n_expert; i += WORKGROUP) {
            highest = max(highest, logits[row * p.stride + i]);
        }
        highest = workgroup_max(highest, lane);
        var sum = 0.0;
        for (var i = lane; i < p.n_expert; i += WORKGROUP) {
            sum += exp(logits[row * p.stride + i] - highest);
        }
        total = workgroup_sum(sum, lane);
    }
    var divisor = 1.0;
    if p.is_normalised == 1u {
        var sum = 0.0;
        for (var slot = lane; slot < p.n_chosen; slot += WORKGROUP) {
            sum += score(row, slot, highest, total);
        }
        divisor = workgroup_sum(sum, lane);
        divisor = max(divisor, p.least_sum);
    }
    for (var slot = lane; slot < p.n_chosen; slot += WORKGROUP) {
        var weight = score(row, slot, highest, total) / divisor * p.scale;
        if p.has_factors == 1u {
            weight *= factors[expert_of(row, slot)];
        }
        dst[row * p.chosen_stride + slot] = weight;
    }
}
