/* Products with weights in bfloat16 on CPUs that have AVX2 but compute in float32.
 *
 * Weights lie in panels of 16 output features: [panels, in_features, 16]. They are widened in
 * registers, anew for every GROUP of rows: it hides behind the sums' arithmetic, while a buffer of
 * widened weights would have to be written and read again.
 */

#include "panels.h"

static void multiply_panel(const uint16_t *panel, int64_t num_rows, int64_t in_features, rows all)
{
    for (int64_t row = 0; row < num_rows; row += ROWS) {
        int64_t count = num_rows - row < ROWS ? num_rows - row : ROWS;
        for (int64_t begin = 0; begin < in_features; begin += DEPTH) {
            int64_t depth = in_features - begin < DEPTH ? in_features - begin : DEPTH;
            rows part = {all.x + row * all.x_stride + begin, all.x_stride,
                         all.y + row * all.y_stride, all.y_stride};
            multiply_rows(count, part, 1, depth, panel + begin * PANEL, PANEL, 1, begin == 0);
        }
    }
}

/* y [num_rows, 16 * num_panels] = x [num_rows, in_features] W^T. */
void finlora_half_product(const float *x, int64_t num_rows, int64_t in_features,
                          const uint16_t *panels, int64_t num_panels, float *y, int num_threads)
{
    const int64_t width = num_panels * PANEL;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < num_panels; i++) {
        rows all = {x, in_features, y + i * PANEL, width};
        multiply_panel(panels + i * in_features * PANEL, num_rows, in_features, all);
    }
}
