/* What the two passes of packed_attention.c and packed_attention_backward.c have in common: how the
 * work is cut, and the tiles that it is done in.
 */

#ifndef FINLORA_PACKED_ATTENTION_H
#define FINLORA_PACKED_ATTENTION_H

#include <float.h>
#include <string.h>

#include "bands.h"
#include "rows.h"

#define MAX_ROWS 126 /* of a block: tokens by query heads; a multiple of BAND */
#define CHUNK 96     /* keys, a multiple of BAND and of LANES */
#define MAX_SIZE 256 /* of a head */
#define KEYS_AHEAD 8 /* that are asked of memory */
/* Rows of tiles are no power of two apart, which would put them into few sets of a cache. */
#define KEYS_STRIDE (CHUNK + LANES)
#define MAX_STRIDE (MAX_SIZE + LANES)

/* Tokens [begin, end). Its gradients are of the shared tokens and of [first, end): `first` is where
 * the row of `begin` begins. They are [2, covered tokens, size] for every key head. */
typedef struct {
    int64_t begin, end, first;
    int64_t place; /* in the workspace, in covered tokens */
} span;

typedef struct {
    const void *query, *key, *value; /* [tokens, heads or kv heads, size] */
    const int64_t *row_ends;         /* [num_rows]; the first row is the shared tokens */
    int64_t num_rows;
    const span *spans;
    int64_t num_spans;
    int64_t num_heads, num_kv_heads, size, window; /* window 0: all positions before */
    float scaling;
    void *out;
    float *maxima, *weights; /* [tokens, heads]: of scores, and sums of e^(score - maximum) */
    const void *dout;
    void *dquery, *dkey, *dvalue;
    float *workspace;
} attention;

typedef struct {
    int64_t token, num_tokens;
    int64_t row_begin;  /* the first token of the row's own */
    int64_t num_shared; /* tokens before it in the row */
    int64_t position;   /* of `token` in the row */
    int64_t kv_head, num_rows;
} block;

typedef struct {
    int64_t begin, count;  /* positions */
    int64_t width;         /* count, up to a multiple of LANES */
    int is_first, is_last; /* of a block's */
} chunk;

/* Rows behind a block's last, up to a multiple of BAND, and keys behind a chunk's are 0. */
typedef struct {
    float query[MAX_ROWS * MAX_STRIDE], dout[MAX_ROWS * MAX_STRIDE];
    float sums[MAX_ROWS * MAX_STRIDE]; /* of out or of dquery */
    float key[CHUNK * MAX_STRIDE], value[CHUNK * MAX_STRIDE];
    float dkey[CHUNK * MAX_STRIDE], dvalue[CHUNK * MAX_STRIDE];
    float key_columns[MAX_SIZE * KEYS_STRIDE], value_columns[MAX_SIZE * KEYS_STRIDE];
    float scores[MAX_ROWS * KEYS_STRIDE], dscores[MAX_ROWS * KEYS_STRIDE];
    float maxima[MAX_ROWS], weights[MAX_ROWS];
    float deltas[MAX_ROWS]; /* dout . out */
    /* One band more is asked of memory. */
    int64_t places[MAX_ROWS + BAND];    /* in [tokens, heads] */
    int64_t positions[MAX_ROWS + BAND]; /* in the row of tokens */
} tiles;

static int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }
static int64_t most(int64_t one, int64_t other) { return one > other ? one : other; }
static int64_t up_to(int64_t count, int64_t multiple)
{
    return (count + multiple - 1) / multiple * multiple;
}

static int64_t heads_of(const attention *a) { return a->num_heads / a->num_kv_heads; }
static int64_t stride_of(const attention *a) { return a->size + LANES; }

static int64_t token_at(const block *b, int64_t position)
{
    return position < b->num_shared ? position : b->row_begin + position - b->num_shared;
}

static int64_t first_visible(const attention *a, int64_t position)
{
    return a->window ? most(position - a->window + 1, 0) : 0;
}

/* --- tiles --- */

INLINE void copy(const void *from, int64_t offset, int64_t size, float scale, float *to, int half)
{
    const __m256 factor = _mm256_set1_ps(scale);
    for (int64_t d = 0; d < size; d += LANES)
        _mm256_storeu_ps(to + d, _mm256_mul_ps(factor, load(from, offset + d, half)));
}

/* Behind a block's rows come those of the next tokens, which are probably the next block's. */
static void place_rows(const attention *a, const block *b, tiles *t)
{
    const int64_t heads = heads_of(a), last = a->row_ends[a->num_rows - 1] - 1;
    const int64_t end = up_to(b->num_rows, BAND) + BAND;
    for (int64_t i = 0, row = 0; row < end; i++)
        for (int64_t head = 0; head < heads && row < end; head++, row++) {
            const int64_t token = least(b->token + i, last);
            t->places[row] = token * a->num_heads + b->kv_head * heads + head;
            t->positions[row] = b->position + i;
        }
}

/* Asks memory for a row, and for the place of a result before it is there. */
INLINE void fetch_row(const attention *a, const tiles *t, int64_t row, const void *from, int half)
{
    prefetch(at(from, t->places[row] * a->size, half), a->size * (half ? 2 : 4));
}

INLINE void copy_row(const attention *a, const tiles *t, int64_t row, const void *from, float scale,
                     float *to, int half)
{
    fetch_row(a, t, row + BAND, from, half);
    copy(from, t->places[row] * a->size, a->size, scale, to + row * stride_of(a), half);
}

static void clear_row(const attention *a, int64_t row, float *tile)
{
    memset(tile + row * stride_of(a), 0, a->size * sizeof(float));
}

/* Where a chunk's key j begins, and its value. */
static int64_t key_at(const attention *a, const block *b, const chunk *c, int64_t j)
{
    return (token_at(b, c->begin + j) * a->num_kv_heads + b->kv_head) * a->size;
}

/* From keys or values. */
INLINE void copy_chunk(const attention *a, const block *b, const chunk *c, const void *from,
                       float *to, int half)
{
    const int64_t stride = stride_of(a);
    for (int64_t j = 0; j < c->count; j++) {
        prefetch(at(from, key_at(a, b, c, least(j + KEYS_AHEAD, c->count - 1)), half),
                 a->size * (half ? 2 : 4));
        copy(from, key_at(a, b, c, j), a->size, 1.0f, to + j * stride, half);
    }
    memset(to + c->count * stride, 0, (c->width - c->count) * stride * sizeof(float));
}

/* [width, size] -> [size, width]. */
static void transpose(const attention *a, const chunk *c, const float *from, float *to)
{
    const int64_t stride = stride_of(a);
    for (int64_t j = 0; j < c->width; j += LANES)
        for (int64_t d = 0; d < a->size; d += LANES)
            transpose_square(from + j * stride + d, stride, to + d * KEYS_STRIDE + j, KEYS_STRIDE);
}

/* The keys and values of a chunk, and the keys as columns. */
INLINE void fill_chunk(const attention *a, const block *b, const chunk *c, tiles *t, int half)
{
    copy_chunk(a, b, c, a->key, t->key, half);
    transpose(a, c, t->key, t->key_columns);
    copy_chunk(a, b, c, a->value, t->value, half);
}

/* scores [BAND, num_columns] = rows [BAND, size] by keys or values that are columns. */
static void multiply(const float *rows, int64_t stride, const float *columns, int64_t size,
                     float *scores, int64_t num_columns)
{
    product(rows, stride, 1, columns, KEYS_STRIDE, size, scores, KEYS_STRIDE, num_columns, 0);
}

/* sums [BAND, size] += scores [BAND, num_vectors] by vectors. */
static void add_weighted(const float *scores, const float *vectors, int64_t stride,
                         int64_t num_vectors, float *sums, int64_t size)
{
    product(scores, KEYS_STRIDE, 1, vectors, stride, num_vectors, sums, stride, size, 1);
}

INLINE void begin_band(const attention *a, const block *b, int64_t row, tiles *t, const void *result,
                       int half)
{
    for (int64_t i = row; i < row + BAND; i++) {
        fetch_row(a, t, i, result, half);
        if (i < b->num_rows)
            copy_row(a, t, i, a->query, a->scaling, t->query, half);
        else
            clear_row(a, i, t->query);
        clear_row(a, i, t->sums);
        t->maxima[i] = -FLT_MAX;
        t->weights[i] = 0;
    }
}

/* Rows of sums by a factor. */
INLINE void write_row(const attention *a, const tiles *t, int64_t row, float factor, void *to,
                      int half)
{
    const float *sums = t->sums + row * stride_of(a);
    const int64_t place = t->places[row] * a->size;
    for (int64_t d = 0; d < a->size; d += LANES)
        store(to, place + d, _mm256_mul_ps(_mm256_loadu_ps(sums + d), _mm256_set1_ps(factor)),
              half);
}

/* --- who sees whom --- */

/* Columns [begin, end) of a chunk. */
typedef struct {
    int64_t begin, end;
} columns;

static columns seen_by(const attention *a, const chunk *c, int64_t first, int64_t last)
{
    const int64_t begin = most(first_visible(a, first) - c->begin, 0);
    return (columns){begin, least(last + 1 - c->begin, c->count)};
}

/* What a band of rows sees, in whole vectors. */
static columns seen_by_band(const attention *a, const chunk *c, const int64_t *positions)
{
    const columns seen = seen_by(a, c, positions[0], positions[BAND - 1]);
    return (columns){seen.begin / LANES * LANES, up_to(seen.end, LANES)};
}

/* -inf for scores, of columns [j, j + LANES), that are not seen. */
INLINE __m256 masked(__m256 scores, int64_t j, columns seen)
{
    if (j >= seen.begin && j + LANES <= seen.end)
        return scores;
    const __m256i column = _mm256_add_epi32(_mm256_set1_epi32((int)j),
                                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i is_early = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)seen.begin), column);
    const __m256i is_before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)seen.end), column);
    const __m256 is_seen = _mm256_castsi256_ps(_mm256_andnot_si256(is_early, is_before_end));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), scores, is_seen);
}

/* As many chunks as are needed, of about the same length. */
static int64_t chunk_length(int64_t num_keys)
{
    const int64_t num_chunks = (num_keys + CHUNK - 1) / CHUNK;
    return up_to((num_keys + num_chunks - 1) / num_chunks, LANES);
}

static chunk chunk_at(int64_t begin, int64_t length, int64_t end, int is_first)
{
    const int64_t count = least(length, end - begin);
    return (chunk){begin, count, up_to(count, LANES), is_first, begin + count == end};
}

/* --- the way over a span --- */

typedef void work(const attention *a, const span *s, const block *b, tiles *t);

/* Blocks of tokens [begin, end), which are one row's. */
static void walk_row(const attention *a, const span *s, block b, int64_t begin, int64_t end,
                     tiles *t, work *work_on)
{
    const int64_t heads = heads_of(a), max_tokens = MAX_ROWS / heads;
    const int64_t num_blocks = (end - begin + max_tokens - 1) / max_tokens;
    const int64_t length = (end - begin + num_blocks - 1) / num_blocks;
    for (b.token = begin; b.token < end; b.token += length) {
        b.num_tokens = least(length, end - b.token);
        b.num_rows = b.num_tokens * heads;
        b.position = b.num_shared + b.token - b.row_begin;
        place_rows(a, &b, t);
        work_on(a, s, &b, t);
    }
}

static void walk(const attention *a, const span *s, int64_t kv_head, work *work_on)
{
    tiles t;
    block b = {.kv_head = kv_head};
    for (int64_t row = 0; row < a->num_rows; row++) {
        const int64_t end = least(s->end, a->row_ends[row]), begin = most(s->begin, b.row_begin);
        if (begin < end)
            walk_row(a, s, b, begin, end, &t, work_on);
        b.row_begin = a->row_ends[row];
        b.num_shared = a->row_ends[0];
    }
}

#endif
