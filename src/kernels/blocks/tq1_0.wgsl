// TQ1_0: d * (q - 1) with q of 0, 1 or 2, five digits to the base 3 in a byte. A block is 8 units. Plane 0: 12 words
// a block: digit g of the first 8 is unit g (0 to 4), digit g of the last 4 the g-th half of units 5, 6 and 7; plane
// 1: a word a block, whose digits are the last 16 weights, four at a time; plane 2: d, a half a block.

struct Header {
    low: vec4<u32>,
    high: vec4<u32>,
    powers: vec2<u32>, // of 3, one for each half: as many digits lie in front of those wanted
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let block = unit >> 3u;
    let i = unit & 7u;
    let d = half_at(planes.z, block);
    let quants = planes.x + block * 12u;
    if i < 5u {
        let power = select((0x1b090301u >> (8u * (i & 3u))) & 255u, 81u, i == 4u);
        return Header(quad(quants), quad(quants + 4u), vec2(power), vec2(d), -d);
    }
    let last = quad(quants + 8u);
    if i < 7u {
        let powers = select(vec2(1u, 3u), vec2(9u, 27u), i == 6u);
        return Header(last, last, powers, vec2(d), -d);
    }
    let four = vec2(word(planes.y + block));
    let high = vec4(four.x, without_digits(four, 3u).x, without_digits(four, 9u).x, without_digits(four, 27u).x);
    return Header(last, high, vec2(81u, 1u), vec2(d), -d);
}

// Bytes times a power of 3, at most 81, without what overflows: the digits in front are gone.
fn without_digits(bytes: vec2<u32>, power: u32) -> vec2<u32> {
    let even = ((bytes & vec2(0x00ff00ffu)) * power) & vec2(0x00ff00ffu);
    let odd = (((bytes >> vec2(8u)) & vec2(0x00ff00ffu)) * power) & vec2(0x00ff00ffu);
    return even | (odd << vec2(8u));
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let half = select(header.low, header.high, quarter >= 2u);
    let power = select(header.powers.x, header.powers.y, quarter >= 2u);
    let bytes = without_digits(select(half.xy, half.zw, (quarter & 1u) == 1u), power);
    // The first digit is 3/256 of a byte, rounded down.
    let even = (((bytes & vec2(0x00ff00ffu)) * 3u) >> vec2(8u)) & vec2(0x00030003u);
    let odd = (((bytes >> vec2(8u)) & vec2(0x00ff00ffu)) * 3u) & vec2(0x03000300u);
    return even | odd;
}
