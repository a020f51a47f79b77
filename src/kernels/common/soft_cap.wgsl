// cap * tanh(x / cap), within 5e-7 of itself. The built-in tanh is NaN of large numbers on some devices, and not exact
// near 0, where a series is (its next term is below 1e-8). Infinity and what is not a number stay what they are, so that
// they are seen behind it; by their bits, since compilers may assume that floats are finite.
fn soft_cap(x: f32, cap: f32) -> f32 {
    if (bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u {
        return x;
    }
    let u = abs(x / cap);
    let squared = u * u;
    let series = 1.0 + squared * (-1.0 / 3.0 + squared * (2.0 / 15.0 + squared * (-17.0 / 315.0 + squared * (62.0 / 2835.0))));
    let decay = exp(-2.0 * min(u, 20.0));
    let magnitude = cap * (1.0 - decay) / (1.0 + decay);
    return select(sign(x) * magnitude, x * series, u < 0.25);
}

