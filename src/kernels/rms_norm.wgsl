// rms_norm: dst = src / sqrt(mean(src^2) + eps) * weight, over each group of a row, without a weight where is_plain; also int8 = dst as int8, or
//           halves, scales = dst as rows of 16-bit floats, as p.rounds says
// twin: rms_norm::twin, quantize::twin, f16_rows::twin
// shapes: src, dst [n_rows, n_groups, group], weight [group]; group is a multiple of 4 where n_groups > 1
// grid: one workgroup a group (x, y), rows (z)
// needs: nothing; subgroups where there are any
// numerics: within 1e-6 of each result (measured 2.5e-7); |src| up to 1e15, beyond 1e17 the squares overflow; int8 as quantize,
//           halves as f16_rows
// source: arXiv:1910.07467, equation 4

struct Params {
    group: u32,
    n_groups: u32, // 1 where anything is rounded
    stride: u32,   // elements from a row to the next
    eps: f32,
    rounds: u32,   // 0, INT8 or F16
    @size(12) is_plain: u32,
}

const INT8 = 1u;
const F16 = 2u;

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;       // [n_rows, stride]
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>;    // [group], padded with zeros; not counted where is_plain
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]
@group(0) @binding(5) var<storage, read_write> int8: array<u32>;      // [n_rows] rows of common/quantize.wgsl, written where INT8
@group(0) @binding(6) var<storage, read_write> halves: array<vec2<u32>>; // [n_rows, stride] 16-bit floats, written where F16
@group(0) @binding(7) var<storage, read_write> scales: array<f32>;       // [n_rows], written where F16

const WORKGROUP = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let group = workgroup.y * n_workgroups.x + workgroup.x;
    if group >= p.n_groups {
        return;
    }
    let start = (row * p.stride + group * p.group) / 4u;
    let n_quads = (p.group + 3u) / 4u; // the padding adds zeros

    // Four quads of an invocation stay with it, loaded at once: most groups have no more.
    let last = n_quads - 1u;
    let places = vec4(lane) + vec4(0u, 1u, 2u, 3u) * WORKGROUP;
    let value0 = src[start + min(places.x, last)];
    let value1 = src[start + min(places.y, last)];
    let value2 = src[start + min(places.z, last)];
    let value3 = src[start + min(places.w, last)];
    let weight0 = weight_at(min(places.x, last));
    let weight1 = weight_at(min(places.y, last));
    let weight2 = weight_at(min(places.z, last));
    let weight3 = weight_at(min(places.w, last));
    let squares4 = vec4(dot(value0, value0), dot(value1, value1), dot(value2, value2), dot(value3, value3));
    var squares = dot(select(vec4(0.0), squares4, places < vec4(n_quads)), vec4(1.0));
    for (var quad = lane + 4u * WORKGROUP; quad < n_quads; quad += WORKGROUP) {
        let value = src[start + quad];
        squares += dot(value, value);
    }
    let mean = workgroup_sum(squares, lane) / f32(p.group);
    let scale = 1.0 / sqrt(mean + p.eps);

    let result0 = value0 * scale * weight0;
    let result1 = value1 * scale * weight1;
    let result2 = value2 * scale * weight2;
    let result3 = value3 * scale * weight3;
    var exponent = 0;
    if p.rounds == F16 {
        let sizes = vec4(largest_of(result0), largest_of(result1), largest_of(result2), largest_of(result3));
        var largest = largest_of(select(vec4(0.0), sizes, places < vec4(n_quads)));
        for (var quad = lane + 4u * WORKGROUP; quad < n_quads; quad += WORKGROUP) {
            largest = max(largest, largest_of(src[start + quad] * scale * weight_at(quad)));
        }
        exponent = row_exponent(workgroup_max(largest, lane));
        if lane == 0u {
            scales[row] = power_of_two(exponent);
        }
    }

    let group_place = Group(row, start, n_quads, exponent);
    put(result0, result1, result2, result3, group_place, 0u, lane);
    for (var first = 4u * WORKGROUP; first < n_quads; first += 4u * WORKGROUP) {
        let quads = min(places + vec4(first), vec4(last));
        put(
            src[start + quads.x] * scale * weight_at(quads.x),
            src[start + quads.y] * scale * weight_at(quads.y),
            src[start + quads.z] * scale * weight_at(quads.z),
            src[start + quads.w] * scale * weight_at(quads.w),
            group_place, first, lane,
        );
    }
}

fn weight_at(quad: u32) -> vec4<f32> {
    return select(weight[quad], vec4(1.0), p.is_plain == 1u);
}

struct Group {
    row: u32,
    start: u32, // of the group, in quads
    n_quads: u32,
    exponent: i32,
}

// Writes quads first + lane, first + lane + WORKGROUP and so on, as far as the group goes; rounded, as far as the row
// goes. Called in uniform control flow.
fn put(result0: vec4<f32>, result1: vec4<f32>, result2: vec4<f32>, result3: vec4<f32>, group: Group, first: u32, lane: u32) {
    let quad = first + lane;
    let value0 = put_quad(result0, group, quad);
    let value1 = put_quad(result1, group, quad + WORKGROUP);
    let value2 = put_quad(result2, group, quad + 2u * WORKGROUP);
    let value3 = put_quad(result3, group, quad + 3u * WORKGROUP);
    if p.rounds == INT8 {
        put_int8(value0, value1, value2, value3, group.row, quad, lane);
    }
}

// Zeros behind the group.
fn put_quad(result: vec4<f32>, group: Group, quad: u32) -> vec4<f32> {
    let is_in_group = quad < group.n_quads;
    let value = select(vec4(0.0), result, is_in_group);
    if is_in_group {
        dst[group.start + quad] = value;
    }
    if p.rounds == F16 && quad < p.stride / 4u {
        halves[group.start + quad] = pack_halves(value, group.exponent);
    }
    return value;
}

// Of each invocation's four quads, which lie WORKGROUP apart: the largest magnitudes and the sums of quants.
var<workgroup> sizes: array<vec4<f32>, WORKGROUP>;
var<workgroup> sums: array<vec4<i32>, WORKGROUP>;

// Eight neighbouring invocations share a unit.
fn put_int8(value0: vec4<f32>, value1: vec4<f32>, value2: vec4<f32>, value3: vec4<f32>, row: u32, quad: u32, lane: u32) {
    workgroupBarrier(); // the sums of the last call are used
    sizes[lane] = vec4(largest_of(value0), largest_of(value1), largest_of(value2), largest_of(value3));
    workgroupBarrier();
    let unit_lane = lane & ~7u;
    var max_sizes = vec4(0.0);
    for (var i = 0u; i < 8u; i++) {
        max_sizes = larger(max_sizes, sizes[unit_lane + i]);
    }
    let inverses = vec4(inverse_scale(max_sizes.x), inverse_scale(max_sizes.y), inverse_scale(max_sizes.z), inverse_scale(max_sizes.w));
    let quants0 = quantize4(value0, inverses.x);
    let quants1 = quantize4(value1, inverses.y);
    let quants2 = quantize4(value2, inverses.z);
    let quants3 = quantize4(value3, inverses.w);
    sums[lane] = vec4(sum4(quants0), sum4(quants1), sum4(quants2), sum4(quants3));
    put_word(quants0, row, quad);
    put_word(quants1, row, quad + WORKGROUP);
    put_word(quants2, row, quad + 2u * WORKGROUP);
    put_word(quants3, row, quad + 3u * WORKGROUP);
    workgroupBarrier();
    if lane == unit_lane {
        var of_units = vec4(0);
        for (var i = 0u; i < 8u; i++) {
            of_units += sums[lane + i];
        }
        put_scales(inverses.x, of_units.x, row, quad);
        put_scales(inverses.y, of_units.y, row, quad + WORKGROUP);
        put_scales(inverses.z, of_units.z, row, quad + 2u * WORKGROUP);
        put_scales(inverses.w, of_units.w, row, quad + 3u * WORKGROUP);
    }
}

fn sum4(value: vec4<i32>) -> i32 {
    return value.x + value.y + value.z + value.w;
}

fn put_word(quants: vec4<i32>, row: u32, quad: u32) {
    if quad < p.stride / 4u {
        int8[int8_row(row, p.stride) + quad] = pack4xI8(quants);
    }
}

fn put_scales(inverse: f32, sum: i32, row: u32, quad: u32) {
    if quad < p.stride / 4u {
        let at = int8_row(row, p.stride) + p.stride / 4u + quad / 4u;
        let scales = bitcast<vec2<u32>>(unit_scales(inverse, sum));
        int8[at] = scales.x;
        int8[at + 1u] = scales.y;
    }
}
