/* Rotary embedding of new queries and keys, the halves of a head being pairs as Llama has them
 * (arXiv 2104.09864), and the way of keys and values into a pool of pages
 * [pages, 2, kv heads, size], in one pass.
 *
 * Products are rounded to the type before they are added, as separate operations would round them.
 */

#include <string.h>

#include "kernels.h"
#include "vectors.h"

/* One head, from where it is to where it goes. cos and sin: [size]. */
INLINE void rotate(const void *from, void *to, const void *cos, const void *sin, int64_t size,
                   int half)
{
    const int64_t middle = size / 2;
    for (int64_t d = 0; d < middle; d += LANES) {
        const __m256 first = load(from, d, half), second = load(from, middle + d, half);
        const __m256 own_0 = rounded(_mm256_mul_ps(first, load(cos, d, half)), half);
        const __m256 own_1 = rounded(_mm256_mul_ps(second, load(cos, middle + d, half)), half);
        const __m256 other_0 = rounded(_mm256_mul_ps(second, load(sin, d, half)), half);
        const __m256 other_1 = rounded(_mm256_mul_ps(first, load(sin, middle + d, half)), half);
        store(to, d, _mm256_sub_ps(own_0, other_0), half);
        store(to, middle + d, _mm256_add_ps(own_1, other_1), half);
    }
}

typedef struct {
    void *query;                  /* [tokens, heads * size], rotated in place */
    const void *key, *value;      /* [tokens, kv heads * size] */
    int64_t query_stride, key_stride, value_stride; /* of tokens */
    int64_t num_heads, num_kv_heads, size;
    const void *cos, *sin; /* [tokens, size] */
    void *pool;
    const int64_t *pages; /* [tokens] */
} new_tokens;

INLINE void place(const new_tokens *n, int64_t token, int half)
{
    const int64_t size = n->size, width = n->num_kv_heads * size;
    const void *cos = at(n->cos, token * size, half), *sin = at(n->sin, token * size, half);
    for (int64_t head = 0; head < n->num_heads; head++) {
        void *query = (void *)at(n->query, token * n->query_stride + head * size, half);
        rotate(query, query, cos, sin, size, half);
    }
    void *keys = (void *)at(n->pool, n->pages[token] * 2 * width, half);
    for (int64_t head = 0; head < n->num_kv_heads; head++)
        rotate(at(n->key, token * n->key_stride + head * size, half),
               (void *)at(keys, head * size, half), cos, sin, size, half);
    memcpy((void *)at(keys, width, half), at(n->value, token * n->value_stride, half),
           width * (half ? 2 : 4));
}

#define TOKENS_WORTH_A_THREAD 64

/* The size of a head is a multiple of 2 * LANES. */
void finlora_rotate_and_store(void *query, int64_t query_stride, const void *key,
                              int64_t key_stride, const void *value, int64_t value_stride,
                              int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
                              int64_t size, const void *cos, const void *sin, void *pool,
                              const int64_t *pages, int half, int num_threads)
{
    const new_tokens n = {query,     key,          value, query_stride, key_stride, value_stride,
                          num_heads, num_kv_heads, size,  cos,          sin,        pool,
                          pages};
#pragma omp parallel for num_threads(num_threads) if (num_tokens > TOKENS_WORTH_A_THREAD)
    for (int64_t token = 0; token < num_tokens; token++) {
        if (half)
            place(&n, token, 1);
        else
            place(&n, token, 0);
    }
}
