// Sums of values that are weighted by the exponentials of scores, in slices: an invocation has 8 elements
// of a head, `unit`, and every SLICES-th of the keys, `slice`, or of the splits of the keys; invocations
// that this leaves over repeat others and store nothing. HEAD_DIM, HEADS and so on are those of
// attention_few::Heads, the bindings are `dst: array<vec4<f32>>`, `int8` and `sinks`.
const UNITS = HEAD_DIM / 8u;
const QUADS = HEAD_DIM / 4u;
const SLICES = WORKGROUP / UNITS;
const LOWEST: f32 = -1e30; // below every score

struct Place {
    slice: u32,
    unit: u32,
    stores: bool,
}

fn place(lane: u32) -> Place {
    return Place(min(lane / UNITS, SLICES - 1u), lane % UNITS, lane < SLICES * UNITS);
}

// The weights are relative to the highest score, exp(score - highest).
struct Sums {
    values: mat2x4<f32>,
    weight: f32,
    highest: f32,
}

// The same of all slices, 4 elements of a head.
struct Quad {
    values: vec4<f32>,
    weight: f32,
    highest: f32,
}

const PART_STRIDE = UNITS | 1u; // odd, so that neighbours lie in different banks
var<workgroup> scratch: array<vec4<f32>, HEADS * SLICES * max(QUADS, LOADS / 4u * PART_STRIDE)>;
var<workgroup> slice_weights: array<vec2<f32>, HEADS * SLICES>; // highest score, sum of the weights

// Publishes the slices of all heads. Called by all in uniform control flow.
fn store_slices(sums: array<Sums, HEADS>, at: Place) {
    workgroupBarrier(); // `scratch` is free
    if at.stores {
        for (var h = 0u; h < HEADS; h++) {
            let slice = h * SLICES + at.slice;
            scratch[slice * QUADS + at.unit * 2u] = sums[h].values[0];
            scratch[slice * QUADS + at.unit * 2u + 1u] = sums[h].values[1];
            if at.unit == 0u {
                slice_weights[slice] = vec2(sums[h].highest, sums[h].weight);
            }
        }
    }
    workgroupBarrier();
}

fn merge_slices(h: u32, quad: u32) -> Quad {
    var merged = Quad(vec4(0.0), 0.0, LOWEST);
    for (var i = 0u; i < SLICES; i++) {
        merged.highest = max(merged.highest, slice_weights[h * SLICES + i].x);
    }
    for (var i = 0u; i < SLICES; i++) {
        let of_slice = slice_weights[h * SLICES + i];
        let factor = exp(of_slice.x - merged.highest);
        merged.weight += factor * of_slice.y;
        merged.values += factor * scratch[(h * SLICES + i) * QUADS + quad];
    }
    return merged;
}

// Merges the slices of a single head, and the sink, and stores it. Called by all in uniform control flow.
fn store_head(row: u32, head: u32, lane: u32) {
    let stores = lane < QUADS;
    let quad = head * QUADS + lane;
    var value = vec4(0.0);
    if stores {
        let merged = merge_slices(0u, lane);
        var total = merged.weight;
        var shrink = 1.0;
        if p.has_sinks != 0u {
            let most = max(merged.highest, sinks[head]);
            shrink = exp(merged.highest - most);
            total = total * shrink + exp(sinks[head] - most);
        }
        value = merged.values * shrink / total;
        dst[row * (p.stride / 4u) + quad] = value;
    }
    if p.has_int8 != 0u {
        store_int8(value, row, p.stride, quad, stores, lane);
    }
}
