// stream: reads all of src once
// shapes: src [n_blocks, 8, WORKGROUP] of 16 bytes
// grid: one workgroup a block (x, y)

struct Params {
    n_blocks: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<u32>>;       // [n_blocks, 8, WORKGROUP]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<u32>>; // [1]

const WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = workgroup.y * n_workgroups.x + workgroup.x;
    if block >= p.n_blocks {
        return;
    }
    let at = block * 8u * WORKGROUP + lane;
    let a = src[at] ^ src[at + WORKGROUP];
    let b = src[at + 2u * WORKGROUP] ^ src[at + 3u * WORKGROUP];
    let c = src[at + 4u * WORKGROUP] ^ src[at + 5u * WORKGROUP];
    let d = src[at + 6u * WORKGROUP] ^ src[at + 7u * WORKGROUP];
    let all = a ^ b ^ c ^ d;
    // src is zero, which no compiler knows: the loads stay and nothing is stored.
    if any(all != vec4<u32>()) {
        dst[0] = all;
    }
}
