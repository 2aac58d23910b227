/* Attention of a training batch packed into one row of tokens, and its gradients: float32 or
 * bfloat16 in memory, float32 in between.
 *
 * The first num_shared tokens begin every row; behind them lie the rows' own tokens. The work is cut
 * into spans of tokens by key heads. A span is walked over in blocks: some tokens of one row by the
 * query heads that share a key head. A block meets its keys in chunks, whose products with it are
 * small matrices in first- and second-level caches. The forward pass keeps a running maximum and sum
 * of every row of scores (online softmax, arXiv 1805.02867); the backward pass finds the weights
 * again from both (FlashAttention, arXiv 2205.14135), which is exact for scores of any size, as their
 * logarithm would not be.
 *
 * Other spans' tokens, the shared ones above all, get their gradients in a workspace of the span,
 * and these are summed in the order of spans. So no result depends on the number of threads.
 */

#include "packed_attention.h"

static float greatest_of(__m256 x)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* To a greater maximum. */
static void scale_sums(const attention *a, tiles *t, int64_t row, float difference)
{
    const __m256 kept = weight_of(_mm256_set1_ps(difference));
    float *sums = t->sums + row * stride_of(a);
    t->weights[row] *= _mm256_cvtss_f32(kept);
    for (int64_t d = 0; d < a->size; d += LANES)
        _mm256_storeu_ps(sums + d, _mm256_mul_ps(kept, _mm256_loadu_ps(sums + d)));
}

/* Turns a row's scores in the columns of its band into weights. */
static void weigh(const attention *a, tiles *t, int64_t row, columns band, columns seen)
{
    float *scores = t->scores + row * KEYS_STRIDE;
    const float before = t->maxima[row];
    __m256 maxima = _mm256_set1_ps(before);
    for (int64_t j = band.begin; j < band.end; j += LANES) {
        const __m256 score = masked(_mm256_loadu_ps(scores + j), j, seen);
        _mm256_storeu_ps(scores + j, score);
        maxima = _mm256_max_ps(score, maxima);
    }
    const float now = greatest_of(maxima);
    if (now > before && t->weights[row] > 0)
        scale_sums(a, t, row, before - now);
    __m256 sums = _mm256_setzero_ps();
    for (int64_t j = band.begin; j < band.end; j += LANES) {
        const __m256 score = _mm256_loadu_ps(scores + j);
        const __m256 weight = weight_of(_mm256_sub_ps(score, _mm256_set1_ps(now)));
        _mm256_storeu_ps(scores + j, weight);
        sums = _mm256_add_ps(sums, weight);
    }
    t->maxima[row] = now;
    t->weights[row] += sum_of(sums);
}

static void attend_band(const attention *a, const chunk *c, int64_t row, tiles *t)
{
    const int64_t stride = stride_of(a);
    const columns band = seen_by_band(a, c, t->positions + row);
    if (band.begin >= band.end)
        return;
    float *scores = t->scores + row * KEYS_STRIDE;
    multiply(t->query + row * stride, stride, t->key_columns + band.begin, a->size,
             scores + band.begin, band.end - band.begin);
    for (int64_t i = row; i < row + BAND; i++)
        weigh(a, t, i, band, seen_by(a, c, t->positions[i], t->positions[i]));
    add_weighted(scores + band.begin, t->value + band.begin * stride, stride,
                 band.end - band.begin, t->sums + row * stride, a->size);
}

INLINE void end_band(const attention *a, const block *b, int64_t row, const tiles *t, int half)
{
    for (int64_t i = row; i < least(row + BAND, b->num_rows); i++) {
        write_row(a, t, i, 1.0f / t->weights[i], a->out, half);
        a->maxima[t->places[i]] = t->maxima[i];
        a->weights[t->places[i]] = t->weights[i];
    }
}

INLINE void attend(const attention *a, const block *b, tiles *t, int half)
{
    const int64_t begin = first_visible(a, b->position), end = b->position + b->num_tokens;
    const int64_t length = chunk_length(end - begin);
    for (int64_t i = begin; i < end; i += length) {
        const chunk c = chunk_at(i, length, end, i == begin);
        fill_chunk(a, b, &c, t, half);
        for (int64_t row = 0; row < b->num_rows; row += BAND) {
            if (c.is_first)
                begin_band(a, b, row, t, a->out, half);
            attend_band(a, &c, row, t);
            if (c.is_last)
                end_band(a, b, row, t, half);
        }
    }
}

static void attend_half(const attention *a, const span *s, const block *b, tiles *t)
{
    (void)s;
    attend(a, b, t, 1);
}

static void attend_float(const attention *a, const span *s, const block *b, tiles *t)
{
    (void)s;
    attend(a, b, t, 0);
}

/* out [tokens, heads, size]. A head has at most MAX_SIZE numbers, a multiple of LANES; at most
 * MAX_ROWS query heads share a key head. `row_ends` has the shared tokens' end first. */
void finlora_packed_attention(const void *query, const void *key, const void *value,
                              const int64_t *row_ends, int64_t num_rows, const int64_t *spans,
                              int64_t num_spans, int64_t num_heads, int64_t num_kv_heads,
                              int64_t size, int64_t window, float scaling, void *out, float *maxima,
                              float *weights, int half, int num_threads)
{
    const attention a = {.query = query, .key = key, .value = value,
                         .row_ends = row_ends, .num_rows = num_rows,
                         .spans = (const span *)spans, .num_spans = num_spans,
                         .num_heads = num_heads, .num_kv_heads = num_kv_heads, .size = size,
                         .window = window, .scaling = scaling,
                         .out = out, .maxima = maxima, .weights = weights};
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t i = 0; i < num_spans * num_kv_heads; i++)
        walk(&a, a.spans + i / num_kv_heads, i % num_kv_heads, half ? attend_half : attend_float);
}
