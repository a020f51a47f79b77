//! Blocks of every weight type into registers, with the results of [`WeightType::decode`].
//!
//! The layouts are described in [`crate::gguf`]'s decoders, which these are tested against.

#![expect(unsafe_code, reason = "vector loads")]

use super::{load, store_f32};
use crate::gguf::WeightType;
use std::arch::x86_64::*;

/// How far ahead of the blocks memory is fetched: more than its latency at the rate of decoding.
const AHEAD_BYTES: usize = 2048;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Weights that are decoded at a time.
pub(super) const GROUP: usize = 32;

/// 32 weights.
pub(super) type Group = [__m256; 4];

/// 32 quants.
type Quants = [__m256i; 4];

/// Folds the whole groups in `bytes` with their indices. The state is passed by value so that it stays
/// in registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn fold_groups<S>(
    ty: WeightType,
    bytes: &[u8],
    state: S,
    mut each: impl FnMut(S, usize, Group) -> S,
) -> S {
    match ty {
        WeightType::F32 => fold_blocks(bytes, state, |state, i, block| {
            each(state, i, f32_group(block))
        }),
        WeightType::F16 => fold_blocks(bytes, state, |state, i, block| {
            each(state, i, f16_group(block))
        }),
        WeightType::BF16 => fold_blocks(bytes, state, |state, i, block| {
            each(state, i, bf16_group(block))
        }),
        WeightType::Q4_0 => {
            fold_blocks(bytes, state, |state, i, block| each(state, i, q4_0(block)))
        }
        WeightType::Q4_1 => {
            fold_blocks(bytes, state, |state, i, block| each(state, i, q4_1(block)))
        }
        WeightType::Q5_0 => {
            fold_blocks(bytes, state, |state, i, block| each(state, i, q5_0(block)))
        }
        WeightType::Q5_1 => {
            fold_blocks(bytes, state, |state, i, block| each(state, i, q5_1(block)))
        }
        WeightType::Q8_0 => {
            fold_blocks(bytes, state, |state, i, block| each(state, i, q8_0(block)))
        }
        WeightType::Q4_K => fold_blocks(bytes, state, |state, i, block| {
            q4_k(block, state, |state, group, weights| {
                each(state, 8 * i + group, weights)
            })
        }),
        WeightType::Q5_K => fold_blocks(bytes, state, |state, i, block| {
            q5_k(block, state, |state, group, weights| {
                each(state, 8 * i + group, weights)
            })
        }),
        WeightType::Q6_K => fold_blocks(bytes, state, |state, i, block| {
            q6_k(block, state, |state, group, weights| {
                each(state, 8 * i + group, weights)
            })
        }),
        WeightType::Q2_K => fold_decoded::<_, 84, 256>(ty, bytes, state, each),
        WeightType::Q3_K => fold_decoded::<_, 110, 256>(ty, bytes, state, each),
        WeightType::IQ4_NL => fold_decoded::<_, 18, 32>(ty, bytes, state, each),
        WeightType::IQ4_XS => fold_decoded::<_, 136, 256>(ty, bytes, state, each),
        WeightType::MXFP4 => fold_decoded::<_, 17, 32>(ty, bytes, state, each),
        WeightType::TQ1_0 => fold_decoded::<_, 54, 256>(ty, bytes, state, each),
        WeightType::TQ2_0 => fold_decoded::<_, 66, 256>(ty, bytes, state, each),
        WeightType::IQ3_XXS => fold_decoded::<_, 98, 256>(ty, bytes, state, each),
        WeightType::IQ3_S => fold_decoded::<_, 110, 256>(ty, bytes, state, each),
        WeightType::IQ2_XXS => fold_decoded::<_, 66, 256>(ty, bytes, state, each),
        WeightType::IQ2_XS => fold_decoded::<_, 74, 256>(ty, bytes, state, each),
        WeightType::IQ2_S => fold_decoded::<_, 82, 256>(ty, bytes, state, each),
        WeightType::IQ1_S => fold_decoded::<_, 50, 256>(ty, bytes, state, each),
        WeightType::IQ1_M => fold_decoded::<_, 56, 256>(ty, bytes, state, each),
    }
}

/// As [`fold_groups`], with the decoder of the file: types without instructions of their own.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fold_decoded<S, const BYTES: usize, const LEN: usize>(
    ty: WeightType,
    bytes: &[u8],
    state: S,
    mut each: impl FnMut(S, usize, Group) -> S,
) -> S {
    fold_blocks(bytes, state, |mut state, i, block: &[u8; BYTES]| {
        let mut weights = [0.0; LEN];
        ty.decode(block, &mut weights);
        for (group, weights) in weights.as_chunks::<GROUP>().0.iter().enumerate() {
            state = each(state, LEN / GROUP * i + group, load(weights));
        }
        state
    })
}

/// Folds blocks, and fetches what lies ahead: rows follow each other, and the hardware does not look
/// beyond a page. Not inlined: together, the loops of all types leave too few registers to each other.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn fold_blocks<S, const BYTES: usize>(
    bytes: &[u8],
    mut state: S,
    mut each: impl FnMut(S, usize, &[u8; BYTES]) -> S,
) -> S {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    for (i, block) in blocks.iter().enumerate() {
        for line in (0..BYTES).step_by(LINE_BYTES) {
            let ahead = block.as_ptr().wrapping_add(AHEAD_BYTES + line);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        state = each(state, i, block);
    }
    state
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn map<T: Copy, U>(x: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    [f(x[0]), f(x[1]), f(x[2]), f(x[3])]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn or(a: Quants, b: Quants) -> Quants {
    [
        _mm256_or_si256(a[0], b[0]),
        _mm256_or_si256(a[1], b[1]),
        _mm256_or_si256(a[2], b[2]),
        _mm256_or_si256(a[3], b[3]),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn and(q: Quants, mask: i32) -> Quants {
    let mask = _mm256_set1_epi32(mask);
    map(q, |q| _mm256_and_si256(q, mask))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn left<const BITS: i32>(q: Quants) -> Quants {
    map(q, |q| _mm256_slli_epi32::<BITS>(q))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn right<const BITS: i32>(q: Quants) -> Quants {
    map(q, |q| _mm256_srli_epi32::<BITS>(q))
}

/// `q - middle`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn centred(q: Quants, middle: i32) -> Quants {
    let middle = _mm256_set1_epi32(middle);
    map(q, |q| _mm256_sub_epi32(q, middle))
}

/// `scale * q`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled(q: Quants, scale: f32) -> Group {
    let scale = _mm256_set1_ps(scale);
    map(q, |q| _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q)))
}

/// `scale * q + offset`. The product has at most 22 bits, so that it makes no difference that it is
/// not rounded.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled_and_moved(q: Quants, scale: f32, offset: f32) -> Group {
    let (scale, offset) = (_mm256_set1_ps(scale), _mm256_set1_ps(offset));
    map(q, |q| _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(q), offset))
}

/// Eight bytes, each in a lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widened(bytes: &[u8; 8]) -> __m256i {
    // SAFETY: a load of 8 bytes.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) })
}

/// 32 bytes, each in a lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn quants(bytes: &[u8; 32]) -> Quants {
    let (eights, _) = bytes.as_chunks::<8>();
    [
        widened(&eights[0]),
        widened(&eights[1]),
        widened(&eights[2]),
        widened(&eights[3]),
    ]
}

/// The low halves of 16 bytes, then their high halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles(bytes: &[u8]) -> Quants {
    let (eights, _) = bytes.as_chunks::<8>();
    let (a, b) = (widened(&eights[0]), widened(&eights[1]));
    let [a_low, b_low, ..] = and([a, b, a, b], 15);
    let [.., a_high, b_high] = right::<4>([a, b, a, b]);
    [a_low, b_low, a_high, b_high]
}

/// The 32 bits of the word at `at`, each as the fifth bit of a quant.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fifth_bits_at(bytes: &[u8], at: usize) -> Quants {
    let word = _mm256_set1_epi32(word_at(bytes, at).cast_signed());
    let eights = [
        _mm256_slli_epi32::<4>(word),
        _mm256_srli_epi32::<4>(word),
        _mm256_srli_epi32::<12>(word),
        _mm256_srli_epi32::<20>(word),
    ];
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    and(map(eights, |eight| _mm256_srlv_epi32(eight, lanes)), 16)
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The 16-bit float at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scale_at(bytes: &[u8], at: usize) -> f32 {
    let bits = i32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

/// Four times 16 bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sixteens(bytes: &[u8; 64]) -> [__m128i; 4] {
    let (sixteens, _) = bytes.as_chunks::<16>();
    // SAFETY: each is 16 bytes; the load is unaligned.
    map([0, 1, 2, 3], |i: usize| unsafe {
        _mm_loadu_si128(sixteens[i].as_ptr().cast())
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn f32_group(bytes: &[u8; 128]) -> Group {
    let (eights, _) = bytes.as_chunks::<32>();
    // SAFETY: each is 32 bytes; the load is unaligned.
    map([0, 1, 2, 3], |i: usize| unsafe {
        _mm256_loadu_ps(eights[i].as_ptr().cast())
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn f16_group(bytes: &[u8; 64]) -> Group {
    map(sixteens(bytes), |eight| _mm256_cvtph_ps(eight))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bf16_group(bytes: &[u8; 64]) -> Group {
    let widened = map(sixteens(bytes), |eight| _mm256_cvtepu16_epi32(eight));
    map(left::<16>(widened), |bits| _mm256_castsi256_ps(bits))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_0(block: &[u8; 18]) -> Group {
    scaled(centred(nibbles(&block[2..]), 8), scale_at(block, 0))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_1(block: &[u8; 20]) -> Group {
    scaled_and_moved(nibbles(&block[4..]), scale_at(block, 0), scale_at(block, 2))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_0(block: &[u8; 22]) -> Group {
    let q = or(nibbles(&block[6..]), fifth_bits_at(block, 2));
    scaled(centred(q, 16), scale_at(block, 0))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_1(block: &[u8; 24]) -> Group {
    let q = or(nibbles(&block[8..]), fifth_bits_at(block, 4));
    scaled_and_moved(q, scale_at(block, 0), scale_at(block, 2))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q8_0(block: &[u8; 34]) -> Group {
    let (eights, _) = block[2..].as_chunks::<8>();
    let q = map([0, 1, 2, 3], |i: usize| {
        // SAFETY: each is 8 bytes.
        _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(eights[i].as_ptr().cast()) })
    });
    scaled(q, scale_at(block, 0))
}

/// `d * scale` and `-dmin * min` of the eight groups of a Q4_K or Q5_K block, which begins with `d`,
/// `dmin` and twelve bytes that hold the scales and minimums (`get_scale_min_k4` in ggml-quants.c).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn k_scales(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (scales, mins, last) = (word_at(block, 4), word_at(block, 8), word_at(block, 12));
    let high_bits = |word: u32| word >> 2 & 0x3030_3030;
    let scales = [scales & 0x3f3f_3f3f, last & 0x0f0f_0f0f | high_bits(scales)];
    let mins = [
        mins & 0x3f3f_3f3f,
        last >> 4 & 0x0f0f_0f0f | high_bits(mins),
    ];
    (
        eight_times(scale_at(block, 0), scales),
        eight_times(-scale_at(block, 2), mins),
    )
}

/// `factor` times each of eight bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn eight_times(factor: f32, [low, high]: [u32; 2]) -> [f32; 8] {
    let bytes = _mm_set_epi32(0, 0, high.cast_signed(), low.cast_signed());
    let products = _mm256_mul_ps(
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
        _mm256_set1_ps(factor),
    );
    let mut out = [0.0; 8];
    store_f32(&mut out, products);
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_k<S>(block: &[u8; 144], mut state: S, mut each: impl FnMut(S, usize, Group) -> S) -> S {
    let (scales, offsets) = k_scales(block);
    let (qs, _) = block[16..].as_chunks::<32>();
    for (pair, q) in qs.iter().enumerate() {
        let (low, high) = (2 * pair, 2 * pair + 1);
        let q = quants(q);
        state = each(
            state,
            low,
            scaled_and_moved(and(q, 15), scales[low], offsets[low]),
        );
        state = each(
            state,
            high,
            scaled_and_moved(right::<4>(q), scales[high], offsets[high]),
        );
    }
    state
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_k<S>(block: &[u8; 176], mut state: S, mut each: impl FnMut(S, usize, Group) -> S) -> S {
    let (scales, offsets) = k_scales(block);
    let (parts, _) = block[16..].as_chunks::<32>();
    let (qh, qs) = (&parts[0], &parts[1..]);
    let mut fifths = quants(qh);
    for (pair, q) in qs.iter().enumerate() {
        let (low, high) = (2 * pair, 2 * pair + 1);
        let q = quants(q);
        let first = or(and(q, 15), and(left::<4>(fifths), 16));
        state = each(
            state,
            low,
            scaled_and_moved(first, scales[low], offsets[low]),
        );
        let second = or(right::<4>(q), and(left::<3>(fifths), 16));
        state = each(
            state,
            high,
            scaled_and_moved(second, scales[high], offsets[high]),
        );
        fifths = right::<2>(fifths);
    }
    state
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q6_k<S>(block: &[u8; 210], mut state: S, mut each: impl FnMut(S, usize, Group) -> S) -> S {
    let d = scale_at(block, 208);
    let step = |index: usize| d * f32::from(block[192 + index].cast_signed());
    let group = |group: usize, low: Quants, high: Quants| {
        let q = centred(or(low, and(high, 48)), 32);
        let [a, b, ..] = scaled(q, step(2 * group));
        let [.., c, d] = scaled(q, step(2 * group + 1));
        [a, b, c, d]
    };
    let (parts, _) = block.as_chunks::<32>();
    for half in 0..2 {
        let at = 4 * half;
        let high = quants(&parts[4 + half]);
        let q = quants(&parts[2 * half]);
        state = each(state, at, group(at, and(q, 15), left::<4>(high)));
        state = each(state, at + 2, group(at + 2, right::<4>(q), high));
        let q = quants(&parts[2 * half + 1]);
        state = each(state, at + 1, group(at + 1, and(q, 15), left::<2>(high)));
        state = each(
            state,
            at + 3,
            group(at + 3, right::<4>(q), right::<2>(high)),
        );
    }
    state
}
