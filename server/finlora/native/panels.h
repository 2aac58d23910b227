/* Products of rows with a panel of 16 output features whose weights are float32 or bfloat16.
 *
 * Every product is summed in the order of the input features, so a row's results are the same bits
 * whatever other rows there are.
 */

#ifndef FINLORA_PANELS_H
#define FINLORA_PANELS_H

#include "vectors.h"

#define PANEL 16  /* output features: two vectors */
#define DEPTH 256 /* input features at a time: 16 KiB in float32, half of a first-level cache */
#define ROWS 192  /* rows multiplied with them; their DEPTH features fit a second-level cache */
#define GROUP 6   /* rows whose sums are in registers: 12 of 16, beside two weights and one input */
#define PANELS_AT_ONCE 2 /* that a thread takes: a thread that lost its core holds up few */

typedef struct {
    const float *x; /* [any, in_features], from the first of the features at hand on */
    int64_t x_stride;
    float *y; /* [any, PANEL] */
    int64_t y_stride;
} rows;

/* Adds `depth` input features of `count` rows, `apart` numbers from each other, to the rows' sums;
 * their weights are `stride` numbers apart. `count` and `half` are constants in every call, so that
 * the sums are registers. */
INLINE void multiply(int count, rows r, int64_t apart, int64_t depth, const void *weights,
                     int64_t stride, int half, int is_first)
{
    __m256 sums[GROUP][2];
#pragma GCC unroll 6
    for (int i = 0; i < count; i++) {
        sums[i][0] = is_first ? _mm256_setzero_ps() : _mm256_loadu_ps(r.y + i * r.y_stride);
        sums[i][1] = is_first ? _mm256_setzero_ps() : _mm256_loadu_ps(r.y + i * r.y_stride + 8);
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; k++) {
        __m256 weights_0 = load(weights, k * stride, half);
        __m256 weights_1 = load(weights, k * stride + 8, half);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            __m256 input = _mm256_broadcast_ss(r.x + i * r.x_stride + k * apart);
            sums[i][0] = _mm256_fmadd_ps(input, weights_0, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(input, weights_1, sums[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++) {
        _mm256_storeu_ps(r.y + i * r.y_stride, sums[i][0]);
        _mm256_storeu_ps(r.y + i * r.y_stride + 8, sums[i][1]);
    }
}

INLINE void multiply_rows(int64_t num_rows, rows r, int64_t apart, int64_t depth,
                          const void *weights, int64_t stride, int half, int is_first)
{
    for (; num_rows >= GROUP; num_rows -= GROUP) {
        multiply(GROUP, r, apart, depth, weights, stride, half, is_first);
        r.x += GROUP * r.x_stride;
        r.y += GROUP * r.y_stride;
    }
    switch (num_rows) {
    case 5: multiply(5, r, apart, depth, weights, stride, half, is_first); break;
    case 4: multiply(4, r, apart, depth, weights, stride, half, is_first); break;
    case 3: multiply(3, r, apart, depth, weights, stride, half, is_first); break;
    case 2: multiply(2, r, apart, depth, weights, stride, half, is_first); break;
    case 1: multiply(1, r, apart, depth, weights, stride, half, is_first); break;
    }
}

#endif
