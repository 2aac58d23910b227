/* Products of rows in bfloat16 with four-bit weights, on CPUs that have AVX512_BF16.
 *
 * Codes lie in panels of 32 output features: [panels, in_features / 4, 16, 2] words of four codes. Word
 * [i, j] is of output features i, in its first and third code from below, and 16 + i, and of input
 * features j, in its first and second code, and 2 + j. So one shift and one permutation of words make
 * 32 codes the numbers that the dot products take. Block scales, in bfloat16, are [panels, blocks, 32].
 * A block's sum is scaled, not its weights: what is multiplied are the sixteen numbers, rounded to
 * bfloat16, themselves.
 */

#include "dots_avx512.h"
#include "kernels.h"

#define FEATURES 4 /* whose codes are in a register */

/* The sixteen numbers twice: of an index of five bits the highest is of the code beside. */
INLINE __m512i code_book_of(const float numbers[16])
{
    const __m256i book = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(numbers));
    return _mm512_broadcast_i64x4(book);
}

/* Four input features: [2, PANEL, 2]. */
INLINE void look_up(const uint8_t *codes, __m512i book, __m512bh out[FEATURES])
{
    const __m512i words = _mm512_loadu_si512(codes);
#pragma GCC unroll 4
    for (int i = 0; i < FEATURES; i++)
        out[i] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * i), book);
}

INLINE const uint8_t *codes_at(const four_bit_weight *w, int64_t panel, int64_t in_feature)
{
    return w->codes + (panel * w->in_features + in_feature) * (PANEL / 2);
}

/* The scales of a panel's outputs in the block of an input feature. */
INLINE sums scales_at(const four_bit_weight *w, int64_t panel, int64_t in_feature)
{
    const int64_t block = (panel * w->in_features + in_feature) / w->block_size;
    const uint16_t *from = (const uint16_t *)w->scales + block * PANEL;
    sums scales;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m256i bits = _mm256_loadu_si256((const __m256i *)(from + half * HALF_PANEL));
        scales.halves[half] =
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    return scales;
}

/* Input features [begin, end) of a panel as [(end - begin) / 2, PANEL, 2]. */
static void dequantize(const four_bit_weight *w, int64_t panel, int64_t begin, int64_t end,
                       uint16_t *out)
{
    const __m512i book = code_book_of(w->code_book);
    const uint8_t *codes = codes_at(w, panel, begin);
    for (int64_t k = begin; k < end; k += FEATURES, codes += FEATURES * PANEL / 2) {
        __m512bh numbers[FEATURES];
        /* Those of the next part: they come while this one is multiplied. */
        _mm_prefetch((const char *)codes + DEPTH * PANEL / 2, _MM_HINT_T1);
        look_up(codes, book, numbers);
#pragma GCC unroll 4
        for (int i = 0; i < FEATURES; i++, out += PANEL)
            _mm512_storeu_si512(out, (__m512i)numbers[i]);
    }
}

/* y = scales * s, or y += that. */
INLINE void scale(int count, rows r, sums scales, const sums *s, int is_first)
{
#pragma GCC unroll 12
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            float *y = r.y + i * r.y_stride + half * HALF_PANEL;
            const __m512 before = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(y);
            _mm512_storeu_ps(y, _mm512_fmadd_ps(scales.halves[half], s[i].halves[half], before));
        }
}

/* A tile's product with features [begin, end) of a panel, whole blocks, that were dequantised. */
INLINE void multiply_tile(int count, const four_bit_weight *w, int64_t panel, int64_t begin,
                          int64_t end, const uint16_t *weights, rows r)
{
    for (int64_t k = begin; k < end; k += w->block_size) {
        sums s[TILE];
        clear(count, s);
        add_pairs(count, r.x + k, r.x_stride, weights + (k - begin) * PANEL, w->block_size, s);
        scale(count, r, scales_at(w, panel, k), s, k == 0);
    }
}

/* The same of all features, each looked up once: for rows that are one tile. */
INLINE void multiply_few(int count, const four_bit_weight *w, int64_t panel, rows r)
{
    const __m512i book = code_book_of(w->code_book);
    for (int64_t begin = 0; begin < w->in_features; begin += w->block_size) {
        const uint8_t *codes = codes_at(w, panel, begin);
        sums s[TILE];
        clear(count, s);
        for (int64_t k = 0; k < w->block_size; k += FEATURES, codes += FEATURES * PANEL / 2) {
            __m512bh numbers[FEATURES];
            look_up(codes, book, numbers);
            add_pair(count, r.x + begin + k, r.x_stride, numbers, s);
            add_pair(count, r.x + begin + k + 2, r.x_stride, numbers + 2, s);
        }
        scale(count, r, scales_at(w, panel, begin), s, begin == 0);
    }
}

/* Not inline: among other loops a compiler may keep sums in memory. */
static __attribute__((noinline)) void multiply_tiles(const four_bit_weight *w, int64_t panel,
                                                     int64_t begin, int64_t end,
                                                     const uint16_t *weights, int64_t num_rows,
                                                     rows r)
{
#define MULTIPLY(count) multiply_tile(count, w, panel, begin, end, weights, r)
    FOR_TILES(num_rows, r, MULTIPLY)
}

static __attribute__((noinline)) void multiply_one_tile(const four_bit_weight *w, int64_t panel,
                                                        int64_t num_rows, rows r)
{
#define MULTIPLY_FEW(count) multiply_few(count, w, panel, r)
    FOR_ROWS(num_rows, MULTIPLY_FEW)
}

/* To bfloat16, the nearest. */
static void keep(const float *sums, int64_t num_rows, uint16_t *y, int64_t stride)
{
    for (int64_t i = 0; i < num_rows; i++, sums += PANEL, y += stride) {
        const __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + HALF_PANEL);
        _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

static void multiply_panel(const four_bit_weight *w, int64_t panel, const uint16_t *x,
                           int64_t num_rows, uint16_t *y)
{
    uint16_t weights[DEPTH * PANEL] __attribute__((aligned(64)));
    float sums[ROWS * PANEL] __attribute__((aligned(64)));
    const int64_t step = DEPTH / w->block_size * w->block_size;
    const rows r = {x, w->in_features, sums, PANEL};
    if (num_rows <= TILE)
        multiply_one_tile(w, panel, num_rows, r);
    for (int64_t begin = 0; num_rows > TILE && begin < w->in_features; begin += step) {
        const int64_t left = w->in_features - begin, end = begin + (left < step ? left : step);
        dequantize(w, panel, begin, end, weights);
        multiply_tiles(w, panel, begin, end, weights, num_rows, r);
    }
    keep(sums, num_rows, y, w->out_features);
}

/* y [num_rows, out_features] = x [num_rows, in_features] W^T, both in bfloat16. A block has at most
 * DEPTH weights. */
void finlora_four_bit_half_product(const four_bit_weight *w, const uint16_t *x, int64_t num_rows,
                                   uint16_t *y, int num_threads)
{
    /* Many rows of a panel take long, and a layer may have few panels: a thread takes one at a time, so
     * that none is left waiting for another. With few rows memory is what takes long; it gives
     * neighbours sooner. */
    const int at_once = num_rows <= TILE ? 2 : 1;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, at_once)
    for (int64_t panel = 0; panel < w->out_features / PANEL; panel++)
        for (int64_t row = 0; row < num_rows; row += ROWS) {
            const int64_t count = num_rows - row < ROWS ? num_rows - row : ROWS;
            multiply_panel(w, panel, x + row * w->in_features, count,
                           y + row * w->out_features + panel * PANEL);
        }
}
