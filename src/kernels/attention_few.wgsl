// attention_few: dst = softmax(scale * q . keys) . values over the visible keys, and a sink without a value, for each head, of few rows; where has_int8
//   also int8 = dst as int8; with several splits of the keys instead partials, from which attention_merge makes these
// twin: attention::twin, quantize::twin
// shapes: q, dst [n_rows, n_head, head_dim], keys, values [capacity, n_head_kv, head_dim];
//   head_dim is a multiple of 8, at most 512, and of 32 where has_int8
// grid: one workgroup for up to HEADS query heads that share a key-value head (x), splits (y), rows (z)
// needs: nothing
// numerics: within 2e-6 * max |values| (measured 1.2e-7) where scores differ by less than 30; |scores| below 1e30; int8 as quantize
// source: arXiv:1706.03762, equation 1; grouped queries arXiv:2305.13245; online softmax arXiv:1805.02867; sinks arXiv:2309.17453

struct Params {
    n_head: u32,
    n_head_kv: u32,
    stride: u32,   // elements from a row of q and dst to the next
    n_splits: u32, // of the visible keys
    scale: f32,
    window: u32,   // keys that a query sees, its own included
    has_int8: u32,
    soft_cap: f32, // on scores; 0 for none
    @size(16) has_sinks: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;              // [n_rows, stride]
@group(0) @binding(3) var<storage, read> keys: array<KvEight>;             // [capacity, n_head_kv, head_dim]
@group(0) @binding(4) var<storage, read> values: array<KvEight>;           // [capacity, n_head_kv, head_dim]
@group(0) @binding(5) var<storage, read_write> dst: array<vec4<f32>>;      // [n_rows, stride], written by one split
@group(0) @binding(6) var<storage, read_write> int8: array<u32>;           // [n_rows] rows of common/quantize.wgsl, likewise
@group(0) @binding(7) var<storage, read_write> partials: array<vec4<f32>>; // [n_rows, n_head, n_splits, 4 + head_dim], by several
@group(0) @binding(8) var<storage, read> sinks: array<f32>;                // [n_head], read where has_sinks

const BLOCKS = (GROUP_SIZE + HEADS - 1u) / HEADS; // of query heads, for each key-value head
const STEPS = LOADS / 4u; // of 4 loads
const TILE = LOADS * SLICES;

var<workgroup> scores: array<f32, HEADS * TILE>; // for each head and step the four of each slice

fn dot8(a: mat2x4<f32>, b: mat2x4<f32>) -> f32 {
    return dot(a[0], b[0]) + dot(a[1], b[1]);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(lane);
    let row = workgroup.z;
    let head_kv = workgroup.x / BLOCKS;
    let block_start = workgroup.x % BLOCKS * HEADS;
    let first_head = head_kv * GROUP_SIZE + block_start;
    let n_heads = min(HEADS, GROUP_SIZE - block_start);

    // Splits take turns at the tiles.
    let end = batch.position + row + 1u;
    let start = end - min(p.window, end) + workgroup.y * TILE;
    let stride = p.n_splits * TILE;

    // Loads are far ahead of their use: of a tile's keys and values behind the last use of those of the
    // tile before. Keys behind the end repeat the last one; they have a score, and no weight.
    let key_stride = p.n_head_kv * UNITS;
    let at_head = head_kv * UNITS + at.unit;
    var tile_keys: array<KvEight, LOADS>;
    var tile_values: array<KvEight, LOADS>;
    for (var i = 0u; i < LOADS; i++) {
        tile_keys[i] = keys[min(start + i * SLICES + at.slice, end - 1u) * key_stride + at_head];
    }
    var query: array<mat2x4<f32>, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        let quad = row * (p.stride / 4u) + (first_head + min(h, n_heads - 1u)) * QUADS + at.unit * 2u;
        query[h] = mat2x4(q[quad], q[quad + 1u]);
    }
    for (var i = 0u; i < LOADS; i++) {
        tile_values[i] = values[min(start + i * SLICES + at.slice, end - 1u) * key_stride + at_head];
    }

    var sums: array<Sums, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        query[h] *= p.scale;
        sums[h] = Sums(mat2x4(vec4(0.0), vec4(0.0)), 0.0, LOWEST);
    }
    for (var tile = start; tile < end; tile += stride) {
        let next = tile + stride;
        for (var step = 0u; step < STEPS; step++) {
            let key0 = kv_decode8(tile_keys[4u * step]);
            let key1 = kv_decode8(tile_keys[4u * step + 1u]);
            let key2 = kv_decode8(tile_keys[4u * step + 2u]);
            let key3 = kv_decode8(tile_keys[4u * step + 3u]);
            for (var h = 0u; h < HEADS; h++) {
                let parts = vec4(dot8(query[h], key0), dot8(query[h], key1), dot8(query[h], key2), dot8(query[h], key3));
                if at.stores {
                    scratch[((h * STEPS + step) * SLICES + at.slice) * PART_STRIDE + at.unit] = parts;
                }
            }
        }
        if next < end {
            for (var i = 0u; i < LOADS; i++) {
                tile_keys[i] = keys[min(next + i * SLICES + at.slice, end - 1u) * key_stride + at_head];
            }
        }
        workgroupBarrier();

        for (var i = lane; i < HEADS * TILE; i += WORKGROUP) {
            var score = 0.0;
            for (var unit = 0u; unit < UNITS; unit++) {
                score += scratch[i / 4u * PART_STRIDE + unit][i % 4u];
            }
            if p.soft_cap > 0.0 {
                score = soft_cap(score, p.soft_cap);
            }
            scores[i] = score;
        }
        workgroupBarrier();

        for (var h = 0u; h < HEADS; h++) {
            var highest = sums[h].highest;
            for (var i = 0u; i < LOADS; i++) {
                highest = max(highest, scores[score_index(h, i, at.slice)]);
            }
            let decay = exp(sums[h].highest - highest);
            sums[h] = Sums(sums[h].values * decay, sums[h].weight * decay, highest);
        }
        for (var i = 0u; i < LOADS; i++) {
            let value = kv_decode8(tile_values[i]);
            let has_weight = tile + i * SLICES + at.slice < end;
            for (var h = 0u; h < HEADS; h++) {
                let score = scores[score_index(h, i, at.slice)];
                let weight = select(0.0, exp(score - sums[h].highest), has_weight);
                sums[h].weight += weight;
                sums[h].values += weight * value;
            }
        }
        if next < end {
            for (var i = 0u; i < LOADS; i++) {
                tile_values[i] = values[min(next + i * SLICES + at.slice, end - 1u) * key_stride + at_head];
            }
        }
    }

    store_slices(sums, at);
    if p.n_splits == 1u {
        store_head(row, first_head, lane);
        return;
    }
    for (var i = lane; i < n_heads * QUADS; i += WORKGROUP) {
        let h = i / QUADS;
        let quad = i % QUADS;
        let merged = merge_slices(h, quad);
        let partial = ((row * p.n_head + first_head + h) * p.n_splits + workgroup.y) * (QUADS + 1u);
        partials[partial + 1u + quad] = merged.values;
        if quad == 0u {
            partials[partial] = vec4(merged.highest, merged.weight, 0.0, 0.0);
        }
    }
}

fn score_index(head: u32, load: u32, slice: u32) -> u32 {
    return ((head * STEPS + load / 4u) * SLICES + slice) * 4u + load % 4u;
}
