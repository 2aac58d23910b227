/* Products with weights in bfloat16 on CPUs that have AVX2 but compute in float32.
 *
 * Weights lie in panels of 16 output features: [panels, in_features, 16]. They are widened in
 * registers, anew for every TILE of rows: it hides behind the sums' arithmetic, while a buffer of
 * widened weights would have to be written and read again.
 */

#include "panels.h"

/* Of the outputs, on the way back: each is summed by itself, whatever number of threads there is. */
#define PARTS 8
#define PANELS_OF_DEPTH (DEPTH / PANEL)

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

/* A panel's weights of 16 input features, [PANEL outputs, 16]. */
static void widen_across(const uint16_t *weights, float *out)
{
    float wide[PANEL * PANEL];
    for (int i = 0; i < PANEL * PANEL; i += LANES)
        _mm256_storeu_ps(wide + i, load(weights, i, 1));
    for (int output = 0; output < PANEL; output += LANES)
        for (int input = 0; input < PANEL; input += LANES)
            transpose_square(wide + input * PANEL + output, PANEL, out + output * PANEL + input,
                             PANEL);
}

/* What the outputs of panels [begin, end) add to the result, [num_rows, in_features]. */
static void multiply_part(const uint16_t *panels, int64_t begin, int64_t end, const float *y,
                          int64_t y_stride, int64_t num_rows, int64_t in_features, float *sums)
{
    float weights[DEPTH * PANEL] __attribute__((aligned(64)));
    for (int64_t first = begin; first < end; first += PANELS_OF_DEPTH) {
        const int64_t count = end - first < PANELS_OF_DEPTH ? end - first : PANELS_OF_DEPTH;
        for (int64_t input = 0; input < in_features; input += PANEL) {
            for (int64_t i = 0; i < count; i++)
                widen_across(panels + ((first + i) * in_features + input) * PANEL,
                             weights + i * PANEL * PANEL);
            const rows all = {y + first * PANEL, y_stride, sums + input, in_features};
            multiply_rows(num_rows, all, 1, count * PANEL, weights, PANEL, 0, first == begin);
        }
    }
}

/* x [num_rows, in_features] = y [num_rows, 16 * num_panels] W; in_features is a multiple of 16. There is
 * room for `sums` [PARTS, num_rows, in_features]. */
void finlora_half_product_back(const float *y, int64_t num_rows, int64_t in_features,
                               const uint16_t *panels, int64_t num_panels, float *sums, float *x,
                               int num_threads)
{
    const int64_t size = num_rows * in_features;
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t part = 0; part < PARTS; part++) {
            const int64_t begin = part * num_panels / PARTS, end = (part + 1) * num_panels / PARTS;
            for (int64_t i = 0; begin == end && i < size; i++)
                sums[part * size + i] = 0;
            multiply_part(panels, begin, end, y, num_panels * PANEL, num_rows, in_features,
                          sums + part * size);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < size; i++) {
            float sum = 0;
            for (int64_t part = 0; part < PARTS; part++)
                sum += sums[part * size + i];
            x[i] = sum;
        }
    }
}
