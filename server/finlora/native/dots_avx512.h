/* The innermost product of matrices in bfloat16: a few rows by 32 columns, summed in float32 by the
 * dot products of pairs that AVX512_BF16 has. 24 of 32 registers are sums, so that a vector of
 * weights serves 12 rows.
 *
 * Every sum is made in the order of the depth, so a row's results are the same bits whatever other
 * rows there are.
 */

#ifndef FINLORA_DOTS_AVX512_H
#define FINLORA_DOTS_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL 32      /* columns: two vectors of sums */
#define HALF_PANEL 16
#define TILE 12       /* rows at most */
#define DEPTH 256     /* input features at a time: 16 KiB, half of a first-level cache */
#define ROWS 192      /* multiplied with them: 16 tiles, whose features fit a second-level cache */

typedef struct {
    const uint16_t *x; /* [any, depth], bfloat16, from the first of the features at hand on */
    int64_t x_stride;
    float *y; /* [any, PANEL] */
    int64_t y_stride;
} rows;

typedef struct {
    __m512 halves[2];
} sums;

/* Two neighbouring numbers of a row, for every column. */
INLINE __m512bh pair_at(const uint16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

INLINE void clear(int count, sums *s)
{
#pragma GCC unroll 12
    for (int i = 0; i < count; i++)
        s[i].halves[0] = s[i].halves[1] = _mm512_setzero_ps();
}

/* What a pair of features adds to the sums of `count` rows, a constant. */
INLINE void add_pair(int count, const uint16_t *x, int64_t x_stride, const __m512bh weights[2],
                     sums *s)
{
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) {
        const __m512bh pair = pair_at(x + i * x_stride);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            s[i].halves[half] = _mm512_dpbf16_ps(s[i].halves[half], weights[half], pair);
    }
}

/* The same for features whose weights are [features / 2, PANEL, 2]. */
INLINE void add_pairs(int count, const uint16_t *x, int64_t x_stride, const uint16_t *weights,
                      int64_t num_features, sums *s)
{
    for (int64_t k = 0; k < num_features; k += 2) {
        const __m512bh both[2] = {(__m512bh)_mm512_loadu_si512(weights + k * PANEL),
                                  (__m512bh)_mm512_loadu_si512(weights + k * PANEL + PANEL)};
        add_pair(count, x + k, x_stride, both, s);
    }
}

/* Rows to multiply next, so that the last tiles are about as large as the others. */
INLINE int64_t rows_of_tile(int64_t num_rows)
{
    const int64_t num_tiles = (num_rows + TILE - 1) / TILE;
    return (num_rows + num_tiles - 1) / num_tiles;
}

/* CALL(count) for one tile of rows `r` after the other. */
#define FOR_TILES(num_rows, r, CALL) \
    for (int64_t left = num_rows, count; left; \
         left -= count, r.x += count * r.x_stride, r.y += count * r.y_stride) { \
        count = rows_of_tile(left); \
        FOR_ROWS(count, CALL) \
    }

/* CALL(count) with a constant for each number of rows that a tile has. */
#define FOR_ROWS(count, CALL) \
    switch (count) { \
    case 12: CALL(12); break; \
    case 11: CALL(11); break; \
    case 10: CALL(10); break; \
    case 9: CALL(9); break; \
    case 8: CALL(8); break; \
    case 7: CALL(7); break; \
    case 6: CALL(6); break; \
    case 5: CALL(5); break; \
    case 4: CALL(4); break; \
    case 3: CALL(3); break; \
    case 2: CALL(2); break; \
    case 1: CALL(1); break; \
    }

#endif
