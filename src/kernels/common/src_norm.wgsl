// Activations as they are in front of an RMS norm (arXiv:1910.07467, equation 4), in products of what it makes of
// them, rounded to int8 (common/quantize.wgsl), with quantised weights. Every workgroup normalises and rounds the
// row for itself: it saves a dispatch that all of them would wait for. Rows have at most 2048 elements, whole units.
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>; // [n_rows, src_stride]

// The row as int8.
var<workgroup> row_quants: array<vec4<u32>, 128>;
var<workgroup> row_scales: array<vec2<f32>, 64>; // of each unit: scale, scale * sum of the quants

fn activations(row: u32, unit: u32) -> Activations {
    return Activations(row_quants[unit * 2u], row_quants[unit * 2u + 1u], row_scales[unit]);
}

// Fills them, before any product; called in uniform control flow. `partial` is free until then: it holds
// the largest magnitude and the sum of quants of each four elements, and the inverse scale of each unit.
fn prepare_src(row: u32, lane: u32, writes: bool) {
    let n_quads = p.src_stride / 4u;
    let start = row * n_quads;
    let last = n_quads - 1u;
    let quads = vec4(lane) + vec4(0u, 1u, 2u, 3u) * WORKGROUP;
    // All loads come before their use; those behind the row repeat its end and count nothing.
    let x0 = src[start + min(quads.x, last)];
    let x1 = src[start + min(quads.y, last)];
    let x2 = src[start + min(quads.z, last)];
    let x3 = src[start + min(quads.w, last)];
    let w0 = norm_weight[min(quads.x, last)];
    let w1 = norm_weight[min(quads.y, last)];
    let w2 = norm_weight[min(quads.z, last)];
    let w3 = norm_weight[min(quads.w, last)];
    let squares = vec4(dot(x0, x0), dot(x1, x1), dot(x2, x2), dot(x3, x3));
    let of_row = select(vec4(0.0), squares, quads < vec4(n_quads));
    let mean = workgroup_sum(dot(of_row, vec4(1.0)), lane) / f32(p.matrix.units_per_row * 32u);
    let scale = 1.0 / sqrt(mean + p.eps);

    let y0 = x0 * scale * w0;
    let y1 = x1 * scale * w1;
    let y2 = x2 * scale * w2;
    let y3 = x3 * scale * w3;
    put_normed(y0, start, quads.x, n_quads, writes);
    put_normed(y1, start, quads.y, n_quads, writes);
    if n_quads > 2u * WORKGROUP {
        put_normed(y2, start, quads.z, n_quads, writes);
        put_normed(y3, start, quads.w, n_quads, writes);
    }
    workgroupBarrier();

    var inverse = 0.0; // of unit `lane`
    if lane < n_quads / 8u {
        let first = lane * 8u;
        let sizes0 = vec4(partial[first], partial[first + 1u], partial[first + 2u], partial[first + 3u]);
        let sizes1 = vec4(partial[first + 4u], partial[first + 5u], partial[first + 6u], partial[first + 7u]);
        inverse = inverse_scale(largest_of(larger(sizes0, sizes1)));
        unit_inverses[lane] = inverse;
    }
    workgroupBarrier();

    put_quants(y0, quads.x, n_quads);
    put_quants(y1, quads.y, n_quads);
    if n_quads > 2u * WORKGROUP {
        put_quants(y2, quads.z, n_quads);
        put_quants(y3, quads.w, n_quads);
    }
    workgroupBarrier();

    if lane < n_quads / 8u {
        var sum = 0.0; // of whole numbers: exact
        for (var i = 0u; i < 8u; i++) {
            sum += partial[lane * 8u + i];
        }
        row_scales[lane] = unit_scales(inverse, i32(sum));
    }
    workgroupBarrier();
}

var<workgroup> unit_inverses: array<f32, 64>;

fn put_normed(value: vec4<f32>, start: u32, quad: u32, n_quads: u32, writes: bool) {
    if quad < n_quads {
        partial[quad] = largest_of(value);
        if writes {
            normed[start + quad] = value;
        }
    }
}

fn put_quants(value: vec4<f32>, quad: u32, n_quads: u32) {
    if quad < n_quads {
        let quants = quantize4(value, unit_inverses[quad / 8u]);
        row_quants[quad / 4u][quad & 3u] = pack4xI8(quants);
        partial[quad] = f32(quants.x + quants.y + quants.z + quants.w);
    }
}

