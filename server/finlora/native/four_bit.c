/* Products with four-bit weights on CPUs that have AVX2, in float32.
 *
 * Weights lie in panels of 16 output features. For each input feature a panel holds 8 bytes; byte j
 * has the code of output j in its low half and that of output j + 8 in its high half. So one load
 * gives the codes of two vectors, a permutation of the code book turns them into numbers, and the
 * block scale of each output is the lane of a vector. Scales: [panels, blocks of a row, 16].
 *
 * A weight is code_book[code] * scale, rounded once: the number that bitsandbytes gives. A thread
 * dequantises a part of a panel that fits its first-level cache and multiplies up to ROWS rows with
 * it. Every product is summed in the order of the input features, so a row's results are the same
 * bits whatever other rows there are.
 */

#include "panels.h"

typedef struct {
    const uint8_t *codes;   /* [in_features, 8] */
    const float *scales;    /* [in_features / block_size, PANEL] */
    const float *code_book; /* [16] */
    int64_t block_size;
} panel;

/* A permutation looks up 8 numbers; the codes' highest bit chooses between two of them. */
static inline __m256 look_up(__m256i codes, __m256 lower, __m256 upper)
{
    __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, codes),
                            _mm256_permutevar8x32_ps(upper, codes), choice);
}

/* Input features [begin, end) of a panel, each as 16 numbers `stride` apart. */
static inline void dequantize(const panel *p, int64_t begin, int64_t end, float *out,
                              int64_t stride)
{
    const __m256 lower = _mm256_loadu_ps(p->code_book);
    const __m256 upper = _mm256_loadu_ps(p->code_book + 8);
    const __m256i low_half = _mm256_set1_epi32(15);
    for (int64_t k = begin; k < end;) {
        int64_t block = k / p->block_size;
        int64_t stop = (block + 1) * p->block_size < end ? (block + 1) * p->block_size : end;
        const __m256 scales_0 = _mm256_loadu_ps(p->scales + block * PANEL);
        const __m256 scales_1 = _mm256_loadu_ps(p->scales + block * PANEL + 8);
        for (; k < stop; k++, out += stride) {
            __m256i both =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p->codes + k * 8)));
            __m256i first = _mm256_and_si256(both, low_half);
            __m256i second = _mm256_srli_epi32(both, 4);
            _mm256_storeu_ps(out, _mm256_mul_ps(look_up(first, lower, upper), scales_0));
            _mm256_storeu_ps(out + 8, _mm256_mul_ps(look_up(second, lower, upper), scales_1));
        }
    }
}

static void multiply_panel(const panel *p, int64_t num_rows, int64_t in_features, rows all)
{
    float weights[DEPTH * PANEL] __attribute__((aligned(64)));
    for (int64_t row = 0; row < num_rows; row += ROWS) {
        int64_t count = num_rows - row < ROWS ? num_rows - row : ROWS;
        for (int64_t begin = 0; begin < in_features; begin += DEPTH) {
            int64_t depth = in_features - begin < DEPTH ? in_features - begin : DEPTH;
            rows part = {all.x + row * all.x_stride + begin, all.x_stride,
                         all.y + row * all.y_stride, all.y_stride};
            dequantize(p, begin, begin + depth, weights, PANEL);
            multiply_rows(count, part, depth, weights, 0, begin == 0);
        }
    }
}

static panel panel_at(int64_t number, const uint8_t *codes, const float *scales,
                      const float *code_book, int64_t in_features, int64_t block_size)
{
    panel p = {codes + number * in_features * (PANEL / 2),
               scales + number * (in_features / block_size) * PANEL, code_book, block_size};
    return p;
}

/* y [num_rows, 16 * num_panels] = x [num_rows, in_features] W^T. */
void finlora_four_bit_product(const float *x, int64_t num_rows, int64_t in_features,
                              const uint8_t *codes, const float *scales, const float *code_book,
                              int64_t num_panels, int64_t block_size, float *y, int num_threads)
{
    const int64_t width = num_panels * PANEL;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < num_panels; i++) {
        panel p = panel_at(i, codes, scales, code_book, in_features, block_size);
        rows all = {x, in_features, y + i * PANEL, width};
        multiply_panel(&p, num_rows, in_features, all);
    }
}

/* W^T [in_features, 16 * num_panels] in float32. */
void finlora_four_bit_weights(int64_t in_features, const uint8_t *codes, const float *scales,
                              const float *code_book, int64_t num_panels, int64_t block_size,
                              float *out, int num_threads)
{
    const int64_t width = num_panels * PANEL;
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < num_panels; i++) {
        panel p = panel_at(i, codes, scales, code_book, in_features, block_size);
        dequantize(&p, 0, in_features, out + i * PANEL, width);
    }
}
