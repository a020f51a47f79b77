// Rows of int8 activations, which a kernel writes to its binding `int8: array<u32>`: a row of `stride`
// elements is stride / 4 words of quants, four a word, and behind them for each unit of 32 elements two
// words, the bits of its scale and of scale * sum of its quants; a row begins at a multiple of 4 words.
// The kernel defines WORKGROUP.

fn int8_row(row: u32, stride: u32) -> u32 {
    return row * ((stride / 4u + stride / 16u + 3u) & ~3u);
}

var<workgroup> quad_sizes: array<f32, WORKGROUP>;
var<workgroup> quad_sums: array<i32, WORKGROUP>;

// Stores four elements of a row, of the unit that invocations 8i to 8i + 7 have between them. Called by
// all invocations in uniform control flow; `quad` is the elements' place in the row, in fours.
fn store_int8(value: vec4<f32>, row: u32, stride: u32, quad: u32, stores: bool, lane: u32) {
    quad_sizes[lane] = largest_of(value);
    workgroupBarrier();
    let first = lane & ~7u;
    let sizes0 = vec4(quad_sizes[first], quad_sizes[first + 1u], quad_sizes[first + 2u], quad_sizes[first + 3u]);
    let sizes1 = vec4(quad_sizes[first + 4u], quad_sizes[first + 5u], quad_sizes[first + 6u], quad_sizes[first + 7u]);
    let max_size = largest_of(larger(sizes0, sizes1));
    let inverse = inverse_scale(max_size);
    let quants = quantize4(value, inverse);
    quad_sums[lane] = quants.x + quants.y + quants.z + quants.w;
    workgroupBarrier();
    if stores {
        let start = int8_row(row, stride);
        int8[start + quad] = pack4xI8(quants);
        if lane == first {
            var sum = 0;
            for (var i = 0u; i < 8u; i++) {
                sum += quad_sums[lane + i];
            }
            let scales = bitcast<vec2<u32>>(unit_scales(inverse, sum));
            let at = start + stride / 4u + quad / 4u;
            int8[at] = scales.x;
            int8[at + 1u] = scales.y;
        }
    }
}
