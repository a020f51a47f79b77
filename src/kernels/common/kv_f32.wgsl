// A cache of 32-bit floats, four elements a word.
alias KvWord = vec4<f32>;

fn kv_decode(word: KvWord) -> vec4<f32> {
    return word;
}

fn kv_encode(value: vec4<f32>) -> KvWord {
    return value;
}

// The same by words of one element; `second` is not in it.
const KV_PER_WORD = 1u;

fn kv_word(first: f32, second: f32) -> u32 {
    return bitcast<u32>(first);
}

// The same eight at a time.
alias KvEight = mat2x4<f32>;

fn kv_decode8(eight: KvEight) -> mat2x4<f32> {
    return eight;
}

