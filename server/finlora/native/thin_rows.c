/* Products of float32 rows with a few vectors: what LoRA makes of them first, a number for each rank. */

#include "rows.h"

#define MAX_VECTORS 64 /* at a time */
#define GROUPS_AT_ONCE 8 /* that a thread takes: one that has lost its core holds up the other less */
#define MIN_PARALLEL (256 * 1024) /* products from which on a second thread helps */

/* Columns [row, row + count) of y. */
INLINE void multiply_group(const float *x, int64_t depth, int count, const float *m,
                           int64_t num_vectors, float *y, int64_t y_stride)
{
    float products[MAX_VECTORS][GROUP];
    const void *vectors[MAX_VECTORS];
    for (int64_t j = 0; j < num_vectors; j++)
        vectors[j] = m + j * depth;
    if (num_vectors % 2)
        vectors[num_vectors] = m;
    dot_products(x, depth, count, vectors, num_vectors, depth, products, 0, 0);
    for (int64_t j = 0; j < num_vectors; j++)
        for (int i = 0; i < count; i++)
            y[j * y_stride + i] = products[j][i];
}

INLINE void multiply_rows(const float *x, int64_t num_rows, int64_t depth, const float *m,
                          int64_t num_vectors, float *y, int64_t y_stride)
{
    switch (num_rows) {
    case 4: multiply_group(x, depth, 4, m, num_vectors, y, y_stride); break;
    case 3: multiply_group(x, depth, 3, m, num_vectors, y, y_stride); break;
    case 2: multiply_group(x, depth, 2, m, num_vectors, y, y_stride); break;
    case 1: multiply_group(x, depth, 1, m, num_vectors, y, y_stride); break;
    }
}

/* y [num_vectors, num_rows] = m [num_vectors, depth] x^T [depth, num_rows]; the depth is a multiple of
 * LANES. */
void finlora_thin_rows_product(const float *x, int64_t num_rows, int64_t depth, const float *m,
                            int64_t num_vectors, float *y, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, GROUPS_AT_ONCE) \
    if (num_rows * depth * num_vectors >= MIN_PARALLEL)
    for (int64_t row = 0; row < num_rows; row += GROUP)
        for (int64_t first = 0; first < num_vectors; first += MAX_VECTORS) {
            const int64_t left = num_vectors - first, num = left < MAX_VECTORS ? left : MAX_VECTORS;
            const int64_t count = num_rows - row < GROUP ? num_rows - row : GROUP;
            multiply_rows(x + row * depth, count, depth, m + first * depth, num,
                          y + first * num_rows + row, num_rows);
        }
}
