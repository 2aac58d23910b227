/* The gradients of packed_attention.c's query, key and value. Weights of scores are made again, not
 * kept.
 */

#include "packed_attention.h"

/* sums [BAND, size] = scores [num_rows, BAND], transposed, by rows. */
static void weigh_rows(const float *scores, const float *rows, int64_t stride, int64_t num_rows,
                       float *sums, int64_t size)
{
    product(scores, 1, KEYS_STRIDE, rows, stride, num_rows, sums, stride, size, 0);
}

/* Scores of a row into weights, and the gradients of weights into those of scores. */
static void differentiate(tiles *t, int64_t row, columns band, columns seen)
{
    float *scores = t->scores + row * KEYS_STRIDE, *dscores = t->dscores + row * KEYS_STRIDE;
    const __m256 maximum = _mm256_set1_ps(t->maxima[row]);
    const __m256 inverse = _mm256_set1_ps(1.0f / t->weights[row]);
    const __m256 delta = _mm256_set1_ps(t->deltas[row]);
    for (int64_t j = band.begin; j < band.end; j += LANES) {
        const __m256 score = masked(_mm256_loadu_ps(scores + j), j, seen);
        const __m256 weight = _mm256_mul_ps(weight_of(_mm256_sub_ps(score, maximum)), inverse);
        const __m256 difference = _mm256_sub_ps(_mm256_loadu_ps(dscores + j), delta);
        _mm256_storeu_ps(scores + j, weight);
        _mm256_storeu_ps(dscores + j, _mm256_mul_ps(weight, difference));
    }
}

/* Keys are met by bands too, and so a row with up to BAND - 1 more than it sees on either side. */
static void frame(float *scores, columns band)
{
    _mm256_storeu_ps(scores + band.end, _mm256_setzero_ps());
    if (band.begin)
        _mm256_storeu_ps(scores + band.begin - LANES, _mm256_setzero_ps());
}

/* The gradients of a band's weights and scores, and with them its queries'. */
static void differentiate_band(const attention *a, const chunk *c, int64_t row, tiles *t)
{
    const int64_t stride = stride_of(a);
    const columns band = seen_by_band(a, c, t->positions + row);
    if (band.begin >= band.end)
        return;
    const int64_t num_columns = band.end - band.begin;
    float *scores = t->scores + row * KEYS_STRIDE, *dscores = t->dscores + row * KEYS_STRIDE;
    multiply(t->query + row * stride, stride, t->key_columns + band.begin, a->size,
             scores + band.begin, num_columns);
    multiply(t->dout + row * stride, stride, t->value_columns + band.begin, a->size,
             dscores + band.begin, num_columns);
    for (int64_t i = 0; i < BAND; i++) {
        const int64_t position = t->positions[row + i];
        differentiate(t, row + i, band, seen_by(a, c, position, position));
        frame(scores + i * KEYS_STRIDE, band);
        frame(dscores + i * KEYS_STRIDE, band);
    }
    add_weighted(dscores + band.begin, t->key + band.begin * stride, stride, num_columns,
                 t->sums + row * stride, a->size);
}

/* Rows [begin, end) of a block are those that see one of the keys [j, j + BAND). */
static void differentiate_keys(const attention *a, const block *b, const chunk *c, tiles *t)
{
    const int64_t stride = stride_of(a), heads = heads_of(a);
    for (int64_t j = 0; j < c->count; j += BAND) {
        const int64_t position = c->begin + j - b->position; /* seen from the block's first token */
        const int64_t begin = least(most(position, 0) * heads, b->num_rows);
        int64_t end = b->num_rows;
        if (a->window)
            end = most(least((position + least(BAND, c->count - j) - 1 + a->window) * heads, end),
                       begin);
        weigh_rows(t->scores + begin * KEYS_STRIDE + j, t->dout + begin * stride, stride,
                   end - begin, t->dvalue + j * stride, a->size);
        weigh_rows(t->dscores + begin * KEYS_STRIDE + j, t->query + begin * stride, stride,
                   end - begin, t->dkey + j * stride, a->size);
    }
}

static int64_t covered(const attention *a, const span *s)
{
    return a->row_ends[0] + s->end - s->first;
}

/* The gradients of a span's keys, followed by those of its values; of one head. */
static float *gradients_of(const attention *a, const span *s, int64_t kv_head)
{
    return a->workspace +
           2 * a->size * (s->place * a->num_kv_heads + covered(a, s) * kv_head);
}

static int64_t place_in(const attention *a, const span *s, int64_t token)
{
    return token < a->row_ends[0] ? token : a->row_ends[0] + token - s->first;
}

static void add_to(float *sums, const float *numbers, int64_t size)
{
    for (int64_t d = 0; d < size; d += LANES)
        _mm256_storeu_ps(sums + d,
                         _mm256_add_ps(_mm256_loadu_ps(sums + d), _mm256_loadu_ps(numbers + d)));
}

static void add_gradients(const attention *a, const span *s, const block *b, const chunk *c,
                          const tiles *t)
{
    float *keys = gradients_of(a, s, b->kv_head), *values = keys + covered(a, s) * a->size;
    for (int64_t j = 0; j < c->count; j++) {
        const int64_t place = place_in(a, s, token_at(b, c->begin + j)) * a->size;
        add_to(keys + place, t->dkey + j * stride_of(a), a->size);
        add_to(values + place, t->dvalue + j * stride_of(a), a->size);
    }
}

/* dout . out of a row. */
INLINE float delta_of(const attention *a, const tiles *t, int64_t row, int half)
{
    fetch_row(a, t, row + BAND, a->out, half);
    const float *dout = t->dout + row * stride_of(a);
    const int64_t from = t->places[row] * a->size;
    __m256 sum = _mm256_setzero_ps();
    for (int64_t d = 0; d < a->size; d += LANES)
        sum = _mm256_fmadd_ps(_mm256_loadu_ps(dout + d), load(a->out, from + d, half), sum);
    return sum_of(sum);
}

INLINE void begin_differentiating(const attention *a, const block *b, int64_t row, tiles *t,
                                  int half)
{
    begin_band(a, b, row, t, a->dquery, half);
    for (int64_t i = row; i < row + BAND; i++)
        if (i < b->num_rows) {
            copy_row(a, t, i, a->dout, 1.0f, t->dout, half);
            t->deltas[i] = delta_of(a, t, i, half);
            t->maxima[i] = a->maxima[t->places[i]];
            t->weights[i] = a->weights[t->places[i]];
        } else {
            clear_row(a, i, t->dout);
            t->deltas[i] = t->maxima[i] = 0;
            t->weights[i] = 1;
        }
}

/* Queries have been scaled where products with them are made. */
INLINE void end_differentiating(const attention *a, const block *b, int64_t row, const tiles *t,
                                int half)
{
    for (int64_t i = row; i < least(row + BAND, b->num_rows); i++)
        write_row(a, t, i, a->scaling, a->dquery, half);
}

INLINE void differentiate_block(const attention *a, const span *s, const block *b, tiles *t,
                                int half)
{
    const int64_t begin = first_visible(a, b->position), end = b->position + b->num_tokens;
    const int64_t length = chunk_length(end - begin);
    for (int64_t i = begin; i < end; i += length) {
        const chunk c = chunk_at(i, length, end, i == begin);
        fill_chunk(a, b, &c, t, half);
        transpose(a, &c, t->value, t->value_columns);
        for (int64_t row = 0; row < b->num_rows; row += BAND) {
            if (c.is_first)
                begin_differentiating(a, b, row, t, half);
            differentiate_band(a, &c, row, t);
            if (c.is_last)
                end_differentiating(a, b, row, t, half);
        }
        differentiate_keys(a, b, &c, t);
        add_gradients(a, s, b, &c, t);
    }
}

/* Sums of the spans' gradients of one token. */
INLINE void reduce(const attention *a, int64_t token, int64_t kv_head, int half)
{
    float sums[2][MAX_SIZE];
    memset(sums[0], 0, a->size * sizeof(float));
    memset(sums[1], 0, a->size * sizeof(float));
    for (int64_t i = 0; i < a->num_spans; i++) {
        const span *s = a->spans + i;
        if (token >= a->row_ends[0] && (token < s->first || token >= s->end))
            continue;
        const float *keys = gradients_of(a, s, kv_head) + place_in(a, s, token) * a->size;
        add_to(sums[0], keys, a->size);
        add_to(sums[1], keys + covered(a, s) * a->size, a->size);
    }
    const int64_t to = (token * a->num_kv_heads + kv_head) * a->size;
    for (int64_t d = 0; d < a->size; d += LANES) {
        store(a->dkey, to + d, _mm256_loadu_ps(sums[0] + d), half);
        store(a->dvalue, to + d, _mm256_loadu_ps(sums[1] + d), half);
    }
}

static void block_half(const attention *a, const span *s, const block *b, tiles *t)
{
    differentiate_block(a, s, b, t, 1);
}

static void block_float(const attention *a, const span *s, const block *b, tiles *t)
{
    differentiate_block(a, s, b, t, 0);
}

static void differentiate_span(const attention *a, const span *s, int64_t kv_head, int half)
{
    memset(gradients_of(a, s, kv_head), 0, 2 * covered(a, s) * a->size * sizeof(float));
    walk(a, s, kv_head, half ? block_half : block_float);
}

/* The workspace has room for every span's covered tokens: [sum of covered, kv heads, 2, size]. */
void finlora_packed_attention_backward(
    const void *query, const void *key, const void *value, const int64_t *row_ends,
    int64_t num_rows, const int64_t *spans, int64_t num_spans, int64_t num_heads,
    int64_t num_kv_heads, int64_t size, int64_t window, float scaling, const void *out,
    const float *maxima, const float *weights, const void *dout, void *dquery, void *dkey,
    void *dvalue, float *workspace, int half, int num_threads)
{
    const attention a = {.query = query, .key = key, .value = value,
                         .row_ends = row_ends, .num_rows = num_rows,
                         .spans = (const span *)spans, .num_spans = num_spans,
                         .num_heads = num_heads, .num_kv_heads = num_kv_heads, .size = size,
                         .window = window, .scaling = scaling,
                         .out = (void *)out, .maxima = (float *)maxima, .weights = (float *)weights,
                         .dout = dout, .dquery = dquery, .dkey = dkey, .dvalue = dvalue,
                         .workspace = workspace};
    const int64_t num_tokens = row_ends[num_rows - 1];
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_spans * num_kv_heads; i++)
            differentiate_span(&a, a.spans + i / num_kv_heads, i % num_kv_heads, half);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_tokens * num_kv_heads; i++)
            if (half)
                reduce(&a, i / num_kv_heads, i % num_kv_heads, 1);
            else
                reduce(&a, i / num_kv_heads, i % num_kv_heads, 0);
    }
}
