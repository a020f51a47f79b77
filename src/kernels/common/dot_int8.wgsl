// Products of int8 activations with quantised weights: of src s * q and weights t * r + offset a unit gives
// s t sum(q r) + offset s sum(q).

// Pairs of rows of weights that a team multiplies at a time.
const TEAM_PAIRS = INT8_PAIRS;

// A unit of src.
struct Activations {
    low: vec4<u32>,
    high: vec4<u32>,
    scales: vec2<f32>, // scale, scale * sum of the quants
}

fn dot8(weight: vec2<u32>, src8: vec2<u32>) -> i32 {
    return dot4I8Packed(weight.x, src8.x) + dot4I8Packed(weight.y, src8.y);
}

fn dot_unit(weight: Header, of_src: Activations) -> f32 {
    let low = dot8(packed8(weight, 0u), of_src.low.xy) + dot8(packed8(weight, 1u), of_src.low.zw);
    let high = dot8(packed8(weight, 2u), of_src.high.xy) + dot8(packed8(weight, 3u), of_src.high.zw);
    let sum = dot(weight.scale, vec2(f32(low), f32(high)));
    return of_src.scales.x * sum + offset_product(weight, of_src);
}

// The members of a team take two units each, a team's size apart, and then go on to the next ones. All loads
// come before their use. A second unit behind the last one repeats that and counts nothing.
fn multiply(pair: u32, src_row: u32, member: u32, at_partial: u32) {
    let rows0 = pair_rows(pair);
    let rows1 = pair_rows(pair + 1u);
    let n_units = p.matrix.units_per_row;
    let team_size = p.matrix.team_size;
    var sums = vec4<f32>(0.0);
    for (var unit = member; unit < n_units; unit += 2u * team_size) {
        let second = min(unit + team_size, n_units - 1u);
        let weight0 = unit_header(rows0.first_planes, rows0.units.x + unit);
        let weight1 = unit_header(rows0.second_planes, rows0.units.y + unit);
        let weight2 = unit_header(rows0.first_planes, rows0.units.x + second);
        let weight3 = unit_header(rows0.second_planes, rows0.units.y + second);
        var weight4: Header;
        var weight5: Header;
        var weight6: Header;
        var weight7: Header;
        if TEAM_PAIRS == 2u {
            weight4 = unit_header(rows1.first_planes, rows1.units.x + unit);
            weight5 = unit_header(rows1.second_planes, rows1.units.y + unit);
            weight6 = unit_header(rows1.first_planes, rows1.units.x + second);
            weight7 = unit_header(rows1.second_planes, rows1.units.y + second);
        }
        let src0 = activations(src_row, unit);
        let src1 = activations(src_row, second);
        let counts = select(0.0, 1.0, unit + team_size < n_units);
        let firsts = vec2(dot_unit(weight0, src0), dot_unit(weight1, src0));
        let seconds = vec2(dot_unit(weight2, src1), dot_unit(weight3, src1));
        sums += vec4(firsts + counts * seconds, 0.0, 0.0);
        if TEAM_PAIRS == 2u {
            let firsts1 = vec2(dot_unit(weight4, src0), dot_unit(weight5, src0));
            let seconds1 = vec2(dot_unit(weight6, src1), dot_unit(weight7, src1));
            sums += vec4(0.0, 0.0, firsts1 + counts * seconds1);
        }
    }
    partial[at_partial] = sums.x;
    partial[at_partial + 1u] = sums.y;
    if TEAM_PAIRS == 2u {
        partial[at_partial + 2u] = sums.z;
        partial[at_partial + 3u] = sums.w;
    }
}

