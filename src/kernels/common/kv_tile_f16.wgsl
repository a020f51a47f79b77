// Tiles of a cache of 16-bit floats: as they are.
alias KvQuad = vec4<f16>;
const KV_LEAST: i32 = 0;

fn kv_magnitude(quad: KvQuad) -> f32 {
    return 0.0;
}

fn kv_publish(key: f32, value: f32, subgroup: u32) {}

fn kv_exponents() -> vec2<i32> {
    return vec2(KV_LEAST);
}

fn kv_halves(quad: KvQuad, inverse: f32) -> vec4<f16> {
    return quad;
}
