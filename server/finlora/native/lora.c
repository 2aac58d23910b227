/* The updates of a batch's adapters, which are other ones for every row: y += (x A^T) B, and for DoRA
 * y = m (y + (x A^T) B), m scaling everything but the bias that y holds already.
 *
 * A slot holds one adapter of some layers that read the same input, whose outputs lie in a row. Its
 * weights lie wherever they were loaded, in float32 or in bfloat16, which is widened in registers.
 * A row's results do not depend on the other rows.
 */

#include "kernels.h"
#include "rows.h"
#ifdef __AVX512BF16__
#include "half_rows_avx512.h"
#endif

#define MAX_RANKS 1024 /* of all layers of a slot */
#define MAX_FEATURES 32768
#define TILE_ROWS 16 /* that one thread takes at a time */
/* Multiplications that are worth a second thread. */
#define WORTH_A_THREAD 200000

typedef struct {
    const void *x; /* [rows, in_features] */
    int64_t x_stride;
    void *y; /* [rows, out_features] */
    int64_t y_stride;
    const void *bias; /* [out_features], or null */
    const lora_slots *slots;
} update;

typedef struct {
    const void *a[MAX_RANKS + VECTORS_AHEAD + 1], *b[MAX_RANKS];
    float hidden[MAX_RANKS + GROUP][GROUP];
    uint32_t pairs[MAX_RANKS][GROUP]; /* of hidden, in bfloat16 */
    float wide[GROUP * MAX_FEATURES]; /* rows in float32 */
} scratch;

static const lora *layers_of(const lora_slots *l, int64_t slot)
{
    return l->loras + slot * l->num_layers;
}

static int64_t num_ranks(const lora_slots *l, int64_t slot)
{
    int64_t num = 0;
    for (int64_t layer = 0; layer < l->num_layers; layer++)
        num += layers_of(l, slot)[layer].rank;
    return num;
}

/* Pointers to the rows of A and of B of all layers. */
INLINE void find_ranks(const lora_slots *l, int64_t slot, scratch *s, int narrow)
{
    int64_t num = 0, column = 0;
    for (int64_t layer = 0; layer < l->num_layers; layer++) {
        const lora own = layers_of(l, slot)[layer];
        for (int64_t rank = 0; rank < own.rank; rank++, num++) {
            s->a[num] = at(own.a, rank * l->in_features, narrow);
            s->b[num] = at(own.b, rank * (l->column_ends[layer] - column), narrow);
        }
        column = l->column_ends[layer];
    }
    for (int64_t i = num; i < num + VECTORS_AHEAD + 1; i++)
        s->a[i] = s->a[num - 1];
}

INLINE void copy(const void *from, int64_t from_stride, int from_half, void *to, int64_t to_stride,
                 int to_half, int count, int64_t size)
{
    for (int i = 0; i < count; i++)
        for (int64_t d = 0; d < size; d += LANES)
            store(to, i * to_stride + d, load(from, i * from_stride + d, from_half), to_half);
}

/* y = m (y - bias) + bias, of rows in float32. */
INLINE void scale(float *y, int64_t y_stride, int count, int64_t size, const void *magnitude,
                  const void *bias, int half)
{
    for (int64_t d = 0; d < size; d += LANES) {
        const __m256 m = load(magnitude, d, half);
        const __m256 b = bias ? load(bias, d, half) : _mm256_setzero_ps();
        for (int i = 0; i < count; i++) {
            const __m256 unbiased = _mm256_sub_ps(_mm256_loadu_ps(y + i * y_stride + d), b);
            _mm256_storeu_ps(y + i * y_stride + d, _mm256_fmadd_ps(m, unbiased, b));
        }
    }
}

#ifdef __AVX512BF16__
/* y += the pairs' weights times the rows of one layer's B; then DoRA's y = m (y - bias) + bias. */
INLINE void update_layer(uint16_t *y, int64_t y_stride, int count, int64_t size, lora own,
                         const void *const *vectors, const uint32_t (*pairs)[GROUP],
                         const void *bias)
{
    for (int64_t d = 0; d < size; d += WIDE) {
        wide_numbers sums[GROUP];
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            sums[i] = widen(load_some(y + i * y_stride, d, size - d));
        add_half_products(sums, count, vectors, own.rank, d, size - d, pairs);
        if (own.magnitude) {
            const wide_numbers m = widen(load_some(own.magnitude, d, size - d));
            const wide_numbers b =
                widen(bias ? load_some(bias, d, size - d) : _mm512_setzero_si512());
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    const __m512 unbiased = _mm512_sub_ps(sums[i].halves[half], b.halves[half]);
                    sums[i].halves[half] =
                        _mm512_fmadd_ps(m.halves[half], unbiased, b.halves[half]);
                }
        }
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            store_some(y + i * y_stride, d, size - d, narrow(sums[i]));
    }
}

/* Rows [row, row + count), a constant number of them; all is bfloat16. */
INLINE void update_half_rows(const update *u, int64_t slot, int64_t row, int count, scratch *s)
{
    const lora_slots *l = u->slots;
    half_dot_products((const uint16_t *)u->x + row * u->x_stride, u->x_stride, count, s->a,
                      num_ranks(l, slot), l->in_features, s->hidden, 1);
    int64_t rank = 0, column = 0;
    for (int64_t layer = 0; layer < l->num_layers; layer++) {
        const lora own = layers_of(l, slot)[layer];
        uint16_t *y = (uint16_t *)u->y + row * u->y_stride + column;
        if (own.rank) {
            pair_up(s->hidden + rank, own.rank, s->pairs);
            update_layer(y, u->y_stride, count, l->column_ends[layer] - column, own, s->b + rank,
                         s->pairs, u->bias ? at(u->bias, column, 1) : 0);
        }
        rank += own.rank;
        column = l->column_ends[layer];
    }
}
#endif

/* Rows [row, row + count), a constant number of them; of bfloat16 with `half`, as are the weights with
 * `narrow`. */
INLINE void update_rows(const update *u, int64_t slot, int64_t row, int count, scratch *s, int half,
                        int narrow)
{
#ifdef __AVX512BF16__
    if (half) {
        update_half_rows(u, slot, row, count, s);
        return;
    }
#endif
    const lora_slots *l = u->slots;
    const void *x = at(u->x, row * u->x_stride, half);
    if (half)
        copy(x, u->x_stride, 1, s->wide, l->in_features, 0, count, l->in_features);
    dot_products(half ? s->wide : x, half ? l->in_features : u->x_stride, count, s->a,
                 num_ranks(l, slot), l->in_features, s->hidden, 1, narrow);
    int64_t rank = 0, column = 0;
    for (int64_t layer = 0; layer < l->num_layers; layer++) {
        const lora own = layers_of(l, slot)[layer];
        const int64_t width = l->column_ends[layer] - column;
        void *y = (void *)at(u->y, row * u->y_stride + column, half);
        float *sums = half ? s->wide : y;
        const int64_t stride = half ? width : u->y_stride;
        if (half && own.rank)
            copy(y, u->y_stride, 1, sums, stride, 0, count, width);
        if (own.rank)
            add_products(sums, stride, count, s->b + rank, own.rank, width, s->hidden + rank,
                         narrow);
        if (own.magnitude)
            scale(sums, stride, count, width, own.magnitude,
                  u->bias ? at(u->bias, column, half) : 0, half);
        if (half && own.rank)
            copy(sums, stride, 0, y, u->y_stride, 1, count, width);
        rank += own.rank;
        column = l->column_ends[layer];
    }
}

INLINE void update_tile(const update *u, int64_t slot, int64_t row, int64_t count, scratch *s,
                        int half, int narrow)
{
    find_ranks(u->slots, slot, s, narrow);
    for (; count >= GROUP; count -= GROUP, row += GROUP)
        update_rows(u, slot, row, GROUP, s, half, narrow);
    switch (count) {
    case 3: update_rows(u, slot, row, 3, s, half, narrow); break;
    case 2: update_rows(u, slot, row, 2, s, half, narrow); break;
    case 1: update_rows(u, slot, row, 1, s, half, narrow); break;
    }
}

/* Types become constants here. */
static void update_any(const update *u, int64_t slot, int64_t row, int64_t count, int half)
{
    scratch s;
    if (num_ranks(u->slots, slot) == 0)
        return;
    if (half)
        update_tile(u, slot, row, count, &s, 1, 1);
    else if (u->slots->halves[slot])
        update_tile(u, slot, row, count, &s, 0, 1);
    else
        update_tile(u, slot, row, count, &s, 0, 0);
}

static int64_t num_products(const lora_slots *l, const int64_t *segments, int64_t num_segments)
{
    int64_t num = 0;
    for (int64_t i = 0; i < num_segments; i++)
        num += num_ranks(l, segments[3 * i]) * segments[3 * i + 2];
    return num * (l->in_features + l->out_features / l->num_layers);
}

/* Segments are neighbouring rows of one adapter: its slot, the first row, their number. The bias is
 * what y holds of it. Features and the columns of every layer are multiples of LANES. */
void finlora_lora(const lora_slots *slots, const void *x, int64_t x_stride, void *y,
                  int64_t y_stride, const void *bias, const int64_t *segments,
                  int64_t num_segments, int half, int num_threads)
{
    const update u = {x, x_stride, y, y_stride, bias, slots};
#pragma omp parallel num_threads(num_threads) \
    if (num_products(slots, segments, num_segments) > WORTH_A_THREAD)
#pragma omp single
    for (int64_t i = 0; i < num_segments; i++) {
        const int64_t slot = segments[3 * i], end = segments[3 * i + 1] + segments[3 * i + 2];
        for (int64_t row = segments[3 * i + 1]; row < end; row += TILE_ROWS) {
            const int64_t count = end - row < TILE_ROWS ? end - row : TILE_ROWS;
#pragma omp task firstprivate(slot, row, count)
            update_any(&u, slot, row, count, half);
        }
    }
}
