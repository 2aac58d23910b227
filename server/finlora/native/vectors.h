/* Eight numbers at a time, from memory in float32 or bfloat16; computed in float32.
 *
 * `half` is a constant wherever these are inlined: 1 for bfloat16, 0 for float32.
 */

#ifndef FINLORA_VECTORS_H
#define FINLORA_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

/* Number `index` of an array. */
INLINE const void *at(const void *from, int64_t index, int half)
{
    return (const char *)from + index * (half ? 2 : 4);
}

/* To the nearest number in bfloat16, the even one of two. */
INLINE __m128i narrowed(__m256 x)
{
#ifdef __AVX512BF16__
    return (__m128i)_mm256_cvtneps_pbh(x);
#else
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), nan, is_nan);
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
#endif
}

INLINE __m256 widened(__m128i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

INLINE __m256 load(const void *from, int64_t index, int half)
{
    if (!half)
        return _mm256_loadu_ps((const float *)from + index);
    return widened(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + index)));
}

/* What a store keeps of a number. */
INLINE __m256 rounded(__m256 x, int half) { return half ? widened(narrowed(x)) : x; }

INLINE void store(void *to, int64_t index, __m256 x, int half)
{
    if (!half) {
        _mm256_storeu_ps((float *)to + index, x);
        return;
    }
    _mm_storeu_si128((__m128i *)((uint16_t *)to + index), narrowed(x));
}

INLINE float sum_of(__m256 x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* e^x to 2 units in the last place: e^x = 2^n e^r with |r| <= ln(2) / 2, and Cephes' polynomial
 * (expf.c) for e^r. Below -87.3 the smallest normal number, above 88 nearly the largest; NaN stays. */
INLINE __m256 exponential(__m256 x)
{
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), x); /* NaN is the second operand, which is kept */
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), x);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
}

/* Of a square of LANES by LANES numbers, whose rows are so far apart. */
INLINE void transpose_square(const float *from, int64_t stride, float *to, int64_t to_stride)
{
    __m256 x[LANES], y[LANES];
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 2) {
        const __m256 one = _mm256_loadu_ps(from + i * stride);
        const __m256 other = _mm256_loadu_ps(from + (i + 1) * stride);
        x[i] = _mm256_unpacklo_ps(one, other);
        x[i + 1] = _mm256_unpackhi_ps(one, other);
    }
#pragma GCC unroll 2
    for (int i = 0; i < LANES; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            y[i + 2 * j] = _mm256_shuffle_ps(x[i + j], x[i + 2 + j], 0x44);
            y[i + 2 * j + 1] = _mm256_shuffle_ps(x[i + j], x[i + 2 + j], 0xee);
        }
#pragma GCC unroll 4
    for (int i = 0; i < LANES / 2; i++) {
        _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(y[i], y[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(y[i], y[i + 4], 0x31));
    }
}

#endif
