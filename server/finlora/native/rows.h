/* Products of a few rows in float32 with vectors that lie anywhere in memory, as keys and values in
 * pages do. Each result is summed in an order of its own: it does not depend on the other rows.
 */

#ifndef FINLORA_ROWS_H
#define FINLORA_ROWS_H

#include "vectors.h"

#define GROUP 4      /* rows whose products with two vectors are in registers */
#define VECTORS_AHEAD 8 /* that are asked of memory */

INLINE void prefetch(const void *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)from + i, _MM_HINT_T0);
}

/* Four sums, each over one register. */
INLINE __m128 sums_of(const __m256 *x)
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* products[j][i] = rows[i] . vectors[j] for `count` rows, a constant, `stride` apart. An odd vector
 * is followed by any other one, and room for its products. With `fetches` VECTORS_AHEAD more
 * pointers follow, and vectors are asked of memory before their turn. */
INLINE void dot_products(const float *rows, int64_t stride, int count,
                         const void *const *vectors, int64_t num_vectors, int64_t size,
                         float (*products)[GROUP], int fetches, int half)
{
    for (int64_t j = 0; j < num_vectors; j += 2) {
        if (fetches) {
            prefetch(vectors[j + VECTORS_AHEAD - 1], size * (half ? 2 : 4));
            prefetch(vectors[j + VECTORS_AHEAD], size * (half ? 2 : 4));
        }
        __m256 sums[2][GROUP];
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++)
            sums[0][i] = sums[1][i] = _mm256_setzero_ps();
        for (int64_t d = 0; d < size; d += LANES) {
            const __m256 first = load(vectors[j], d, half), second = load(vectors[j + 1], d, half);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                const __m256 row = _mm256_loadu_ps(rows + i * stride + d);
                sums[0][i] = _mm256_fmadd_ps(row, first, sums[0][i]);
                sums[1][i] = _mm256_fmadd_ps(row, second, sums[1][i]);
            }
        }
        _mm_storeu_ps(products[j], sums_of(sums[0]));
        _mm_storeu_ps(products[j + 1], sums_of(sums[1]));
    }
}

/* Numbers [d, d + width * LANES) of `count` rows; both are constants. */
INLINE void add_part(float *rows, int64_t stride, int count, int64_t d, int width,
                     const void *const *vectors, int64_t num_vectors,
                     const float (*weights)[GROUP], int half)
{
    __m256 sums[GROUP][2];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int k = 0; k < width; k++)
            sums[i][k] = _mm256_loadu_ps(rows + i * stride + d + k * LANES);
    for (int64_t j = 0; j < num_vectors; j++) {
        __m256 part[2];
#pragma GCC unroll 2
        for (int k = 0; k < width; k++)
            part[k] = load(vectors[j], d + k * LANES, half);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            const __m256 weight = _mm256_broadcast_ss(weights[j] + i);
#pragma GCC unroll 2
            for (int k = 0; k < width; k++)
                sums[i][k] = _mm256_fmadd_ps(weight, part[k], sums[i][k]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int k = 0; k < width; k++)
            _mm256_storeu_ps(rows + i * stride + d + k * LANES, sums[i][k]);
}

/* rows[i] += sum over j of weights[j][i] vectors[j], for numbers [0, size). */
INLINE void add_products(float *rows, int64_t stride, int count, const void *const *vectors,
                         int64_t num_vectors, int64_t size, const float (*weights)[GROUP], int half)
{
    int64_t d = 0;
    for (; d + 2 * LANES <= size; d += 2 * LANES)
        add_part(rows, stride, count, d, 2, vectors, num_vectors, weights, half);
    if (d < size)
        add_part(rows, stride, count, d, 1, vectors, num_vectors, weights, half);
}

/* e^difference, of a score and a maximum. What is not visible, -inf, weighs nothing at all. */
INLINE __m256 weight_of(__m256 difference)
{
    const __m256 is_some = _mm256_cmp_ps(difference, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);
    return _mm256_and_ps(exponential(difference), is_some);
}

#endif
