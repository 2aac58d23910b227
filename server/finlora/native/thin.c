/* Products of float32 matrices of which one is thin: LoRA's, whose ranks are few.
 *
 * torch's library packs both matrices first, which here takes longer than the product.
 */

#include "panels.h"

/* A part of the depth at a time, so that its part of the panel stays in the first-level cache. */
static void multiply_panel(const float *m, int64_t width, int64_t num_rows, int64_t depth, rows all)
{
    for (int64_t begin = 0; begin < depth; begin += DEPTH, all.x += DEPTH) {
        const int64_t size = depth - begin < DEPTH ? depth - begin : DEPTH;
        multiply_rows(num_rows, all, 1, size, m + begin * width, width, 0, begin == 0);
    }
}

/* y [num_rows, width] = x [num_rows, depth] m [depth, width], of few rows; the width is a multiple
 * of PANEL. */
void finlora_thin_product(const float *x, int64_t num_rows, int64_t depth, const float *m,
                          int64_t width, float *y, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t column = 0; column < width; column += PANEL) {
        const rows all = {x, depth, y + column, width};
        multiply_panel(m + column, width, num_rows, depth, all);
    }
}
