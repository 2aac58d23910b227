/* An adapter's update of up to GROUP rows where rows and weights are bfloat16, by the dot products of
 * AVX512_BF16. Numbers between A and B are a bfloat16 and what is left of them in another one: the pair
 * meets the same weight twice.
 */

#ifndef FINLORA_LORA_ROWS_AVX512_H
#define FINLORA_LORA_ROWS_AVX512_H

#include "rows.h"

#define WIDE 32    /* numbers of a register */
#define VECTORS_AT_ONCE 4 /* whose products with GROUP rows are in registers */

/* Numbers [index, index + count) of an array, and zeros where that is less than a register. */
INLINE __m512i load_some(const void *from, int64_t index, int64_t count)
{
    const __mmask32 mask = count < WIDE ? (1u << count) - 1 : ~0u;
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)from + index);
}

/* Four sums, each over one register. */
INLINE __m128 wide_sums_of(const __m512 *x)
{
    __m256 halves[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        halves[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]),
                                  _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x[i]), 1)));
    return sums_of(halves);
}

/* products[j][i] = rows[i] . vectors[j] for `count` rows, a constant. VECTORS_AHEAD more pointers
 * follow, and room for VECTORS_AT_ONCE - 1 more products. */
INLINE void half_dot_products(const uint16_t *rows, int64_t stride, int count,
                              const void *const *vectors, int64_t num_vectors, int64_t size,
                              float (*products)[GROUP])
{
    for (int64_t j = 0; j < num_vectors; j += VECTORS_AT_ONCE) {
        __m512 sums[VECTORS_AT_ONCE][GROUP];
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS_AT_ONCE; k++) {
            prefetch(vectors[j + k + VECTORS_AT_ONCE], size * 2);
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++)
                sums[k][i] = _mm512_setzero_ps();
        }
        for (int64_t d = 0; d < size; d += WIDE) {
            __m512bh row[GROUP];
#pragma GCC unroll 4
            for (int i = 0; i < count; i++)
                row[i] = (__m512bh)load_some(rows + i * stride, d, size - d);
#pragma GCC unroll 4
            for (int k = 0; k < VECTORS_AT_ONCE; k++) {
                const __m512bh vector = (__m512bh)load_some(vectors[j + k], d, size - d);
#pragma GCC unroll 4
                for (int i = 0; i < count; i++)
                    sums[k][i] = _mm512_dpbf16_ps(sums[k][i], row[i], vector);
            }
        }
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS_AT_ONCE; k++)
            _mm_storeu_ps(products[j + k], wide_sums_of(sums[k]));
    }
}

/* Of numbers for each row, the pairs of bfloat16 whose sums are nearly they. */
INLINE void pair_up(const float (*weights)[GROUP], int64_t num_vectors, uint32_t (*pairs)[GROUP])
{
    for (int64_t j = 0; j < num_vectors; j++) {
        const __m128 weight = _mm_loadu_ps(weights[j]);
        const __m128i most = (__m128i)_mm_cvtneps_pbh(weight);
        const __m128 there = _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(most), 16));
        const __m128i left = (__m128i)_mm_cvtneps_pbh(_mm_sub_ps(weight, there));
        _mm_storeu_si128((__m128i *)pairs[j], _mm_unpacklo_epi16(most, left));
    }
}

/* Numbers in float32: of every eight, four in each register. */
typedef struct {
    __m512 halves[2];
} wide_numbers;

INLINE wide_numbers widen(__m512i x)
{
    const __m512i zero = _mm512_setzero_si512();
    return (wide_numbers){{_mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, x)),
                           _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, x))}};
}

INLINE __m512i narrow(wide_numbers x)
{
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(x.halves[1], x.halves[0]);
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), halves);
}

/* rows[i] += sum over j of the weight of pairs[j][i] times vectors[j]; then, with a magnitude, rows =
 * magnitude (rows - bias) + bias. */
INLINE void add_half_products(uint16_t *rows, int64_t stride, int count,
                              const void *const *vectors, int64_t num_vectors, int64_t size,
                              const uint32_t (*pairs)[GROUP], const uint16_t *magnitude,
                              const uint16_t *bias)
{
    for (int64_t d = 0; d < size; d += WIDE) {
        wide_numbers sums[GROUP];
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            sums[i] = widen(load_some(rows + i * stride, d, size - d));
        for (int64_t j = 0; j < num_vectors; j++) {
            const __m512i vector = load_some(vectors[j], d, size - d);
            const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(vector, vector);
            const __m512bh high = (__m512bh)_mm512_unpackhi_epi16(vector, vector);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                const __m512bh weights = (__m512bh)_mm512_set1_epi32((int)pairs[j][i]);
                sums[i].halves[0] = _mm512_dpbf16_ps(sums[i].halves[0], low, weights);
                sums[i].halves[1] = _mm512_dpbf16_ps(sums[i].halves[1], high, weights);
            }
        }
        wide_numbers m, b = widen(_mm512_setzero_si512());
        if (magnitude)
            m = widen(load_some(magnitude, d, size - d));
        if (magnitude && bias)
            b = widen(load_some(bias, d, size - d));
        const __mmask32 mask = size - d < WIDE ? (1u << (size - d)) - 1 : ~0u;
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
#pragma GCC unroll 2
            for (int half = 0; magnitude && half < 2; half++)
                sums[i].halves[half] = _mm512_fmadd_ps(
                    m.halves[half], _mm512_sub_ps(sums[i].halves[half], b.halves[half]),
                    b.halves[half]);
            _mm512_mask_storeu_epi16(rows + i * stride + d, mask, narrow(sums[i]));
        }
    }
}

#endif
