//! AVX2, FMA and F16C.
#![expect(
    unsafe_code,
    reason = "vector loads and stores, and calls that need these instructions"
)]

use super::portable::f16_to_f32;
use super::{RowCells, Rows};
use crate::gguf::WeightType;
use std::arch::x86_64::*;

/// Proof that this machine has the instructions.
#[derive(Clone, Copy, Debug)]
pub(in crate::device::cpu) struct Avx2(());

/// Weights that are decoded at a time.
const GROUP: usize = 32;

/// How far ahead of the blocks memory is fetched: more than its latency at the rate of decoding.
const AHEAD_BYTES: usize = 2048;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// 32 weights.
type Group = [__m256; 4];

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Avx2(()))
    }

    pub(super) fn decode(self, ty: WeightType, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), ty.row_bytes(out.len()), "bytes of the row");
        // SAFETY: `self` proves that the instructions are there.
        unsafe { decode(ty, bytes, out) }
    }

    pub(super) fn matvec(self, ty: WeightType, rows: &[u8], x: &[f32], out: &mut [f32]) {
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(ty.row_bytes(x.len()))) {
            // SAFETY: `self` proves that the instructions are there.
            *out = unsafe { matvec_row(ty, row, x) };
        }
    }

    pub(super) fn dots(self, rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { dots(rows, x, out) }
    }

    pub(super) fn weighted_sum(self, rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { weighted_sum(rows, weights, out) }
    }

    pub(super) fn multiply(
        self,
        panel: &[f32],
        n_cols: usize,
        src: &[f32],
        src_stride: usize,
        dst: &mut [&mut [f32]],
        at: usize,
    ) {
        // SAFETY: `self` proves that the instructions are there.
        unsafe { multiply(panel, n_cols, src, src_stride, dst, at) }
    }
}

/// Calls `each` with the index of every whole group in `bytes` and its weights.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn for_groups(ty: WeightType, bytes: &[u8], mut each: impl FnMut(usize, Group)) {
    match ty {
        WeightType::F32 => {
            for (i, group) in blocks::<128>(bytes) {
                each(i, f32_group(group));
            }
        }
        WeightType::F16 => {
            for (i, group) in blocks::<64>(bytes) {
                each(i, f16_group(group));
            }
        }
        WeightType::BF16 => {
            for (i, group) in blocks::<64>(bytes) {
                each(i, bf16_group(group));
            }
        }
        WeightType::Q4_0 => {
            for (i, block) in blocks::<18>(bytes) {
                each(i, q4_0(block));
            }
        }
        WeightType::Q4_1 => {
            for (i, block) in blocks::<20>(bytes) {
                each(i, q4_1(block));
            }
        }
        WeightType::Q5_0 => {
            for (i, block) in blocks::<22>(bytes) {
                each(i, q5_0(block));
            }
        }
        WeightType::Q5_1 => {
            for (i, block) in blocks::<24>(bytes) {
                each(i, q5_1(block));
            }
        }
        WeightType::Q8_0 => {
            for (i, block) in blocks::<34>(bytes) {
                each(i, q8_0(block));
            }
        }
        WeightType::Q4_K => {
            for (i, block) in blocks::<144>(bytes) {
                q4_k(block, |group, weights| each(8 * i + group, weights));
            }
        }
        WeightType::Q5_K => {
            for (i, block) in blocks::<176>(bytes) {
                q5_k(block, |group, weights| each(8 * i + group, weights));
            }
        }
        WeightType::Q6_K => {
            for (i, block) in blocks::<210>(bytes) {
                q6_k(block, |group, weights| each(8 * i + group, weights));
            }
        }
    }
}

/// The blocks of a row with their indices. Each also fetches what lies ahead: rows follow each other,
/// and the hardware does not look beyond a page.
#[inline]
fn blocks<const BYTES: usize>(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8; BYTES])> {
    let fetch = |block: &&[u8; BYTES]| {
        for line in (0..BYTES).step_by(LINE_BYTES) {
            let ahead = block.as_ptr().wrapping_add(AHEAD_BYTES + line);
            // SAFETY: a hint, which may be given for any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
    };
    bytes.as_chunks().0.iter().inspect(fetch).enumerate()
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let whole = &bytes[..ty.row_bytes(groups.len() * GROUP)];
    for_groups(ty, whole, |i, weights| store(&mut groups[i], weights));
    if !rest.is_empty() {
        ty.decode(&bytes[whole.len()..], rest);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn matvec_row(ty: WeightType, bytes: &[u8], x: &[f32]) -> f32 {
    let (groups, rest) = x.as_chunks::<GROUP>();
    let whole = &bytes[..ty.row_bytes(groups.len() * GROUP)];
    let mut sums = [_mm256_setzero_ps(); 4];
    for_groups(ty, whole, |i, weights| {
        let x = load(&groups[i]);
        for lane in 0..4 {
            sums[lane] = _mm256_fmadd_ps(weights[lane], x[lane], sums[lane]);
        }
    });
    let [a, b, c, d] = sums;
    let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let sum = sum_lanes([
        sum,
        _mm256_setzero_ps(),
        _mm256_setzero_ps(),
        _mm256_setzero_ps(),
    ])[0];
    if rest.is_empty() {
        return sum;
    }
    let mut weights = [0.0; GROUP];
    let weights = &mut weights[..rest.len()];
    ty.decode(&bytes[whole.len()..], weights);
    sum + rest.iter().zip(weights).map(|(x, w)| x * *w).sum::<f32>()
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots(rows: Rows<'_>, x: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => {
            dots_of(cells, |eight| load_f32(eight), |x| x, rows.stride, x, out);
        }
        RowCells::F16(cells) => {
            dots_of(cells, |eight| load_f16(eight), f16_to_f32, rows.stride, x, out);
        }
    }
}

/// Four rows at a time, so that their lanes are summed up together.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots_of<T: Copy>(
    cells: &[T],
    load: impl Fn(&[T; 8]) -> __m256,
    widen: impl Fn(T) -> f32,
    stride: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let (x_eights, x_rest) = x.as_chunks::<8>();
    for (four, out) in out.chunks_mut(4).enumerate() {
        // Rows beyond the last are computed as the last and dropped.
        let row = |j: usize| {
            let start = (4 * four + j.min(out.len() - 1)) * stride;
            cells[start..][..x.len()].as_chunks::<8>()
        };
        let rows = [row(0), row(1), row(2), row(3)];
        let mut sums = [_mm256_setzero_ps(); 4];
        for (i, x) in x_eights.iter().enumerate() {
            let x = load_f32(x);
            for j in 0..4 {
                sums[j] = _mm256_fmadd_ps(load(&rows[j].0[i]), x, sums[j]);
            }
        }
        for ((out, sum), (_, rest)) in out.iter_mut().zip(sum_lanes(sums)).zip(rows) {
            let rest = rest.iter().zip(x_rest).map(|(&cell, x)| widen(cell) * x);
            *out = sum + rest.sum::<f32>();
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sum(rows: Rows<'_>, weights: &[f32], out: &mut [f32]) {
    match rows.cells {
        RowCells::F32(cells) => {
            weighted_sum_of(cells, |eight| load_f32(eight), |x| x, rows.stride, weights, out);
        }
        RowCells::F16(cells) => {
            weighted_sum_of(cells, |eight| load_f16(eight), f16_to_f32, rows.stride, weights, out);
        }
    }
}

/// 64 columns at a time, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_sum_of<T: Copy>(
    cells: &[T],
    load: impl Fn(&[T; 8]) -> __m256 + Copy,
    widen: impl Fn(T) -> f32,
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = out.len();
    let row = |j: usize| &cells[j * stride..][..width];
    let mut at = 0;
    while at + 64 <= width {
        weighted_columns::<T, 8>(row, load, at, weights, &mut out[at..at + 64]);
        at += 64;
    }
    while at + 8 <= width {
        weighted_columns::<T, 1>(row, load, at, weights, &mut out[at..at + 8]);
        at += 8;
    }
    for (col, out) in out.iter_mut().enumerate().skip(at) {
        let products = weights.iter().enumerate().map(|(j, weight)| weight * widen(row(j)[col]));
        *out += products.sum::<f32>();
    }
}

/// `N` times eight columns from `at` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_columns<'a, T: Copy + 'a, const N: usize>(
    row: impl Fn(usize) -> &'a [T],
    load: impl Fn(&[T; 8]) -> __m256,
    at: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let mut sums = [_mm256_setzero_ps(); N];
    for (j, weight) in weights.iter().enumerate() {
        let weight = _mm256_set1_ps(*weight);
        let (eights, _) = row(j)[at..][..8 * N].as_chunks::<8>();
        for i in 0..N {
            sums[i] = _mm256_fmadd_ps(load(&eights[i]), weight, sums[i]);
        }
    }
    let (eights, _) = out.as_chunks_mut::<8>();
    for (out, sum) in eights.iter_mut().zip(sums) {
        store_f32(out, _mm256_add_ps(load_f32(out), sum));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply(
    panel: &[f32],
    n_cols: usize,
    src: &[f32],
    src_stride: usize,
    dst: &mut [&mut [f32]],
    at: usize,
) {
    let weights = |j: usize| &panel[j * n_cols..][..n_cols];
    let src = |row: usize| &src[row * src_stride..][..n_cols];
    let n_out = panel.len() / n_cols;
    let (threes, rest) = dst.as_chunks_mut::<3>();
    for (i, dst) in threes.iter_mut().enumerate() {
        let rows = [src(3 * i), src(3 * i + 1), src(3 * i + 2)];
        outputs(weights, n_out, rows, dst, at);
    }
    for (i, dst) in rest.iter_mut().enumerate() {
        outputs(
            weights,
            n_out,
            [src(3 * threes.len() + i)],
            std::array::from_mut(dst),
            at,
        );
    }
}

/// All outputs of a panel for `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn outputs<'a, const R: usize>(
    weights: impl Fn(usize) -> &'a [f32],
    n_out: usize,
    rows: [&[f32]; R],
    dst: &mut [&mut [f32]; R],
    at: usize,
) {
    let whole = n_out / 4 * 4;
    for j in (0..whole).step_by(4) {
        let sums = tile(
            [weights(j), weights(j + 1), weights(j + 2), weights(j + 3)],
            rows,
        );
        for (dst, sums) in dst.iter_mut().zip(sums) {
            let dst = &mut dst[at + j..][..4];
            for (dst, sum) in dst.iter_mut().zip(sums) {
                *dst += sum;
            }
        }
    }
    for j in whole..n_out {
        for (dst, sums) in dst.iter_mut().zip(tile([weights(j)], rows)) {
            dst[at + j] += sums[0];
        }
    }
}

/// The dot products of `R` rows with `W` (at most 4) rows of weights. With 4 and 3 the sums, the
/// weights and an activation take all 16 registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile<const W: usize, const R: usize>(weights: [&[f32]; W], rows: [&[f32]; R]) -> [[f32; 4]; R] {
    let n_cols = weights[0].len();
    assert!(
        weights.iter().chain(&rows).all(|row| row.len() == n_cols),
        "columns"
    );
    let whole = n_cols / 8 * 8;
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    for col in (0..whole).step_by(8) {
        let mut w = [_mm256_setzero_ps(); W];
        for j in 0..W {
            // SAFETY: `col + 8 <= n_cols`, the length of every slice.
            w[j] = unsafe { _mm256_loadu_ps(weights[j].as_ptr().add(col)) };
        }
        for r in 0..R {
            // SAFETY: as above.
            let x = unsafe { _mm256_loadu_ps(rows[r].as_ptr().add(col)) };
            for j in 0..W {
                sums[r][j] = _mm256_fmadd_ps(w[j], x, sums[r][j]);
            }
        }
    }
    let mut out = [[0.0; 4]; R];
    for r in 0..R {
        out[r] = sum_lanes(sums[r]);
        for j in 0..W {
            for col in whole..n_cols {
                out[r][j] += weights[j][col] * rows[r][col];
            }
        }
    }
    out
}

/// The sum of the eight lanes of each vector.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_lanes([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let (low, high) = (
        _mm256_castps256_ps128(halves),
        _mm256_extractf128_ps::<1>(halves),
    );
    let mut out = [0.0; 4];
    // SAFETY: `out` has room for four.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(low, high)) };
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 8 floats.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f16(x: &[u16; 8]) -> __m256 {
    // SAFETY: `x` is 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_f32(out: &mut [f32; 8], x: __m256) {
    // SAFETY: `out` has room for 8 floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; GROUP]) -> Group {
    let (eights, _) = x.as_chunks::<8>();
    [load_f32(&eights[0]), load_f32(&eights[1]), load_f32(&eights[2]), load_f32(&eights[3])]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store(out: &mut [f32; GROUP], weights: Group) {
    let (eights, _) = out.as_chunks_mut::<8>();
    for (out, weights) in eights.iter_mut().zip(weights) {
        store_f32(out, weights);
    }
}

/// Eight bytes from `at` on, each in a lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bytes_at(bytes: &[u8], at: usize) -> __m256i {
    let eight: &[u8; 8] = bytes[at..].first_chunk().expect("blocks hold whole eights");
    // SAFETY: `eight` points to 8 bytes.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) })
}

/// 32 bytes from `at` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn group_at(bytes: &[u8], at: usize) -> [__m256i; 4] {
    [
        bytes_at(bytes, at),
        bytes_at(bytes, at + 8),
        bytes_at(bytes, at + 16),
        bytes_at(bytes, at + 24),
    ]
}

/// A 16-bit float at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scale_at(bytes: &[u8], at: usize) -> f32 {
    let bits = i32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

/// `scale * q`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled(scale: f32, q: [__m256i; 4]) -> Group {
    let scale = _mm256_set1_ps(scale);
    [
        _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q[0])),
        _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q[1])),
        _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q[2])),
        _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q[3])),
    ]
}

/// `scale * q + offset`. The product has at most 22 bits, so that rounding once changes nothing.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled_and_moved(scale: f32, offset: f32, q: [__m256i; 4]) -> Group {
    let (scale, offset) = (_mm256_set1_ps(scale), _mm256_set1_ps(offset));
    [
        _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(q[0]), offset),
        _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(q[1]), offset),
        _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(q[2]), offset),
        _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(q[3]), offset),
    ]
}

/// `q - middle`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn centred(middle: i32, q: [__m256i; 4]) -> [__m256i; 4] {
    let middle = _mm256_set1_epi32(middle);
    [
        _mm256_sub_epi32(q[0], middle),
        _mm256_sub_epi32(q[1], middle),
        _mm256_sub_epi32(q[2], middle),
        _mm256_sub_epi32(q[3], middle),
    ]
}

/// `q | bits`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn with_bits(q: [__m256i; 4], bits: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_or_si256(q[0], bits[0]),
        _mm256_or_si256(q[1], bits[1]),
        _mm256_or_si256(q[2], bits[2]),
        _mm256_or_si256(q[3], bits[3]),
    ]
}

/// `q & mask`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn masked(mask: i32, q: [__m256i; 4]) -> [__m256i; 4] {
    let mask = _mm256_set1_epi32(mask);
    [
        _mm256_and_si256(q[0], mask),
        _mm256_and_si256(q[1], mask),
        _mm256_and_si256(q[2], mask),
        _mm256_and_si256(q[3], mask),
    ]
}

/// `q >> SHIFT`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn shifted<const SHIFT: i32>(q: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_srli_epi32::<SHIFT>(q[0]),
        _mm256_srli_epi32::<SHIFT>(q[1]),
        _mm256_srli_epi32::<SHIFT>(q[2]),
        _mm256_srli_epi32::<SHIFT>(q[3]),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn f32_group(bytes: &[u8; 128]) -> Group {
    let at = bytes.as_ptr();
    // SAFETY: `bytes` has 4 times 32 bytes; the loads are unaligned.
    unsafe {
        [
            _mm256_loadu_ps(at.cast()),
            _mm256_loadu_ps(at.add(32).cast()),
            _mm256_loadu_ps(at.add(64).cast()),
            _mm256_loadu_ps(at.add(96).cast()),
        ]
    }
}

/// Four times eight 16-bit numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn eights(bytes: &[u8; 64]) -> [__m128i; 4] {
    let at = bytes.as_ptr();
    // SAFETY: `bytes` has 4 times 16 bytes; the loads are unaligned.
    unsafe {
        [
            _mm_loadu_si128(at.cast()),
            _mm_loadu_si128(at.add(16).cast()),
            _mm_loadu_si128(at.add(32).cast()),
            _mm_loadu_si128(at.add(48).cast()),
        ]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn f16_group(bytes: &[u8; 64]) -> Group {
    let [a, b, c, d] = eights(bytes);
    [
        _mm256_cvtph_ps(a),
        _mm256_cvtph_ps(b),
        _mm256_cvtph_ps(c),
        _mm256_cvtph_ps(d),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bf16_group(bytes: &[u8; 64]) -> Group {
    let [a, b, c, d] = eights(bytes);
    [upper_half(a), upper_half(b), upper_half(c), upper_half(d)]
}

/// The floats whose upper halves are given.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn upper_half(bits: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

/// The 32 quants in 16 bytes from `at` on: the low halves, then the high halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles_at(bytes: &[u8], at: usize) -> [__m256i; 4] {
    let (a, b) = (bytes_at(bytes, at), bytes_at(bytes, at + 8));
    let mask = _mm256_set1_epi32(15);
    [
        _mm256_and_si256(a, mask),
        _mm256_and_si256(b, mask),
        _mm256_srli_epi32::<4>(a),
        _mm256_srli_epi32::<4>(b),
    ]
}

/// The 32 bits of the word at `at`, each as the fifth bit of a quant.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fifth_bits_at(bytes: &[u8], at: usize) -> [__m256i; 4] {
    let word = i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let word = _mm256_set1_epi32(word);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let q = [
        _mm256_srlv_epi32(_mm256_slli_epi32::<4>(word), lanes),
        _mm256_srlv_epi32(_mm256_srli_epi32::<4>(word), lanes),
        _mm256_srlv_epi32(_mm256_srli_epi32::<12>(word), lanes),
        _mm256_srlv_epi32(_mm256_srli_epi32::<20>(word), lanes),
    ];
    masked(16, q)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_0(block: &[u8; 18]) -> Group {
    scaled(scale_at(block, 0), centred(8, nibbles_at(block, 2)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_1(block: &[u8; 20]) -> Group {
    scaled_and_moved(scale_at(block, 0), scale_at(block, 2), nibbles_at(block, 4))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_0(block: &[u8; 22]) -> Group {
    let q = with_bits(nibbles_at(block, 6), fifth_bits_at(block, 2));
    scaled(scale_at(block, 0), centred(16, q))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_1(block: &[u8; 24]) -> Group {
    let q = with_bits(nibbles_at(block, 8), fifth_bits_at(block, 4));
    scaled_and_moved(scale_at(block, 0), scale_at(block, 2), q)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q8_0(block: &[u8; 34]) -> Group {
    let at = block.as_ptr();
    // SAFETY: behind the scale `block` has 32 bytes.
    let q = unsafe {
        [
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(2).cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(10).cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(18).cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(26).cast())),
        ]
    };
    scaled(scale_at(block, 0), q)
}

/// `d * scale` and `-dmin * min` of the eight groups of a Q4_K or Q5_K block, which begins with `d`,
/// `dmin` and their 12 packed bytes (`get_scale_min_k4` in ggml-quants.c), four at a time.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn k_scales(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, mins, both) = (word(4), word(8), word(12));
    let high_bits = |word: u32| word >> 2 & 0x3030_3030;
    let low = [scales & 0x3f3f_3f3f, both & 0x0f0f_0f0f | high_bits(scales)];
    let scales = eight_times(scale_at(block, 0), low);
    let low = [
        mins & 0x3f3f_3f3f,
        both >> 4 & 0x0f0f_0f0f | high_bits(mins),
    ];
    (scales, eight_times(-scale_at(block, 2), low))
}

/// `factor` times each of eight bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn eight_times(factor: f32, [low, high]: [u32; 2]) -> [f32; 8] {
    let bytes = _mm_set_epi32(0, 0, high.cast_signed(), low.cast_signed());
    let bytes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    let mut out = [0.0; 8];
    // SAFETY: `out` has room for eight.
    unsafe {
        _mm256_storeu_ps(
            out.as_mut_ptr(),
            _mm256_mul_ps(bytes, _mm256_set1_ps(factor)),
        )
    };
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q4_k(block: &[u8; 144], mut each: impl FnMut(usize, Group)) {
    let (scales, offsets) = k_scales(block);
    for pair in 0..4 {
        let (low, high) = (2 * pair, 2 * pair + 1);
        let q = group_at(block, 16 + 32 * pair);
        each(
            low,
            scaled_and_moved(scales[low], offsets[low], masked(15, q)),
        );
        each(
            high,
            scaled_and_moved(scales[high], offsets[high], shifted::<4>(q)),
        );
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q5_k(block: &[u8; 176], mut each: impl FnMut(usize, Group)) {
    let (scales, offsets) = k_scales(block);
    let mut fifth = group_at(block, 16);
    for pair in 0..4 {
        let (low, high) = (2 * pair, 2 * pair + 1);
        let q = group_at(block, 48 + 32 * pair);
        let bits = masked(16, doubled::<4>(fifth));
        let weights = with_bits(masked(15, q), bits);
        each(low, scaled_and_moved(scales[low], offsets[low], weights));
        let bits = masked(16, doubled::<3>(fifth));
        let weights = with_bits(shifted::<4>(q), bits);
        each(high, scaled_and_moved(scales[high], offsets[high], weights));
        fifth = shifted::<2>(fifth);
    }
}

/// `q << SHIFT`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn doubled<const SHIFT: i32>(q: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_slli_epi32::<SHIFT>(q[0]),
        _mm256_slli_epi32::<SHIFT>(q[1]),
        _mm256_slli_epi32::<SHIFT>(q[2]),
        _mm256_slli_epi32::<SHIFT>(q[3]),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn q6_k(block: &[u8; 210], mut each: impl FnMut(usize, Group)) {
    let d = scale_at(block, 208);
    let step = |index: usize| d * f32::from(block[192 + index].cast_signed());
    for half in 0..2 {
        let first = group_at(block, 64 * half);
        let second = group_at(block, 64 * half + 32);
        let high = group_at(block, 128 + 32 * half);
        let groups = [
            with_bits(masked(15, first), masked(48, doubled::<4>(high))),
            with_bits(masked(15, second), masked(48, doubled::<2>(high))),
            with_bits(shifted::<4>(first), masked(48, high)),
            with_bits(shifted::<4>(second), masked(48, shifted::<2>(high))),
        ];
        for (i, q) in groups.into_iter().enumerate() {
            let group = 4 * half + i;
            each(
                group,
                scaled_by_halves(step(2 * group), step(2 * group + 1), centred(32, q)),
            );
        }
    }
}

/// The first 16 of `q` times `first`, the others times `second`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled_by_halves(first: f32, second: f32, q: [__m256i; 4]) -> Group {
    let (first, second) = (_mm256_set1_ps(first), _mm256_set1_ps(second));
    [
        _mm256_mul_ps(first, _mm256_cvtepi32_ps(q[0])),
        _mm256_mul_ps(first, _mm256_cvtepi32_ps(q[1])),
        _mm256_mul_ps(second, _mm256_cvtepi32_ps(q[2])),
        _mm256_mul_ps(second, _mm256_cvtepi32_ps(q[3])),
    ]
}
