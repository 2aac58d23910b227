/* Products of small float32 matrices that lie in caches, a band of rows at a time. Columns are
 * multiples of LANES.
 */

#ifndef FINLORA_BANDS_H
#define FINLORA_BANDS_H

#include "tile.h"

#define BAND TILE

/* c = a b, or c += a b, of BAND rows. Number k of row i is at a[i * a_row + k * a_step]. */
INLINE void product(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_stride,
                    int64_t depth, float *c, int64_t c_stride, int64_t num_columns, int adds)
{
    int64_t j = 0;
    for (; j + 2 * LANES <= num_columns; j += 2 * LANES)
        multiply_tile(BAND, 2, a, a_row, a_step, b + j, b_stride, 0, depth, c + j, c_stride, adds);
    if (j < num_columns)
        multiply_tile(BAND, 1, a, a_row, a_step, b + j, b_stride, 0, depth, c + j, c_stride, adds);
}

#endif
