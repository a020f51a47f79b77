// Activations as they are, in products with weights of any type.
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>; // [n_rows, src_stride]

// Pairs of rows of weights that a team multiplies at a time.
const TEAM_PAIRS = 2u;

fn dot8(weight: Eight, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(weight.low, low) + dot(weight.high, high);
}

fn prepare_src(row: u32, lane: u32, writes: bool) {}

