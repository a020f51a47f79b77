// The product of a tile of rows of src with 64 rows of weights, in registers. The kernel says which rows a tile has:
// fn tile_rows(tile: u32, first_j: u32) -> TileRows, of at most TILE places, none where there is nothing to do; where
// the row of a place is: fn src_row(place: u32) -> u32; the outputs that there are and the rows of the shard that give
// them: fn n_outputs() -> u32, fn weight_row(output: u32) -> u32; and what becomes of a sum: fn store_sum(place: u32,
// output: u32, sum: f32). Its parameters have `matrix` and `src_stride`, its grid tiles in z and TILE outputs in x, y.

const TILE = 64u;

struct TileRows {
    first: u32,
    end: u32, // behind the last
}

// One unit of 64 rows each, [64, 8] vectors.
var<workgroup> weight_tile: array<vec4<f32>, 512>;
var<workgroup> src_tile: array<vec4<f32>, 512>;

// Where a row's vector lies in a tile: neighbouring rows differ in the memory bank.
fn in_tile(row: u32, vector: u32) -> u32 {
    return row * 8u + (vector ^ (row & 7u));
}

// A product and a sum are one operation this way; those of `dot` need one more to be added.
fn add_dot(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, fma(a.w, b.w, sum))));
}

// A thread computes outputs x, x + 16, x + 32, x + 48 of rows y, y + 16, y + 32, y + 48.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first_j = (workgroup.y * n_workgroups.x + workgroup.x) * TILE;
    if first_j >= n_outputs() {
        return;
    }
    let rows = tile_rows(workgroup.z, first_j);
    if rows.first >= rows.end {
        return;
    }

    // Rows behind the last one repeat it, unused.
    let n_units = p.matrix.units_per_row;
    let load_row = lane % TILE;
    let load_quarter = lane / TILE;
    let load_weight = weight_row(min(first_j + load_row, n_outputs() - 1u)) * n_units;
    let load_src = src_row(min(rows.first + load_row, rows.end - 1u)) * (p.src_stride / 4u) + load_quarter * 2u;
    let store_low = in_tile(load_row, load_quarter * 2u);
    let store_high = in_tile(load_row, load_quarter * 2u + 1u);

    let x = lane % 16u;
    let y = lane / 16u;
    var sums0 = vec4<f32>(0.0); // of row y, for the thread's four outputs
    var sums1 = vec4<f32>(0.0);
    var sums2 = vec4<f32>(0.0);
    var sums3 = vec4<f32>(0.0);
    for (var unit = 0u; unit < n_units; unit++) {
        let weight = decode8(unit_header(p.matrix.planes, load_weight + unit), load_quarter);
        weight_tile[store_low] = weight.low;
        weight_tile[store_high] = weight.high;
        src_tile[store_low] = src[load_src + unit * 8u];
        src_tile[store_high] = src[load_src + unit * 8u + 1u];
        workgroupBarrier();
        // Summed unit by unit, which keeps rounding errors small.
        var unit0 = vec4<f32>(0.0);
        var unit1 = vec4<f32>(0.0);
        var unit2 = vec4<f32>(0.0);
        var unit3 = vec4<f32>(0.0);
        for (var vector = 0u; vector < 8u; vector++) {
            let at_weight = in_tile(x, vector);
            let weight0 = weight_tile[at_weight];
            let weight1 = weight_tile[at_weight + 128u];
            let weight2 = weight_tile[at_weight + 256u];
            let weight3 = weight_tile[at_weight + 384u];
            let at_src = in_tile(y, vector);
            let src0 = src_tile[at_src];
            let src1 = src_tile[at_src + 128u];
            let src2 = src_tile[at_src + 256u];
            let src3 = src_tile[at_src + 384u];
            unit0.x = add_dot(unit0.x, weight0, src0);
            unit0.y = add_dot(unit0.y, weight1, src0);
            unit0.z = add_dot(unit0.z, weight2, src0);
            unit0.w = add_dot(unit0.w, weight3, src0);
            unit1.x = add_dot(unit1.x, weight0, src1);
            unit1.y = add_dot(unit1.y, weight1, src1);
            unit1.z = add_dot(unit1.z, weight2, src1);
            unit1.w = add_dot(unit1.w, weight3, src1);
            unit2.x = add_dot(unit2.x, weight0, src2);
            unit2.y = add_dot(unit2.y, weight1, src2);
            unit2.z = add_dot(unit2.z, weight2, src2);
            unit2.w = add_dot(unit2.w, weight3, src2);
            unit3.x = add_dot(unit3.x, weight0, src3);
            unit3.y = add_dot(unit3.y, weight1, src3);
            unit3.z = add_dot(unit3.z, weight2, src3);
            unit3.w = add_dot(unit3.w, weight3, src3);
        }
        sums0 += unit0;
        sums1 += unit1;
        sums2 += unit2;
        sums3 += unit3;
        workgroupBarrier();
    }

    store(rows.first + y, rows.end, first_j + x, sums0);
    store(rows.first + y + 16u, rows.end, first_j + x, sums1);
    store(rows.first + y + 32u, rows.end, first_j + x, sums2);
    store(rows.first + y + 48u, rows.end, first_j + x, sums3);
}

// Stores outputs j, j + 16, j + 32, j + 48 of a row, those that there are.
fn store(row: u32, n_rows: u32, j: u32, sums: vec4<f32>) {
    if row >= n_rows {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let output = j + 16u * i;
        if output < n_outputs() {
            store_sum(row, output, sums[i]);
        }
    }
}
