// expert_tiles: order = the slots of the batch, expert by expert; tiles = runs of at most p.tile_rows of them that have one expert
// twin: expert_tiles::twin, but for the order of the slots of an expert
// shapes: ids [n_rows, n_chosen], tiles as common/expert_tiles.wgsl says
// grid: one workgroup
// needs: at most 1024 experts
// numerics: exact
// source: a counting sort

struct Params {
    n_expert: u32,
    n_chosen: u32,      // slots of a row
    chosen_stride: u32, // elements from a row of ids to the next
    tile_rows: u32,
    @size(16) order_start: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> ids: array<f32>;         // [n_rows, chosen_stride]
@group(0) @binding(3) var<storage, read_write> tiles: array<u32>; // [order_start + n_rows * n_chosen]

const WORKGROUP = 256u;
const MOST_EXPERTS = 1024u;
const EACH = MOST_EXPERTS / WORKGROUP; // experts of an invocation

// Slots of each expert; then the place of its next one.
var<workgroup> counts: array<atomic<u32>, MOST_EXPERTS>;
// Slots and tiles of the experts of an invocation and of those before it.
var<workgroup> sums: array<vec2<u32>, WORKGROUP>;

fn expert_of(slot: u32) -> u32 {
    let id = u32(ids[slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen]);
    return min(id, p.n_expert - 1u);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
    let n_slots = batch.n_rows * p.n_chosen;
    for (var i = 0u; i < EACH; i++) {
        atomicStore(&counts[lane * EACH + i], 0u);
    }
    workgroupBarrier();
    for (var slot = lane; slot < n_slots; slot += WORKGROUP) {
        atomicAdd(&counts[expert_of(slot)], 1u);
    }
    workgroupBarrier();

    var own = vec2(0u);
    for (var i = 0u; i < EACH; i++) {
        let count = atomicLoad(&counts[lane * EACH + i]);
        own += vec2(count, (count + p.tile_rows - 1u) / p.tile_rows);
    }
    sums[lane] = own;
    workgroupBarrier();
    for (var distance = 1u; distance < WORKGROUP; distance *= 2u) {
        let before = sums[max(lane, distance) - distance];
        workgroupBarrier();
        if lane >= distance {
            sums[lane] += before;
        }
        workgroupBarrier();
    }

    var next = sums[lane] - own;
    for (var i = 0u; i < EACH; i++) {
        let expert = lane * EACH + i;
        let end = next.x + atomicLoad(&counts[expert]);
        atomicStore(&counts[expert], next.x);
        for (; next.x < end; next += vec2(p.tile_rows, 1u)) {
            let at = 4u + 4u * next.y;
            tiles[at] = expert;
            tiles[at + 1u] = next.x;
            tiles[at + 2u] = min(next.x + p.tile_rows, end);
        }
        next.x = end;
    }
    if lane == WORKGROUP - 1u {
        tiles[0] = next.y;
    }
    workgroupBarrier();
    for (var slot = lane; slot < n_slots; slot += WORKGROUP) {
        tiles[p.order_start + atomicAdd(&counts[expert_of(slot)], 1u)] = slot;
    }
}
