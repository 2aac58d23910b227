/* What rows.h has, of rows and vectors in bfloat16, by the dot products of AVX512_BF16. A weight of
 * vectors is a bfloat16 and what is left of it in another one: the pair meets each number twice.
 */

#ifndef FINLORA_HALF_ROWS_AVX512_H
#define FINLORA_HALF_ROWS_AVX512_H

#include "rows.h"

#define WIDE 32    /* numbers of a register */
#define VECTORS_AT_ONCE 4 /* whose products with GROUP rows are in registers */

/* Numbers [index, index + count) of an array, as far as a register has them. */
INLINE __mmask32 some(int64_t count) { return count < WIDE ? (1u << count) - 1 : ~0u; }

INLINE __m512i load_some(const void *from, int64_t index, int64_t count)
{
    return _mm512_maskz_loadu_epi16(some(count), (const uint16_t *)from + index);
}

INLINE void store_some(void *to, int64_t index, int64_t count, __m512i x)
{
    _mm512_mask_storeu_epi16((uint16_t *)to + index, some(count), x);
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
 * follow, and room for VECTORS_AT_ONCE - 1 more products. With `fetches` vectors are asked of memory
 * before their turn. */
INLINE void half_dot_products(const uint16_t *rows, int64_t stride, int count,
                              const void *const *vectors, int64_t num_vectors, int64_t size,
                              float (*products)[GROUP], int fetches)
{
    for (int64_t j = 0; j < num_vectors; j += VECTORS_AT_ONCE) {
        __m512 sums[VECTORS_AT_ONCE][GROUP];
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS_AT_ONCE; k++) {
            if (fetches)
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

/* sums[i] += sum over j of the weight of pairs[j][i] times vectors[j], numbers [d, d + left) of them. */
INLINE void add_half_products(wide_numbers *sums, int count, const void *const *vectors,
                              int64_t num_vectors, int64_t d, int64_t left,
                              const uint32_t (*pairs)[GROUP])
{
    for (int64_t j = 0; j < num_vectors; j++) {
        const __m512i vector = load_some(vectors[j], d, left);
        const __m512bh both[2] = {(__m512bh)_mm512_unpacklo_epi16(vector, vector),
                                  (__m512bh)_mm512_unpackhi_epi16(vector, vector)};
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            const __m512bh weight = (__m512bh)_mm512_set1_epi32((int)pairs[j][i]);
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                sums[i].halves[half] =
                    _mm512_dpbf16_ps(sums[i].halves[half], both[half], weight);
        }
    }
}

#endif
