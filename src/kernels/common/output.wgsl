// What becomes of the products with a weight matrix: bias and residual are added, of which the parameters
// say whether there are any. The bindings are `bias`, `residual`, `product` and `dst`.

// What is added to an output of a row: bias and residual.
fn added(row: u32, output: u32) -> vec2<f32> {
    let column = p.matrix.first_row + output;
    var value = vec2<f32>(0.0);
    if p.has_bias == 1u {
        value.x = bias[column];
    }
    if p.has_residual == 1u {
        value.y = residual[row * p.dst_stride + column];
    }
    return value;
}

// The residual is added to what is rounded already, as a step of its own would.
fn write(row: u32, output: u32, sum: f32, addend: vec2<f32>) {
    let at = row * p.dst_stride + p.matrix.first_row + output;
    let value = sum + addend.x;
    if p.has_residual == 1u {
        product[at] = value;
    }
    dst[at] = value + addend.y;
}

