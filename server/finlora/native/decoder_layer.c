/* Decoder layers as Llama has them, in float32 or bfloat16 on four-bit weights with the adapters of a
 * batch: one call for what would be twenty of Python's for each, which on a small base take as long as
 * the products of a few rows.
 *
 *     h = x + o(attention(rotated q, k, v of norm(x)))     q and k by norms of their own, if there are
 *     y = h + down(silu(gate) * up of norm(h))
 *
 * It calls the kernels that the modules call, in the same order: the results are the same bits.
 */

#include "kernels.h"
#include "vectors.h"

#define MIN_PARALLEL 100000 /* numbers that are worth a second thread */

typedef struct {
    const four_bit_weight *weight;
    const void *bias;           /* [out_features], or null */
    const lora_slots *adapters; /* or null */
} linear;

typedef struct {
    const void *weight; /* or null */
    float eps;
} norm;

typedef struct {
    norm attention_norm, mlp_norm; /* [hidden] */
    norm query_norm, key_norm;     /* [head_size] */
    linear query_key_value, output, gate_up, down; /* joined outputs lie in a row */
    int64_t num_heads, num_kv_heads, head_size;
    int64_t window; /* positions that a token sees; 0: all */
    float scaling;
} decoder_layer;

typedef struct {
    int64_t num_tokens;
    const void *cos, *sin;        /* [num_tokens, head_size] */
    void *const *pools;           /* each layer's keys and values, as finlora_attention reads them */
    const int64_t *new_pages;     /* [num_tokens] */
    const int64_t *table, *spans; /* as finlora_attention takes them */
    int64_t table_stride, num_spans;
    const int64_t *segments; /* as finlora_lora takes them */
    int64_t num_segments;
    int half; /* everything but scales of scores is in bfloat16 */
    int num_threads;
} step;

INLINE void add_rows(const void *from, const void *other, int64_t size, void *to, int half)
{
    for (int64_t i = 0; i < size; i += LANES)
        store(to, i, _mm256_add_ps(load(from, i, half), load(other, i, half)), half);
}

/* to = from + other; rows of `size`, those of `other` being all the same where it has one only. */
static void add(const step *s, const void *from, const void *other, int64_t other_stride,
                int64_t size, void *to)
{
    const int half = s->half;
#pragma omp parallel for num_threads(s->num_threads) if (s->num_tokens * size >= MIN_PARALLEL)
    for (int64_t row = 0; row < s->num_tokens; row++) {
        const void *one = at(from, row * size, half), *two = at(other, row * other_stride, half);
        void *sum = (void *)at(to, row * size, half);
        if (half)
            add_rows(one, two, size, sum, 1);
        else
            add_rows(one, two, size, sum, 0);
    }
}

/* y = x W^T; rows in bfloat16 only where there is a kernel for them. */
static void multiply(const four_bit_weight *w, const step *s, const void *x, void *y)
{
#ifdef __AVX512BF16__
    if (s->half) {
        finlora_four_bit_half_product(w, x, s->num_tokens, y, s->num_threads);
        return;
    }
#endif
    finlora_four_bit_product(w, x, s->num_tokens, 0, 0, 0, y, s->num_threads);
}

/* y = x W^T + bias, and the adapters' updates. */
static void apply(const linear *l, const step *s, const void *x, void *y)
{
    const int64_t width = l->weight->out_features;
    multiply(l->weight, s, x, y);
    if (l->bias)
        add(s, y, l->bias, 0, width, y);
    if (l->adapters && s->num_segments)
        finlora_lora(l->adapters, x, l->weight->in_features, y, width, l->bias, s->segments,
                     s->num_segments, s->half, s->num_threads);
}

/* Every head of every token in place, tokens being so far apart. */
static void normalize_heads(norm n, void *heads, int64_t stride, int64_t num_heads, int64_t size,
                            const step *s)
{
    if (!n.weight)
        return;
#pragma omp parallel for num_threads(s->num_threads) \
    if (s->num_tokens * num_heads * size >= MIN_PARALLEL)
    for (int64_t token = 0; token < s->num_tokens; token++) {
        void *own = (void *)at(heads, token * stride, s->half);
        finlora_rms_norm(own, num_heads, size, n.weight, n.eps, own, s->half, 1);
    }
}

/* Queries, keys and values [num_tokens, (num_heads + 2 num_kv_heads) * head_size] -> out
 * [num_tokens, num_heads * head_size]; keys and values go to their pages. */
static void attend(const decoder_layer *l, const step *s, void *pool, void *heads, void *out)
{
    const int64_t width = l->query_key_value.weight->out_features;
    void *key = (void *)at(heads, l->num_heads * l->head_size, s->half);
    const void *value = at(key, l->num_kv_heads * l->head_size, s->half);
    normalize_heads(l->query_norm, heads, width, l->num_heads, l->head_size, s);
    normalize_heads(l->key_norm, key, width, l->num_kv_heads, l->head_size, s);
    finlora_rotate_and_store(heads, width, key, width, value, width, s->num_tokens, l->num_heads,
                             l->num_kv_heads, l->head_size, s->cos, s->sin, pool, s->new_pages,
                             s->half, s->num_threads);
    finlora_attention(heads, width, pool, s->table, s->table_stride, s->spans, s->num_spans,
                      l->num_heads, l->num_kv_heads, l->head_size, l->window, l->scaling, out, s->half,
                      s->num_threads);
}

/* x and y may be the same. */
static void run(const decoder_layer *l, const step *s, void *pool, const void *x, void *y,
                void *workspace)
{
    const int64_t hidden = l->down.weight->out_features, inner = l->down.weight->in_features;
    const int64_t heads_width = l->query_key_value.weight->out_features;
    const int64_t wide = heads_width > 2 * inner ? heads_width : 2 * inner;
    void *narrow = workspace, *outputs = (void *)at(narrow, s->num_tokens * hidden, s->half);
    void *inputs = (void *)at(outputs, s->num_tokens * wide, s->half);

    finlora_rms_norm(x, s->num_tokens, hidden, l->attention_norm.weight, l->attention_norm.eps,
                     narrow, s->half, s->num_threads);
    apply(&l->query_key_value, s, narrow, outputs);
    attend(l, s, pool, outputs, inputs);
    apply(&l->output, s, inputs, narrow);
    add(s, x, narrow, hidden, hidden, y);

    finlora_rms_norm(y, s->num_tokens, hidden, l->mlp_norm.weight, l->mlp_norm.eps, narrow, s->half,
                     s->num_threads);
    apply(&l->gate_up, s, narrow, outputs);
    finlora_gated_silu(outputs, at(outputs, inner, s->half), s->num_tokens, inner, 2 * inner,
                       inputs, s->half, s->num_threads);
    apply(&l->down, s, inputs, narrow);
    add(s, y, narrow, hidden, hidden, y);
}

/* x and y [num_tokens, hidden], which do not overlap. In the workspace, for which the layers are alike,
 * each token has `hidden` numbers, the more of query_key_value's and gate_up's outputs, and the more of
 * output's and down's inputs. */
void finlora_decoder_layers(const decoder_layer *layers, int64_t num_layers, const step *s,
                            const void *x, void *y, void *workspace)
{
    for (int64_t i = 0; i < num_layers; i++)
        run(layers + i, s, s->pools[i], i == 0 ? x : y, y, workspace);
}
