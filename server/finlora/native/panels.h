/* Products of rows with a panel of 16 output features whose weights are float32 or bfloat16. */

#ifndef FINLORA_PANELS_H
#define FINLORA_PANELS_H

#include "tile.h"

#define PANEL 16  /* output features: two vectors */
#define DEPTH 256 /* input features at a time: 16 KiB in float32, half of a first-level cache */
#define ROWS 192  /* rows multiplied with them; their DEPTH features fit a second-level cache */
#define PANELS_AT_ONCE 2 /* that a thread takes: a thread that lost its core holds up few */

typedef struct {
    const float *x; /* [any, in_features], from the first of the features at hand on */
    int64_t x_stride;
    float *y; /* [any, PANEL] */
    int64_t y_stride;
} rows;

INLINE void multiply(int count, rows r, int64_t apart, int64_t depth, const void *weights,
                     int64_t stride, int half, int is_first)
{
    multiply_tile(count, 2, r.x, r.x_stride, apart, weights, stride, half, depth, r.y, r.y_stride,
                  !is_first);
}

/* How many rows to multiply next. The sums of 1 to 4 rows take equally long, since each waits for
 * its last addition; so that few tiles are so small, 7 to 9 rows are halved. */
INLINE int64_t rows_of_tile(int64_t num_rows)
{
    if (num_rows <= TILE)
        return num_rows;
    return num_rows < TILE + 4 ? (num_rows + 1) / 2 : TILE;
}

/* Adds `depth` input features of rows, `apart` numbers from each other, to the rows' sums; their
 * weights are `stride` numbers apart. Not inline: among other loops a compiler may keep sums in
 * memory, which halves the speed. */
static __attribute__((noinline)) void multiply_rows(int64_t num_rows, rows r, int64_t apart,
                                                    int64_t depth, const void *weights,
                                                    int64_t stride, int half, int is_first)
{
    while (num_rows) {
        const int64_t count = rows_of_tile(num_rows);
        switch (count) {
        case 6: multiply(6, r, apart, depth, weights, stride, half, is_first); break;
        case 5: multiply(5, r, apart, depth, weights, stride, half, is_first); break;
        case 4: multiply(4, r, apart, depth, weights, stride, half, is_first); break;
        case 3: multiply(3, r, apart, depth, weights, stride, half, is_first); break;
        case 2: multiply(2, r, apart, depth, weights, stride, half, is_first); break;
        case 1: multiply(1, r, apart, depth, weights, stride, half, is_first); break;
        }
        num_rows -= count;
        r.x += count * r.x_stride;
        r.y += count * r.y_stride;
    }
}

#endif
