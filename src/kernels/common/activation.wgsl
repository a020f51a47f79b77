// The non-linearity of a feed-forward block, by the number that the parameters give. SiLU is
// x * sigmoid(x) (arXiv:1702.03118); GELU in its tanh form (arXiv:1606.08415, section 2), written with
// 0.5 * (1 + tanh(u)) = sigmoid(2u), since tanh of a large number is NaN on some devices.

const SILU: u32 = 0u;
const RELU_SQUARED: u32 = 2u;
const CLAMPED_SWIGLU: u32 = 3u;
const IDENTITY: u32 = 4u;
const SIGMOID_GATE: u32 = 5u;

fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

// exp stays finite; sigmoid(-80) is 2e-35.
fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return select(1.0 / (1.0 + exp(-max(x, vec4(-80.0)))), vec4(0.0), x < vec4(-80.0));
}

fn gelu_tanh(x: vec4<f32>) -> vec4<f32> {
    let bounded = clamp(x, vec4(-20.0), vec4(20.0)); // its cube must not overflow
    let u = 0.7978845608 * (bounded + 0.044715 * bounded * bounded * bounded); // sqrt(2 / pi)
    return x * sigmoid(2.0 * u);
}

fn activate(activation: u32, x: vec4<f32>) -> vec4<f32> {
    if activation == SILU {
        return x * sigmoid(x);
    }
    if activation == RELU_SQUARED {
        let positive = max(x, vec4(0.0)); // arXiv:2109.08668, section 3.1
        // max makes zero of what is not a number.
        return select(positive * positive, x, is_nan(x));
    }
    if activation == CLAMPED_SWIGLU {
        let bounded = min(x, vec4(7.0));
        return select(bounded * sigmoid(1.702 * bounded), x, is_nan(x));
    }
    if activation == IDENTITY {
        return x;
    }
    if activation == SIGMOID_GATE {
        return select(sigmoid(x), x, is_nan(x)); // max makes a number of it
    }
    return gelu_tanh(x);
}


// What a gate is multiplied with.
fn linear(activation: u32, up: vec4<f32>) -> vec4<f32> {
    if activation == CLAMPED_SWIGLU {
        return select(clamp(up, vec4(-7.0), vec4(7.0)) + 1.0, up, is_nan(up));
    }
    return up;
}
