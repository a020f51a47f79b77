// Products of activations as they are with quantised weights.

// Of a quarter of a unit of four rows.
fn products8(weight0: Header, weight1: Header, weight2: Header, weight3: Header, quarter: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    return vec4(
        dot8(decode8(weight0, quarter), low, high),
        dot8(decode8(weight1, quarter), low, high),
        dot8(decode8(weight2, quarter), low, high),
        dot8(decode8(weight3, quarter), low, high),
    );
}

// The members of a team take a unit each and then go on to the next ones.
fn multiply(pair: u32, src_row: u32, member: u32, at_partial: u32) {
    let rows0 = pair_rows(pair);
    let rows1 = pair_rows(pair + 1u);
    let start = src_row * (p.src_stride / 4u);
    var sums = vec4<f32>(0.0);
    for (var unit = member; unit < p.matrix.units_per_row; unit += p.matrix.team_size) {
        let weight0 = unit_header(rows0.first_planes, rows0.units.x + unit);
        let weight1 = unit_header(rows0.second_planes, rows0.units.y + unit);
        let weight2 = unit_header(rows1.first_planes, rows1.units.x + unit);
        let weight3 = unit_header(rows1.second_planes, rows1.units.y + unit);
        let at = start + unit * 8u;
        sums += products8(weight0, weight1, weight2, weight3, 0u, src[at], src[at + 1u]);
        sums += products8(weight0, weight1, weight2, weight3, 1u, src[at + 2u], src[at + 3u]);
        sums += products8(weight0, weight1, weight2, weight3, 2u, src[at + 4u], src[at + 5u]);
        sums += products8(weight0, weight1, weight2, weight3, 3u, src[at + 6u], src[at + 7u]);
    }
    partial[at_partial] = sums.x;
    partial[at_partial + 1u] = sums.y;
    partial[at_partial + 2u] = sums.z;
    partial[at_partial + 3u] = sums.w;
}

