// Activations as int8, as common/quantize.wgsl lays them out, in products with quantised weights.
@group(0) @binding(3) var<storage, read> src: array<vec4<u32>>; // [n_rows]

fn activations(row: u32, unit: u32) -> Activations {
    let n_quads = p.src_stride / 16u;
    let start = row * (n_quads + (n_quads + 3u) / 4u);
    let scales = bitcast<vec4<f32>>(src[start + n_quads + unit / 2u]);
    return Activations(
        src[start + unit * 2u],
        src[start + unit * 2u + 1u],
        select(scales.xy, scales.zw, (unit & 1u) == 1u),
    );
}

fn prepare_src(row: u32, lane: u32, writes: bool) {}

