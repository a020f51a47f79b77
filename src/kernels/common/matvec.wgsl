// The product of one row of src with pairs of rows of weights, a workgroup's pairs at a time. The kernel
// says which rows are a pair: fn pair_rows(pair: u32) -> Pair, for any pair, existing or not. Its parameters
// have `matrix` and `n_pairs`; n_pairs is a multiple of the pairs that all teams multiply at once.
// common/src_TYPE.wgsl says what the activations are; prepare_src comes before the products. In front of
// this stand WORKGROUP, its invocations, and INT8_PAIRS: the pairs that a team multiplies at a time where the activations
// are int8, 1 or 2.

// Two rows of weights with as many units, in any planes of the binding.
struct Pair {
    first_planes: vec4<u32>,
    second_planes: vec4<u32>,
    units: vec2<u32>, // the first unit of each
}

// Each invocation's part of its team's sums, [team_size, 2 n_pairs + 1]: the odd stride spreads what is
// written at once over the memory banks.
var<workgroup> partial: array<f32, 2112>;

// All products of the workgroup: invocation i gets that of row i % 2 of pair first_pair + i / 2, where
// i < 2 n_pairs. Called in uniform control flow.
fn pair_product(first_pair: u32, src_row: u32, lane: u32) -> f32 {
    let team_size = p.matrix.team_size;
    let member = lane & (team_size - 1u);
    let team = lane >> firstTrailingBit(team_size);
    let n_teams = WORKGROUP / team_size;
    let n_sums = 2u * p.n_pairs;
    let stride = n_sums + 1u;
    for (var pair = team * TEAM_PAIRS; pair < p.n_pairs; pair += n_teams * TEAM_PAIRS) {
        multiply(first_pair + pair, src_row, member, member * stride + 2u * pair);
    }
    workgroupBarrier();

    var sum = 0.0;
    if lane < n_sums {
        for (var i = lane; i < team_size * stride; i += 4u * stride) {
            sum += (partial[i] + partial[i + stride]) + (partial[i + 2u * stride] + partial[i + 3u * stride]);
        }
    }
    return sum;
}

