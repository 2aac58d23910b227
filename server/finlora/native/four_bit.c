/* Products with four-bit weights on CPUs that have AVX2, in float32: x W^T, and y W for a backward
 * pass.
 *
 * Weights lie in panels of 16 output features. For each input feature a panel holds 8 bytes; byte j
 * has the code of output j in its low half and that of output j + 8 in its high half. So one load
 * gives the codes of eight vectors, and the block scale of each output is the lane of a vector.
 * Scales: [panels, blocks of a row, 16]. A block has a multiple of 16 input features.
 *
 * A weight is code_book[code] * scale, rounded once: the number that bitsandbytes gives. A thread
 * dequantises a part of the weight that fits its first-level cache and multiplies up to ROWS rows
 * with it; for very few rows the numbers do not leave the registers. Every product is summed in the
 * order of the features, so a row's results are the same bits whatever other rows there are.
 */

#include "codes.h"
#include "kernels.h"
#include "panels.h"

#define CODES (PANEL / 2) /* bytes that a panel has of an input feature */
#define FEATURES 4        /* whose codes are looked up at once */
#define FEW 2             /* rows for which the numbers stay in registers */

INLINE const float *scales_at(const four_bit_weight *w, int64_t panel, int64_t in_feature)
{
    const int64_t num_blocks = w->in_features / w->block_size;
    return (const float *)w->scales + (panel * num_blocks + in_feature / w->block_size) * PANEL;
}

typedef struct {
    __m256 halves[2];
} panel_scales;

INLINE panel_scales scales_of(const four_bit_weight *w, int64_t panel, int64_t in_feature)
{
    const float *scales = scales_at(w, panel, in_feature);
    panel_scales s = {{_mm256_loadu_ps(scales), _mm256_loadu_ps(scales + LANES)}};
    return s;
}

INLINE __m256i codes_at(const four_bit_weight *w, int64_t panel, int64_t in_feature)
{
    const uint8_t *codes = w->codes + (panel * w->in_features + in_feature) * CODES;
    return arranged(_mm256_loadu_si256((const __m256i *)codes));
}

/* Input features [begin, end) of a panel, each as its 16 outputs, `stride` apart. */
INLINE void dequantize(const four_bit_weight *w, int64_t panel, int64_t begin, int64_t end,
                       float *out, int64_t stride)
{
    const code_book book = code_book_of(w->code_book);
    for (int64_t k = begin; k < end;) {
        int64_t block_end = (k / w->block_size + 1) * w->block_size;
        int64_t stop = block_end < end ? block_end : end;
        const panel_scales scales = scales_of(w, panel, k);
        for (; k < stop; k += FEATURES, out += FEATURES * stride) {
            const __m256i codes = codes_at(w, panel, k);
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                __m256 numbers[FEATURES];
                look_up(codes, half, &book, numbers);
#pragma GCC unroll 4
                for (int i = 0; i < FEATURES; i++)
                    _mm256_storeu_ps(out + i * stride + half * LANES,
                                     _mm256_mul_ps(numbers[i], scales.halves[half]));
            }
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

/* Output features [begin, end) of whole panels, each as 16 input features from `in_feature` on,
 * which lie in one block. */
INLINE void dequantize_across(const four_bit_weight *w, int64_t in_feature, int64_t begin,
                              int64_t end, float *out)
{
    const code_book book = code_book_of(w->code_book);
    for (int64_t panel = begin / PANEL; panel < end / PANEL; panel++, out += PANEL * PANEL) {
        const float *scales = scales_at(w, panel, in_feature);
        __m128i codes[CODES];
        transpose_codes(w->codes + (panel * w->in_features + in_feature) * CODES, codes);
#pragma GCC unroll 4
        for (int j = 0; j < CODES; j += 2) {
            const __m256i two = arranged(_mm256_set_m128i(codes[j + 1], codes[j]));
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const int64_t output = j + half * CODES;
                __m256 numbers[VECTORS];
                look_up(two, half, &book, numbers);
#pragma GCC unroll 4
                for (int i = 0; i < VECTORS; i++)
                    _mm256_storeu_ps(out + output * PANEL + i * LANES,
                                     _mm256_mul_ps(numbers[i],
                                                   _mm256_set1_ps(scales[output + i / 2])));
            }
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

/* y = x W^T for 16 outputs of `count` rows, a constant. */
INLINE void multiply_few(const four_bit_weight *w, int64_t panel, int count, rows r)
{
    const code_book book = code_book_of(w->code_book);
    __m256 sums[FEW][2];
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
        sums[i][0] = sums[i][1] = _mm256_setzero_ps();
    for (int64_t begin = 0; begin < w->in_features; begin += w->block_size) {
        const panel_scales scales = scales_of(w, panel, begin);
        for (int64_t k = begin; k < begin + w->block_size; k += FEATURES) {
            const __m256i codes = codes_at(w, panel, k);
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                __m256 numbers[FEATURES];
                look_up(codes, half, &book, numbers);
#pragma GCC unroll 4
                for (int j = 0; j < FEATURES; j++) {
                    const __m256 column = _mm256_mul_ps(numbers[j], scales.halves[half]);
#pragma GCC unroll 2
                    for (int i = 0; i < count; i++)
                        sums[i][half] =
                            _mm256_fmadd_ps(_mm256_broadcast_ss(r.x + i * r.x_stride + k + j),
                                            column, sums[i][half]);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            _mm256_storeu_ps(r.y + i * r.y_stride + half * LANES, sums[i][half]);
}

/* The same for up to ROWS rows, or, `across`, y = x W, which may be added to what y holds. */
INLINE void multiply_many(const four_bit_weight *w, int64_t number, int across, int64_t count,
                          rows r, int64_t num_features, int adds)
{
    float weights[DEPTH * PANEL] __attribute__((aligned(64)));
    for (int64_t begin = 0; begin < num_features; begin += DEPTH, r.x += DEPTH) {
        const int64_t left = num_features - begin, depth = left < DEPTH ? left : DEPTH;
        if (across)
            dequantize_across(w, number * PANEL, begin, begin + depth, weights);
        else
            dequantize(w, number, begin, begin + depth, weights, PANEL);
        multiply_rows(count, r, 1, depth, weights, PANEL, 0, begin == 0 && !adds);
    }
}

/* 16 columns of a product: of x W^T, or, `across`, of x W. */
INLINE void multiply_panel(const four_bit_weight *w, int64_t number, int across, const operands *o)
{
    for (int64_t row = 0; row < o->num_rows; row += ROWS) {
        const int64_t count = o->num_rows - row < ROWS ? o->num_rows - row : ROWS;
        const rows part = {o->x + row * o->num_features, o->num_features,
                           o->y + row * o->width + number * PANEL, o->width};
        if (!across && count == 1)
            multiply_few(w, number, 1, part);
        else if (!across && count == FEW)
            multiply_few(w, number, FEW, part);
        else
            multiply_many(w, number, across, count, part, o->num_features, o->adds);
        const rows low = {o->low + row, 1, part.y, part.y_stride};
        if (o->num_ranks)
            multiply_rows(count, low, o->num_rows, o->num_ranks, o->columns + number * PANEL,
                          o->width, 0, 0);
    }
}

/* y [num_rows, out_features] = x [num_rows, in_features] W^T + low^T columns. */
void finlora_four_bit_product(const four_bit_weight *w, const float *x, int64_t num_rows,
                              const float *low, const float *columns, int64_t num_ranks, float *y,
                              int num_threads)
{
    const operands o = {x, low, columns, num_rows, w->in_features, num_ranks,
                        y, w->out_features, 0};
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < w->out_features / PANEL; i++)
        multiply_panel(w, i, 0, &o);
}

/* x [num_rows, in_features] = y [num_rows, out_features] W + low^T columns, added to what is there
 * where `adds`. */
void finlora_four_bit_product_back(const four_bit_weight *w, const float *y, int64_t num_rows,
                                   const float *low, const float *columns, int64_t num_ranks,
                                   float *x, int adds, int num_threads)
{
    const operands o = {y, low, columns, num_rows, w->out_features, num_ranks,
                        x, w->in_features, adds};
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, PANELS_AT_ONCE)
    for (int64_t i = 0; i < w->in_features / PANEL; i++)
        multiply_panel(w, i, 1, &o);
}

/* W^T [in_features, out_features] in float32. */
void finlora_four_bit_weights(const four_bit_weight *w, float *out, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < w->out_features / PANEL; i++)
        dequantize(w, i, 0, w->in_features, out + i * PANEL, w->out_features);
}
