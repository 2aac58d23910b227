/* Attention over a paged KV cache: float32 or bfloat16 in memory, float32 in between.
 *
 * A page holds the keys and values of one token: [pages, 2, kv heads, size]. The work is cut into
 * tiles: a few new tokens of one sequence by the query heads that share a key head. A tile walks
 * over its keys in chunks that begin at multiples of CHUNK, four of its rows (a token's query of one
 * head) at a time, and keeps a running maximum and sum (online softmax, arXiv 1805.02867). So what a
 * row sums, and in which order, follows from its position alone: its results are the same bits
 * whatever else the batch holds.
 */

#include <string.h>

#include "kernels.h"
#include "rows.h"
#ifdef __AVX512BF16__
#include "half_rows_avx512.h"
#endif

#define CHUNK 64     /* keys: 16 KiB at 64 numbers each */
#define MAX_SIZE 256 /* of a head */
#define MAX_ROWS 64  /* of a tile, whose sums fit a second-level cache */
#define TILE_ROWS 48 /* that a tile has at most when a token has fewer */
#define NOTHING (-1e30f) /* a maximum before any key was seen; its difference to itself is 0 */

typedef struct {
    const void *query; /* [tokens, heads * size], rows query_stride apart */
    int64_t query_stride;
    const void *pool;
    const int64_t *table; /* [sequences, table_stride]: the page of each position */
    int64_t table_stride;
    int64_t num_heads, num_kv_heads, size, window; /* window 0: all positions before */
    float scaling;
    void *out; /* [tokens, heads * size] */
} attention;

typedef struct {
    const int64_t *pages; /* of the sequence */
    int64_t first;        /* position of the first token */
    int64_t token;        /* the same in the batch */
    int64_t num_rows;     /* tokens by query heads */
    int64_t kv_head;
} tile;

typedef struct {
    const void *keys[CHUNK + VECTORS_AHEAD], *values[CHUNK];
    int64_t begin, count; /* positions */
} chunk;

typedef struct {
    float query[MAX_ROWS * MAX_SIZE]; /* or bfloat16, where that is multiplied */
    float sums[MAX_ROWS * MAX_SIZE];
    float maxima[MAX_ROWS], weights[MAX_ROWS]; /* weights: sums of e^(score - maximum) */
    float scores[CHUNK][GROUP];
    uint32_t pairs[CHUNK][GROUP]; /* of scores that are weights, in bfloat16 */
} state;

static int64_t heads_of(const attention *a) { return a->num_heads / a->num_kv_heads; }

/* From one row of sums to the next: each begins at a register of 32 numbers. */
static int64_t sums_stride(const attention *a) { return (a->size + 31) / 32 * 32; }

static int64_t position_of(const attention *a, const tile *t, int64_t row)
{
    return t->first + row / heads_of(a);
}

/* Where a row's numbers are in query (by its stride) and out. */
static int64_t offset_of(const attention *a, const tile *t, int64_t row, int64_t stride)
{
    int64_t heads = heads_of(a);
    return (t->token + row / heads) * stride + (t->kv_head * heads + row % heads) * a->size;
}

static int64_t first_visible(const attention *a, int64_t position)
{
    return a->window && position >= a->window ? position - a->window + 1 : 0;
}

/* A token's value lies behind the keys of all heads. */
INLINE chunk chunk_at(const attention *a, const tile *t, int64_t begin, int64_t end, int half)
{
    chunk c = {.begin = begin, .count = end - begin < CHUNK ? end - begin : CHUNK};
    for (int64_t j = 0; j < c.count; j++) {
        const int64_t key = t->pages[begin + j] * 2 * a->num_kv_heads + t->kv_head;
        c.keys[j] = at(a->pool, key * a->size, half);
        c.values[j] = at(a->pool, (key + a->num_kv_heads) * a->size, half);
    }
    for (int64_t j = c.count; j < c.count + VECTORS_AHEAD; j++)
        c.keys[j] = c.keys[c.count - 1];
    return c;
}

/* Reads all of a chunk at once: pages lie anywhere, and memory answers many as fast as one. What is
 * merely asked of it, by prefetches, is dropped when too much is on its way. */
INLINE void fetch(const attention *a, const chunk *c, int half)
{
    const int64_t bytes = a->size * (half ? 2 : 4);
    for (int64_t j = 0; j < c->count; j++)
        for (int64_t i = 0; i < bytes; i += 64) {
            (void)*((const volatile char *)c->keys[j] + i);
            (void)*((const volatile char *)c->values[j] + i);
        }
}

/* Scales scores; those of keys that a row does not see become -inf. */
static void mask(const attention *a, const tile *t, const chunk *c, int64_t row, int count,
                 float (*scores)[GROUP], int64_t num_keys)
{
    const __m256 scaling = _mm256_set1_ps(a->scaling);
    for (int64_t j = 0; j < num_keys; j += 2)
        _mm256_storeu_ps(scores[j], _mm256_mul_ps(scaling, _mm256_loadu_ps(scores[j])));
    for (int i = 0; i < count; i++) {
        int64_t position = position_of(a, t, row + i);
        int64_t hidden = first_visible(a, position) - c->begin;
        for (int64_t j = 0; j < hidden && j < num_keys; j++)
            scores[j][i] = -__builtin_inff();
        int64_t end = position + 1 - c->begin;
        for (int64_t j = end > 0 ? end : 0; j < num_keys; j++)
            scores[j][i] = -__builtin_inff();
    }
}

/* Turns scores into weights; returns by what earlier sums are to be multiplied. */
static __m128 weigh(float (*scores)[GROUP], int64_t num_keys, float *maxima, float *weights)
{
    const __m128 before = _mm_loadu_ps(maxima);
    __m256 most = _mm256_set_m128(before, before);
    for (int64_t j = 0; j < num_keys; j += 2)
        most = _mm256_max_ps(_mm256_loadu_ps(scores[j]), most);
    const __m128 now =
        _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    most = _mm256_set_m128(now, now);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t j = 0; j < num_keys; j += 2) {
        __m256 weight = weight_of(_mm256_sub_ps(_mm256_loadu_ps(scores[j]), most));
        _mm256_storeu_ps(scores[j], weight);
        sum = _mm256_add_ps(sum, weight);
    }
    const __m128 kept = _mm256_castps256_ps128(
        weight_of(_mm256_castps128_ps256(_mm_sub_ps(before, now))));
    const __m128 added =
        _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    _mm_storeu_ps(weights, _mm_fmadd_ps(_mm_loadu_ps(weights), kept, added));
    _mm_storeu_ps(maxima, now);
    return kept;
}

#ifdef __AVX512BF16__
INLINE wide_numbers load_sums(const float *from, __m512 factor)
{
    return (wide_numbers){{_mm512_mul_ps(_mm512_loadu_ps(from), factor),
                           _mm512_mul_ps(_mm512_loadu_ps(from + WIDE / 2), factor)}};
}

/* attend_rows of bfloat16. */
INLINE void attend_half_rows(const attention *a, const tile *t, const chunk *c, int64_t row,
                             int count, int64_t num_keys, state *s)
{
    const uint16_t *query = (const uint16_t *)s->query + row * a->size;
    const int64_t stride = sums_stride(a);
    float *sums = s->sums + row * stride, kept[GROUP];
    half_dot_products(query, a->size, count, c->keys, num_keys, a->size, s->scores, 0);
    mask(a, t, c, row, count, s->scores, (num_keys + 1) & ~1);
    _mm_storeu_ps(kept, weigh(s->scores, num_keys, s->maxima + row, s->weights + row));
    pair_up(s->scores, num_keys, s->pairs);
    for (int64_t d = 0; d < a->size; d += WIDE) {
        wide_numbers part[GROUP];
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            part[i] = load_sums(sums + i * stride + d, _mm512_set1_ps(kept[i]));
        add_half_products(part, count, c->values, num_keys, d, a->size - d, s->pairs);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                _mm512_storeu_ps(sums + i * stride + d + half * WIDE / 2, part[i].halves[half]);
    }
}

static void store_half_row(const attention *a, const state *s, int64_t row, int64_t to)
{
    const float *sums = s->sums + row * sums_stride(a);
    const __m512 factor = _mm512_set1_ps(1 / s->weights[row]);
    for (int64_t d = 0; d < a->size; d += WIDE)
        store_some(a->out, to + d, a->size - d, narrow(load_sums(sums + d, factor)));
}
#endif

/* What a chunk adds to rows [row, row + count) of a tile. */
INLINE void attend_rows(const attention *a, const tile *t, const chunk *c, int64_t row, int count,
                        state *s, int half)
{
    const int64_t end = position_of(a, t, row + count - 1) + 1 - c->begin;
    if (end <= 0)
        return;
    const int64_t num_keys = end < c->count ? end : c->count;
#ifdef __AVX512BF16__
    if (half) {
        attend_half_rows(a, t, c, row, count, num_keys, s);
        return;
    }
#endif
    const int64_t stride = sums_stride(a);
    float *sums = s->sums + row * stride, kept[GROUP];
    dot_products(s->query + row * a->size, a->size, count, c->keys, num_keys, a->size, s->scores,
                 0, half);
    mask(a, t, c, row, count, s->scores, (num_keys + 1) & ~1);
    _mm_storeu_ps(kept, weigh(s->scores, num_keys, s->maxima + row, s->weights + row));
    for (int i = 0; i < count; i++)
        for (int64_t d = 0; d < a->size; d += LANES)
            store(sums, i * stride + d,
                  _mm256_mul_ps(load(sums, i * stride + d, 0), _mm256_set1_ps(kept[i])), 0);
    add_products(sums, stride, count, c->values, num_keys, a->size, s->scores, half);
}

INLINE void attend_chunk(const attention *a, const tile *t, const chunk *c, state *s, int half)
{
    int64_t row = 0;
    for (; row + GROUP <= t->num_rows; row += GROUP)
        attend_rows(a, t, c, row, GROUP, s, half);
    switch (t->num_rows - row) {
    case 3: attend_rows(a, t, c, row, 3, s, half); break;
    case 2: attend_rows(a, t, c, row, 2, s, half); break;
    case 1: attend_rows(a, t, c, row, 1, s, half); break;
    }
}

INLINE void keep_query(const attention *a, state *s, int64_t row, int64_t from, int half)
{
#ifdef __AVX512BF16__
    if (half) {
        memcpy((uint16_t *)s->query + row * a->size, at(a->query, from, 1), a->size * 2);
        return;
    }
#endif
    for (int64_t d = 0; d < a->size; d += LANES)
        store(s->query, row * a->size + d, load(a->query, from + d, half), 0);
}

INLINE void store_row(const attention *a, const state *s, int64_t row, int64_t to, int half)
{
#ifdef __AVX512BF16__
    if (half) {
        store_half_row(a, s, row, to);
        return;
    }
#endif
    const float *sums = s->sums + row * sums_stride(a);
    const __m256 sum = _mm256_set1_ps(s->weights[row]);
    for (int64_t d = 0; d < a->size; d += LANES)
        store(a->out, to + d, _mm256_div_ps(load(sums, d, 0), sum), half);
}

INLINE void attend_tile(const attention *a, const tile *t, int half)
{
    state s;
    memset(s.sums, 0, t->num_rows * sums_stride(a) * sizeof(float));
    for (int64_t row = 0; row < MAX_ROWS; row++) {
        s.maxima[row] = NOTHING;
        s.weights[row] = 0;
    }
    for (int64_t row = 0; row < t->num_rows; row++)
        keep_query(a, &s, row, offset_of(a, t, row, a->query_stride), half);
    const int64_t end = position_of(a, t, t->num_rows - 1) + 1;
    int64_t i = first_visible(a, t->first) / CHUNK * CHUNK;
    for (; i < end; i += CHUNK) {
        const chunk c = chunk_at(a, t, i, end, half);
        fetch(a, &c, half);
        attend_chunk(a, t, &c, &s, half);
    }
    for (int64_t row = 0; row < t->num_rows; row++)
        store_row(a, &s, row, offset_of(a, t, row, a->num_heads * a->size), half);
}

static void attend_half(const attention *a, const tile *t) { attend_tile(a, t, 1); }
static void attend_float(const attention *a, const tile *t) { attend_tile(a, t, 0); }

/* Spans are sequences with new tokens, whose keys and values are in the pool already: the row of the
 * page table, the position of the first new token, their number, and the first one's place in the
 * batch. A head has at most MAX_SIZE numbers, a multiple of LANES; at most MAX_ROWS query heads share
 * a key head. */
void finlora_attention(const void *query, int64_t query_stride, const void *pool,
                       const int64_t *table, int64_t table_stride, const int64_t *spans,
                       int64_t num_spans, int64_t num_heads, int64_t num_kv_heads, int64_t size,
                       int64_t window, float scaling, void *out, int half, int num_threads)
{
    const attention a = {query,        query_stride, pool, table,  table_stride, num_heads,
                         num_kv_heads, size,         window, scaling, out};
    const int64_t heads = heads_of(&a);
    const int64_t tokens = heads < TILE_ROWS ? TILE_ROWS / heads : 1; /* of a tile */
#pragma omp parallel num_threads(num_threads)
#pragma omp single
    for (int64_t i = 0; i < num_spans; i++) {
        const int64_t *span = spans + 4 * i;
        for (int64_t token = 0; token < span[2]; token += tokens) {
            const int64_t count = span[2] - token < tokens ? span[2] - token : tokens;
            for (int64_t head = 0; head < num_kv_heads; head++) {
                const tile t = {table + span[0] * table_stride, span[1] + token, span[3] + token,
                                count * heads, head};
#pragma omp task firstprivate(t)
                (half ? attend_half : attend_float)(&a, &t);
            }
        }
    }
}
