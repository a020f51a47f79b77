// Tiles of a cache of 32-bit floats as 16-bit ones, each divided by a power of two so that none overflows.
alias KvQuad = vec4<f32>;
const KV_LEAST: i32 = -126;

var<workgroup> kv_largest: array<vec2<f32>, N_SUBGROUPS>; // of keys and of values

fn kv_magnitude(quad: KvQuad) -> f32 {
    let magnitude = abs(quad);
    return max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
}

// The largest magnitudes that the invocation holds; called before a barrier.
fn kv_publish(key: f32, value: f32, subgroup: u32) {
    kv_largest[subgroup] = vec2(subgroupMax(key), subgroupMax(value));
}

// Of the powers of two for keys and for values, behind that barrier.
fn kv_exponents() -> vec2<i32> {
    var largest = vec2(0.0);
    for (var i = 0u; i < N_SUBGROUPS; i++) {
        largest = max(largest, kv_largest[i]);
    }
    return vec2(exponent_of(largest.x), exponent_of(largest.y));
}

fn kv_halves(quad: KvQuad, inverse: f32) -> vec4<f16> {
    return vec4<f16>(quad * inverse);
}
