/* Products with four-bit weights on CPUs that have AVX2, in float32: x W^T, and y W for a backward
 * pass.
 *
 * Weights lie in panels of 16 output features. For each input feature a panel holds 8 bytes; byte j
 * has the code of output j in its low half and that of output j + 8 in its high half. So one load
 * gives the codes of two vectors, a permutation of the code book turns them into numbers, and the
 * block scale of each output is the lane of a vector. Scales: [panels, blocks of a row, 16].
 *
 * A weight is code_book[code] * scale, rounded once: the number that bitsandbytes gives. A thread
 * dequantises a part of the weight that fits its first-level cache and multiplies up to ROWS rows
 * with it. Every product is summed in the order of the features, so a row's results are the same
 * bits whatever other rows there are.
 */

#include "panels.h"

#define CODES (PANEL / 2) /* bytes that a panel has of an input feature */

typedef struct {
    const uint8_t *codes;   /* [num_panels, in_features, CODES] */
    const float *scales;    /* [num_panels, in_features / block_size, PANEL] */
    const float *code_book; /* [16] */
    int64_t in_features;
    int64_t num_panels;
    int64_t block_size;
} weight;

typedef struct {
    __m256 lower, upper; /* the code book */
} numbers;

INLINE numbers numbers_of(const weight *w)
{
    numbers n = {_mm256_loadu_ps(w->code_book), _mm256_loadu_ps(w->code_book + 8)};
    return n;
}

/* A permutation looks up 8 numbers; the codes' highest bit chooses between two of them. */
INLINE __m256 look_up(__m256i codes, numbers n)
{
    __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(n.lower, codes),
                            _mm256_permutevar8x32_ps(n.upper, codes), choice);
}

INLINE const float *scales_at(const weight *w, int64_t panel, int64_t in_feature)
{
    const int64_t num_blocks = w->in_features / w->block_size;
    return w->scales + (panel * num_blocks + in_feature / w->block_size) * PANEL;
}

/* Input features [begin, end) of a panel, each as its 16 outputs, `stride` apart. */
INLINE void dequantize(const weight *w, int64_t panel, int64_t begin, int64_t end, float *out,
                       int64_t stride)
{
    const numbers n = numbers_of(w);
    const __m256i low_half = _mm256_set1_epi32(15);
    const uint8_t *codes = w->codes + panel * w->in_features * CODES;
    for (int64_t k = begin; k < end;) {
        int64_t block_end = (k / w->block_size + 1) * w->block_size;
        int64_t stop = block_end < end ? block_end : end;
        const float *scales = scales_at(w, panel, k);
        const __m256 scales_0 = _mm256_loadu_ps(scales), scales_1 = _mm256_loadu_ps(scales + 8);
        for (; k < stop; k++, out += stride) {
            __m256i both =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + k * CODES)));
            __m256i first = _mm256_and_si256(both, low_half);
            __m256i second = _mm256_srli_epi32(both, 4);
            _mm256_storeu_ps(out, _mm256_mul_ps(look_up(first, n), scales_0));
            _mm256_storeu_ps(out + 8, _mm256_mul_ps(look_up(second, n), scales_1));
        }
    }
}

/* The bytes of 16 input features, transposed: out[j] has byte j of each. */
INLINE void transpose_codes(const uint8_t *codes, __m128i out[CODES])
{
    __m128i pairs[CODES], fours[CODES], eights[CODES];
    /* Features i and i + 8 are neighbours first, so that each step's halves end in order. */
#pragma GCC unroll 8
    for (int i = 0; i < CODES; i++)
        pairs[i] = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(codes + i * CODES)),
                                     _mm_loadl_epi64((const __m128i *)(codes + (i + 8) * CODES)));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        fours[2 * i] = _mm_unpacklo_epi8(pairs[i], pairs[i + 4]);
        fours[2 * i + 1] = _mm_unpackhi_epi8(pairs[i], pairs[i + 4]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) {
            const __m128i first = fours[2 * i + part], second = fours[2 * (i + 2) + part];
            eights[4 * i + 2 * part] = _mm_unpacklo_epi8(first, second);
            eights[4 * i + 2 * part + 1] = _mm_unpackhi_epi8(first, second);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[2 * i] = _mm_unpacklo_epi8(eights[i], eights[i + 4]);
        out[2 * i + 1] = _mm_unpackhi_epi8(eights[i], eights[i + 4]);
    }
}

INLINE void store_scaled(__m128i codes, numbers n, float scale, float *out)
{
    const __m256 factor = _mm256_set1_ps(scale);
    const __m256i first = _mm256_cvtepu8_epi32(codes);
    const __m256i second = _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8));
    _mm256_storeu_ps(out, _mm256_mul_ps(look_up(first, n), factor));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(look_up(second, n), factor));
}

/* Output features [begin, end) of whole panels, each as 16 input features from `in_feature` on,
 * which lie in one block. */
INLINE void dequantize_across(const weight *w, int64_t in_feature, int64_t begin, int64_t end,
                              float *out)
{
    const numbers n = numbers_of(w);
    const __m128i low_half = _mm_set1_epi8(15);
    for (int64_t panel = begin / PANEL; panel < end / PANEL; panel++, out += PANEL * PANEL) {
        const float *scales = scales_at(w, panel, in_feature);
        __m128i codes[CODES];
        transpose_codes(w->codes + (panel * w->in_features + in_feature) * CODES, codes);
#pragma GCC unroll 8
        for (int j = 0; j < CODES; j++) {
            const __m128i first = _mm_and_si128(codes[j], low_half);
            const __m128i second = _mm_and_si128(_mm_srli_epi16(codes[j], 4), low_half);
            store_scaled(first, n, scales[j], out + j * PANEL);
            store_scaled(second, n, scales[j + CODES], out + (j + CODES) * PANEL);
        }
    }
}

/* A product's rows [num_rows, num_features], and what is added: low [num_ranks,
 * num_rows], transposed, times columns [num_ranks, width]. */
typedef struct {
    const float *x, *low, *columns;
    int64_t num_rows, num_features, num_ranks;
    float *y; /* [num_rows, width] */
    int64_t width;
    int adds; /* to what y holds */
} operands;

/* 16 columns of a product: of x W^T, or, `across`, of x W. */
INLINE void multiply_panel(const weight *w, int64_t number, int across, const operands *o)
{
    float weights[DEPTH * PANEL] __attribute__((aligned(64)));
    for (int64_t row = 0; row < o->num_rows; row += ROWS) {
        const int64_t count = o->num_rows - row < ROWS ? o->num_rows - row : ROWS;
        rows part = {o->x + row * o->num_features, o->num_features,
                     o->y + row * o->width + number * PANEL, o->width};
        for (int64_t begin = 0; begin < o->num_features; begin += DEPTH, part.x += DEPTH) {
            const int64_t left = o->num_features - begin, depth = left < DEPTH ? left : DEPTH;
            if (across)
                dequantize_across(w, number * PANEL, begin, begin + depth, weights);
            else
                dequantize(w, number, begin, begin + depth, weights, PANEL);
            multiply_rows(count, part, 1, depth, weights, PANEL, 0, begin == 0 && !o->adds);
        }
        const rows low = {o->low + row, 1, part.y, part.y_stride};
        if (o->num_ranks)
            multiply_rows(count, low, o->num_rows, o->num_ranks, o->columns + number * PANEL,
                          o->width, 0, 0);
    }
}

/* y [num_rows, out_features] = x [num_rows, in_features] W^T + low^T columns. */
void finlora_four_bit_product(const float *x, int64_t num_rows, int64_t in_features,
                              const uint8_t *codes, const float *scales, const float *code_book,
                              int64_t num_panels, int64_t block_size, const float *low,
                              const float *columns, int64_t num_ranks, float *y, int num_threads)
{
    const weight w = {codes, scales, code_book, in_features, num_panels, block_size};
    const operands o = {x, low, columns, num_rows, in_features, num_ranks, y, num_panels * PANEL,
                        0};
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < num_panels; i++)
        multiply_panel(&w, i, 0, &o);
}

/* x [num_rows, in_features] = y [num_rows, out_features] W + low^T columns, added to what is there
 * where `adds`. */
void finlora_four_bit_product_back(const float *y, int64_t num_rows, int64_t in_features,
                                   const uint8_t *codes, const float *scales,
                                   const float *code_book, int64_t num_panels, int64_t block_size,
                                   const float *low, const float *columns, int64_t num_ranks,
                                   float *x, int adds, int num_threads)
{
    const weight w = {codes, scales, code_book, in_features, num_panels, block_size};
    const operands o = {y, low, columns, num_rows, num_panels * PANEL, num_ranks, x, in_features,
                        adds};
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < in_features / PANEL; i++)
        multiply_panel(&w, i, 1, &o);
}

/* W^T [in_features, 16 * num_panels] in float32. */
void finlora_four_bit_weights(int64_t in_features, const uint8_t *codes, const float *scales,
                              const float *code_book, int64_t num_panels, int64_t block_size,
                              float *out, int num_threads)
{
    const weight w = {codes, scales, code_book, in_features, num_panels, block_size};
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < num_panels; i++)
        dequantize(&w, i, 0, in_features, out + i * PANEL, num_panels * PANEL);
}
