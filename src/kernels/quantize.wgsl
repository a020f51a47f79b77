// quantize: quants = round(src / scale) in -127 ..= 127, with a scale for each unit of 32 elements of a row
// twin: quantize::twin
// shapes: src, quants [n_rows, width], scales [n_rows, ceil(width / 32)] of (scale, scale * sum of the quants)
// grid: one invocation for 4 elements (x, y), rows (z)
// needs: nothing
// numerics: the quants are the twin's, bit for bit; |scale - the twin's| <= 3 eps scale (one division), eps = 2^-23
// source: the definition below

struct Params {
    @size(16) stride: u32, // elements from a row to the next
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;           // [n_rows, stride] f32
@group(0) @binding(3) var<storage, read_write> quants: array<u32>;        // [n_rows, stride] int8, four a word
@group(0) @binding(4) var<storage, read_write> scales: array<vec2<f32>>;  // [n_rows, stride / 32]

var<workgroup> largest: array<f32, 64>; // of each invocation's elements
var<workgroup> sums: array<i32, 64>;

// 127 / max, rounded down to 16 bits by whole numbers, so that every device has the same one. The exponent
// is held where this and its inverse are normal numbers.
fn inverse_scale(max: f32) -> f32 {
    let bits = bitcast<u32>(max);
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let exponent = clamp(bits >> 23u, 10u, 240u);
    let inverse = (127u << 24u) / ((mantissa >> 8u) + 1u);
    return f32(inverse) * bitcast<f32>((245u - exponent) << 23u); // 2^(118 - exponent)
}

// Eight neighbouring invocations share a unit.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    if row >= batch.n_rows {
        return;
    }
    let row_words = p.stride / 4u;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    let at = row * row_words + min(first, row_words - 1u);
    let value = src[at];
    let size = abs(value);
    largest[lane] = max(max(size.x, size.y), max(size.z, size.w));
    workgroupBarrier();

    let unit_lane = lane & 56u;
    var max_size = 0.0;
    for (var i = 0u; i < 8u; i++) {
        max_size = max(max_size, largest[unit_lane + i]);
    }
    let is_zero = bitcast<u32>(max_size) < (10u << 23u); // 2^-117
    let inverse = inverse_scale(max_size);
    let rounded = clamp(round(value * inverse), vec4(-127.0), vec4(127.0));
    let q = select(vec4<i32>(rounded), vec4(0), is_zero);
    sums[lane] = q.x + q.y + q.z + q.w;
    workgroupBarrier();

    if first < row_words {
        quants[at] = pack4xI8(q);
        if lane == unit_lane {
            var sum = 0;
            for (var i = 0u; i < 8u; i++) {
                sum += sums[lane + i];
            }
            let scale = select(1.0 / inverse, 0.0, is_zero);
            scales[at / 8u] = vec2(scale, scale * f32(sum));
        }
    }
}
