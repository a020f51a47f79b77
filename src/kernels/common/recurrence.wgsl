// Rows of a state that several invocations share, and the functions that make decays of what projections give.

const WORKGROUP = 64u;
const STATES = 16u; // of a row, in each invocation

var<workgroup> partial_sums: array<vec3<f32>, WORKGROUP>;

// The sum over the n_lanes invocations, a power of two, that share a row; all of the workgroup come here.
fn sum_of_lanes(value: vec3<f32>, lane: u32, n_lanes: u32) -> vec3<f32> {
    if n_lanes == 1u {
        return value;
    }
    partial_sums[lane] = value;
    workgroupBarrier();
    let first = lane & ~(n_lanes - 1u);
    var sum = vec3(0.0);
    for (var other = 0u; other < n_lanes; other += 1u) {
        sum += partial_sums[first + other];
    }
    workgroupBarrier();
    return sum;
}

// What clamp would make a number of; comparisons may not tell.
fn is_no_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// exp of what is not positive: never too small for a normal float, but zero.
fn decay_of(x: f32) -> f32 {
    let value = select(exp(clamp(x, -80.0, 80.0)), 0.0, x < -80.0);
    return select(value, x, is_no_number(x));
}

fn logistic(x: f32) -> f32 {
    let value = select(1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0))), 0.0, x < -80.0);
    return select(value, x, is_no_number(x));
}

// log(1 + exp(x)).
fn softplus(x: f32) -> f32 {
    let e = exp(clamp(x, -80.0, 20.0));
    let small = e * (1.0 - e * (0.5 - e * (0.33333333 - e * 0.25)));
    let value = select(select(log(1.0 + e), small, x < -4.0), 0.0, x < -80.0);
    return select(value, x, x > 20.0 || is_no_number(x));
}

