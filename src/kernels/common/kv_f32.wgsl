// A cache of 32-bit floats, four elements a word.
alias KvWord = vec4<f32>;

fn kv_decode(word: KvWord) -> vec4<f32> {
    return word;
}

fn kv_encode(value: vec4<f32>) -> KvWord {
    return value;
}

