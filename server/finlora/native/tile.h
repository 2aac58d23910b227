/* The innermost product of matrices: a few rows by one or two vectors of columns, whose sums are
 * registers: 12 of 16, beside two vectors of b and one number of a.
 *
 * Every sum is made in the order of the depth, so a row's results are the same bits whatever other
 * rows there are.
 */

#ifndef FINLORA_TILE_H
#define FINLORA_TILE_H

#include "vectors.h"

#define TILE 6 /* rows at most */

/* c [count, width * LANES] = a b, or c += a b where `adds`. Number k of row i is at
 * a[i * a_stride + k * a_step]. `count`, `width` and `half`, b's type, are constants in every call. */
INLINE void multiply_tile(int count, int width, const float *a, int64_t a_stride, int64_t a_step,
                          const void *b, int64_t b_stride, int half, int64_t depth, float *c,
                          int64_t c_stride, int adds)
{
    __m256 sums[TILE][2];
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            sums[i][j] = adds ? _mm256_loadu_ps(c + i * c_stride + j * LANES) : _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; k++) {
        __m256 columns[2];
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            columns[j] = load(b, k * b_stride + j * LANES, half);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const __m256 number = _mm256_broadcast_ss(a + i * a_stride + k * a_step);
#pragma GCC unroll 2
            for (int j = 0; j < width; j++)
                sums[i][j] = _mm256_fmadd_ps(number, columns[j], sums[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int j = 0; j < width; j++)
            _mm256_storeu_ps(c + i * c_stride + j * LANES, sums[i][j]);
}

#endif
