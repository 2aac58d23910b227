/* The kernels that decoder_layer.c calls, and what they take. */

#ifndef FINLORA_KERNELS_H
#define FINLORA_KERNELS_H

#include <stdint.h>

/* Four-bit weights for rows in float32 or in bfloat16; four_bit.c and four_bit_avx512.c tell how their
 * codes and scales lie. */
typedef struct {
    const uint8_t *codes;
    const void *scales;     /* of the rows' type */
    const float *code_book; /* [16] */
    int64_t in_features, out_features, block_size;
} four_bit_weight;

/* One layer of one adapter. */
typedef struct {
    const void *a; /* [rank, in_features] */
    const void *b; /* [rank, the layer's outputs] */
    int64_t rank;  /* 0 where the adapter leaves the layer alone */
    const void *magnitude; /* DoRA's [the layer's outputs], of the rows' type; or null */
} lora;

/* Adapters of layers that read the same input. */
typedef struct {
    const lora *loras;          /* [slots, num_layers] */
    const int64_t *halves;      /* [slots]: 1 for weights in bfloat16, as they are with such rows */
    const int64_t *column_ends; /* [num_layers]: of each layer's outputs in a row */
    int64_t in_features, out_features, num_layers;
} lora_slots;

void finlora_four_bit_product(const four_bit_weight *w, const float *x, int64_t num_rows,
                              const float *low, const float *columns, int64_t num_ranks, float *y,
                              int num_threads);

void finlora_four_bit_half_product(const four_bit_weight *w, const uint16_t *x, int64_t num_rows,
                                   uint16_t *y, int num_threads);

void finlora_lora(const lora_slots *slots, const void *x, int64_t x_stride, void *y,
                  int64_t y_stride, const void *bias, const int64_t *segments,
                  int64_t num_segments, int half, int num_threads);

void finlora_rms_norm(const void *x, int64_t num_rows, int64_t size, const void *weight, float eps,
                      void *y, int half, int num_threads);

void finlora_gated_silu(const void *gate, const void *up, int64_t num_rows, int64_t size,
                        int64_t stride, void *out, int half, int num_threads);

void finlora_rotate_and_store(void *query, int64_t query_stride, const void *key,
                              int64_t key_stride, const void *value, int64_t value_stride,
                              int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
                              int64_t size, const void *cos, const void *sin, void *pool,
                              const int64_t *pages, int half, int num_threads);

void finlora_attention(const void *query, int64_t query_stride, const void *pool,
                       const int64_t *table, int64_t table_stride, const int64_t *spans,
                       int64_t num_spans, int64_t num_heads, int64_t num_kv_heads, int64_t size,
                       int64_t window, float scaling, void *out, int half, int num_threads);

#endif
