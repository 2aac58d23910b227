/* Products of rows in bfloat16 with weights in bfloat16, on CPUs that have AVX512_BF16; the sums stay
 * in float32.
 *
 * Weights lie in panels of 32 output features: [panels, in_features / 2, 32, 2].
 */

#include "dots_avx512.h"

#define PANELS_AT_ONCE 2 /* that a thread takes: a thread that lost its core holds up few */

INLINE void multiply_tile(int count, rows r, const uint16_t *weights, int64_t depth, int is_first)
{
    sums s[TILE];
#pragma GCC unroll 12
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            s[i].halves[half] =
                is_first ? _mm512_setzero_ps()
                         : _mm512_loadu_ps(r.y + i * r.y_stride + half * HALF_PANEL);
    add_pairs(count, r.x, r.x_stride, weights, depth, s);
#pragma GCC unroll 12
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            _mm512_storeu_ps(r.y + i * r.y_stride + half * HALF_PANEL, s[i].halves[half]);
}

/* Not inline: among other loops a compiler may keep sums in memory. */
static __attribute__((noinline)) void multiply_tiles(int64_t num_rows, rows r,
                                                     const uint16_t *weights, int64_t depth,
                                                     int is_first)
{
#define MULTIPLY(count) multiply_tile(count, r, weights, depth, is_first)
    FOR_TILES(num_rows, r, MULTIPLY)
}

static void multiply_panel(const uint16_t *panel, int64_t num_rows, int64_t in_features, rows all)
{
    for (int64_t row = 0; row < num_rows; row += ROWS) {
        const int64_t count = num_rows - row < ROWS ? num_rows - row : ROWS;
        for (int64_t begin = 0; begin < in_features; begin += DEPTH) {
            const int64_t left = in_features - begin, depth = left < DEPTH ? left : DEPTH;
            const rows part = {all.x + row * all.x_stride + begin, all.x_stride,
                               all.y + row * all.y_stride, all.y_stride};
            multiply_tiles(count, part, panel + begin * PANEL, depth, begin == 0);
        }
    }
}

/* y [num_rows, 32 * num_panels] = x [num_rows, in_features] W^T; in_features is even. */
void finlora_half_dots(const uint16_t *x, int64_t num_rows, int64_t in_features,
                       const uint16_t *panels, int64_t num_panels, float *y, int num_threads)
{
    const int64_t width = num_panels * PANEL;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < num_panels; i++) {
        const rows all = {x, in_features, y + i * PANEL, width};
        multiply_panel(panels + i * in_features * PANEL, num_rows, in_features, all);
    }
}
