// sentinel: for each row, whether it has values that cannot be right; a slot holds the first such positions
// twin: sentinel::twin
// shapes: src [n_rows, stride], slots [n_slots] of 5 words as `sentinel::Slot` says, cleared beforehand
// grid: one workgroup a row (z)
// needs: nothing
// numerics: exact, by integers: compilers may assume that floats are finite
// source: the definition. The bits of a float without its sign are ordered as magnitudes are, infinity behind
//   the numbers and what is not a number behind infinity: the largest of a row tells all there is to say.

struct Params {
    slot: u32,
    stride: u32, // elements from a row to the next; the padding is zero
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<u32>>;            // [n_rows, stride] f32, as bits
@group(0) @binding(3) var<storage, read_write> slots: array<atomic<u32>>; // [n_slots, 5]

const LANES: u32 = 256u;
const MAGNITUDE: u32 = 0x7fffffffu;
const INFINITY: u32 = 0x7f800000u;
const SATURATED: u32 = 0x5b800000u; // 2^56
const NOTHING: u32 = 4u;

var<workgroup> largest: atomic<u32>;

// The place of `sentinel::Wrong`, or `NOTHING`.
fn wrong_in(largest: u32, position: u32) -> u32 {
    if largest > INFINITY {
        return 0u;
    }
    if largest == INFINITY {
        return 1u;
    }
    if largest >= SATURATED {
        return 2u;
    }
    return select(NOTHING, 3u, largest == 0u && position > 0u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if lane == 0u {
        atomicStore(&largest, 0u);
    }
    workgroupBarrier();
    let quads = p.stride / 4u;
    var found = vec4<u32>(0u);
    for (var quad = lane; quad < quads; quad += LANES) {
        found = max(found, src[workgroup.z * quads + quad] & vec4<u32>(MAGNITUDE));
    }
    atomicMax(&largest, max(max(found.x, found.y), max(found.z, found.w)));
    workgroupBarrier();
    if lane == 0u {
        let slot = p.slot * 5u;
        let position = batch.position + workgroup.z;
        let wrong = wrong_in(atomicLoad(&largest), position);
        // Sound rows leave nothing but their count: that none was counted is no praise.
        atomicAdd(&slots[slot], 1u);
        if wrong < NOTHING {
            atomicMax(&slots[slot + 1u + wrong], ~position);
        }
    }
}
