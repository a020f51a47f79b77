// Products of activations as they are with floats: a header has nothing to load.

// The members of a team take eight weights of a row each, so that what they load lies together, and eight more a
// team's size apart, and then go on to the next ones. All loads come before their use. A second eight behind the
// last one repeats that and counts nothing.
fn multiply(pair: u32, src_row: u32, member: u32, at_partial: u32) {
    let rows0 = pair_rows(pair);
    let rows1 = pair_rows(pair + 1u);
    let start = src_row * (p.src_stride / 4u);
    let n_eights = p.matrix.units_per_row * 4u;
    let team_size = p.matrix.team_size;
    var sums = vec4<f32>(0.0);
    for (var first = member; first < n_eights; first += 2u * team_size) {
        let second = min(first + team_size, n_eights - 1u);
        let weights0 = eights(rows0, rows1, first);
        let weights1 = eights(rows0, rows1, second);
        let src0 = Eight(src[start + first * 2u], src[start + first * 2u + 1u]);
        let src1 = Eight(src[start + second * 2u], src[start + second * 2u + 1u]);
        let counts = select(0.0, 1.0, first + team_size < n_eights);
        sums += eight_products(weights0, src0) + counts * eight_products(weights1, src1);
    }
    partial[at_partial] = sums.x;
    partial[at_partial + 1u] = sums.y;
    partial[at_partial + 2u] = sums.z;
    partial[at_partial + 3u] = sums.w;
}

fn eights(rows0: Pair, rows1: Pair, eight: u32) -> array<Eight, 4> {
    let unit = eight / 4u;
    return array(
        decode8(unit_header(rows0.first_planes, rows0.units.x + unit), eight & 3u),
        decode8(unit_header(rows0.second_planes, rows0.units.y + unit), eight & 3u),
        decode8(unit_header(rows1.first_planes, rows1.units.x + unit), eight & 3u),
        decode8(unit_header(rows1.second_planes, rows1.units.y + unit), eight & 3u),
    );
}

fn eight_products(weights: array<Eight, 4>, of_src: Eight) -> vec4<f32> {
    return vec4(
        dot8(weights[0], of_src.low, of_src.high),
        dot8(weights[1], of_src.low, of_src.high),
        dot8(weights[2], of_src.low, of_src.high),
        dot8(weights[3], of_src.low, of_src.high),
    );
}

