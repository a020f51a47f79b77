// The largest magnitude.
fn largest_of(value: vec4<f32>) -> f32 {
    let size = abs(value);
    return max(max(size.x, size.y), max(size.z, size.w));
}

