/* Products of small float32 matrices that lie in caches, a band of rows at a time. Columns are
 * multiples of LANES.
 */

#ifndef FINLORA_BANDS_H
#define FINLORA_BANDS_H

#include "vectors.h"

#define BAND 6 /* rows whose products are in registers, by two vectors of columns */

/* Columns [0, width * LANES) of BAND rows: c = a b, or c += a b. Number k of row i is at
 * a[i * a_row + k * a_step]. */
INLINE void product_part(const float *a, int64_t a_row, int64_t a_step, const float *b,
                         int64_t b_stride, int64_t depth, float *c, int64_t c_stride, int width,
                         int adds)
{
    __m256 sums[BAND][2];
#pragma GCC unroll 6
    for (int i = 0; i < BAND; i++)
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            sums[i][j] = adds ? _mm256_loadu_ps(c + i * c_stride + j * LANES) : _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        __m256 part[2];
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            part[j] = _mm256_loadu_ps(b + k * b_stride + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < BAND; i++) {
            const __m256 number = _mm256_broadcast_ss(a + i * a_row + k * a_step);
#pragma GCC unroll 2
            for (int j = 0; j < width; j++)
                sums[i][j] = _mm256_fmadd_ps(number, part[j], sums[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < BAND; i++)
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            _mm256_storeu_ps(c + i * c_stride + j * LANES, sums[i][j]);
}

INLINE void product(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_stride,
                    int64_t depth, float *c, int64_t c_stride, int64_t num_columns, int adds)
{
    int64_t j = 0;
    for (; j + 2 * LANES <= num_columns; j += 2 * LANES)
        product_part(a, a_row, a_step, b + j, b_stride, depth, c + j, c_stride, 2, adds);
    if (j < num_columns)
        product_part(a, a_row, a_step, b + j, b_stride, depth, c + j, c_stride, 1, adds);
}

/* Of LANES rows and columns. */
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
