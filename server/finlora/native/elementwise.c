/* What stands between a block's matrix products, each in one pass over its rows: RMSNorm, the gated
 * product of an MLP, rotary embedding; and, for training, their values again with the gradients.
 *
 * Rounded wherever transformers' modules round. A row is computed by one thread in a fixed order, so
 * its bits depend neither on other rows nor on the number of threads. Sizes are multiples of 8.
 */

#include "kernels.h"
#include "vectors.h"

/* Numbers from which on a second thread saves at least 10 us. It costs 1 to 3 us when its core is
 * free; when another process has the core, all wait until it is given back. */
#define MIN_PARALLEL_NORM (128 * 1024)
#define MIN_PARALLEL_GATED (32 * 1024)
/* In training a thread takes little at a time: one that has lost its core holds up the other less. */
#define ROWS_AT_ONCE 16
#define PART 16384 /* numbers of what has no rows */

/* In four parts that do not wait for each other. */
INLINE float sum_of_squares(const void *x, int64_t size, int half)
{
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                      _mm256_setzero_ps()};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            __m256 number = load(x, i + part * LANES, half);
            sums[part] = _mm256_fmadd_ps(number, number, sums[part]);
        }
    }
    for (; i < size; i += LANES) {
        __m256 number = load(x, i, half);
        sums[0] = _mm256_fmadd_ps(number, number, sums[0]);
    }
    return sum_of(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

INLINE float inverse_rms(const void *x, int64_t size, float eps, int half)
{
    const float mean = sum_of_squares(x, size, half) / (float)size;
    const __m128 rms = _mm_sqrt_ss(_mm_set_ss(mean + eps));
    return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), rms));
}

INLINE void norm_row(const void *x, int64_t size, const void *weight, float eps, void *y, int half)
{
    const __m256 inverse = _mm256_set1_ps(inverse_rms(x, size, eps, half));
    for (int64_t i = 0; i < size; i += LANES) {
        __m256 unit = rounded(_mm256_mul_ps(load(x, i, half), inverse), half);
        store(y, i, _mm256_mul_ps(load(weight, i, half), unit), half);
    }
}

/* dx = (g - unit * mean(g * unit)) / rms(x) with g = weight * dy: what lies along x changes no
 * direction. */
INLINE void norm_row_back(const void *x, const void *dy, int64_t size, const void *weight, float eps,
                          void *y, void *dx, int half)
{
    const float inverse_1 = inverse_rms(x, size, eps, half);
    const __m256 inverse = _mm256_set1_ps(inverse_1);
    __m256 sums = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += LANES) {
        const __m256 g = _mm256_mul_ps(load(weight, i, half), load(dy, i, half));
        sums = _mm256_fmadd_ps(g, load(x, i, half), sums);
    }
    const __m256 along = _mm256_set1_ps(sum_of(sums) * inverse_1 / (float)size);
    for (int64_t i = 0; i < size; i += LANES) {
        const __m256 w = load(weight, i, half);
        const __m256 unit = _mm256_mul_ps(load(x, i, half), inverse);
        const __m256 g = _mm256_mul_ps(w, load(dy, i, half));
        store(y, i, _mm256_mul_ps(w, rounded(unit, half)), half);
        store(dx, i, _mm256_mul_ps(inverse, _mm256_fnmadd_ps(unit, along, g)), half);
    }
}

/* 1 + e^-x. Where `exponential` ends, e^-x is infinite in float32 or nearly: x / (1 + e^-x) is -0 then,
 * and of -infinity NaN, as torch has it. */
INLINE __m256 silu_divisor(__m256 x)
{
    const __m256 is_beyond = _mm256_cmp_ps(x, _mm256_set1_ps(-88.0f), _CMP_LT_OQ);
    const __m256 opposite = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 divisor = _mm256_add_ps(_mm256_set1_ps(1.0f), exponential(opposite));
    return _mm256_blendv_ps(divisor, _mm256_set1_ps(__builtin_inff()), is_beyond);
}

INLINE void gated_row(const void *gate, const void *up, int64_t size, void *out, int half)
{
    for (int64_t i = 0; i < size; i += LANES) {
        const __m256 x = load(gate, i, half);
        const __m256 activated = rounded(_mm256_div_ps(x, silu_divisor(x)), half);
        store(out, i, _mm256_mul_ps(activated, load(up, i, half)), half);
    }
}

/* silu'(x) = s + silu(x) (1 - s) with s = 1 / (1 + e^-x). */
INLINE void gated_row_back(const void *gate, const void *up, const void *dy, int64_t size, void *out,
                           void *d_gate, void *d_up, int half)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    for (int64_t i = 0; i < size; i += LANES) {
        const __m256 x = load(gate, i, half), u = load(up, i, half), d = load(dy, i, half);
        const __m256 s = _mm256_div_ps(one, silu_divisor(x));
        const __m256 activated = rounded(_mm256_mul_ps(x, s), half);
        const __m256 slope = _mm256_fmadd_ps(activated, _mm256_sub_ps(one, s), s);
        store(out, i, _mm256_mul_ps(activated, u), half);
        store(d_gate, i, _mm256_mul_ps(_mm256_mul_ps(d, u), slope), half);
        store(d_up, i, _mm256_mul_ps(d, activated), half);
    }
}

/* The halves of a head are pairs, as Llama has them; `sign` -1 turns back. The halves of the angles are
 * the same. */
INLINE void rotate_head(const void *x, const void *cos, const void *sin, int64_t size, float sign,
                        void *y, int half)
{
    const int64_t second = size / 2;
    const __m256 signs = _mm256_set1_ps(sign);
    for (int64_t i = 0; i < second; i += LANES) {
        const __m256 c = load(cos, i, half), s = _mm256_mul_ps(signs, load(sin, i, half));
        const __m256 x_0 = load(x, i, half), x_1 = load(x, second + i, half);
        store(y, i, _mm256_fnmadd_ps(x_1, s, _mm256_mul_ps(x_0, c)), half);
        store(y, second + i, _mm256_fmadd_ps(x_0, s, _mm256_mul_ps(x_1, c)), half);
    }
}

/* y [num_rows, size] = weight * (x / rms(x)). */
void finlora_rms_norm(const void *x, int64_t num_rows, int64_t size, const void *weight, float eps,
                      void *y, int half, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(static) \
    if (num_rows > 1 && num_rows * size >= MIN_PARALLEL_NORM)
    for (int64_t i = 0; i < num_rows; i++) {
        const void *from = at(x, i * size, half);
        void *to = (void *)at(y, i * size, half);
        if (half)
            norm_row(from, size, weight, eps, to, 1);
        else
            norm_row(from, size, weight, eps, to, 0);
    }
}

/* out [num_rows, size] = silu(gate) * up; rows of gate, and of up, are `stride` numbers apart. */
void finlora_gated_silu(const void *gate, const void *up, int64_t num_rows, int64_t size,
                        int64_t stride, void *out, int half, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(static) \
    if (num_rows > 1 && num_rows * size >= MIN_PARALLEL_GATED)
    for (int64_t i = 0; i < num_rows; i++) {
        const void *gate_row = at(gate, i * stride, half);
        const void *up_row = at(up, i * stride, half);
        void *to = (void *)at(out, i * size, half);
        if (half)
            gated_row(gate_row, up_row, size, to, 1);
        else
            gated_row(gate_row, up_row, size, to, 0);
    }
}

/* y as above, and dx [num_rows, size] of dy. */
void finlora_rms_norm_back(const void *x, const void *dy, int64_t num_rows, int64_t size,
                           const void *weight, float eps, void *y, void *dx, int half,
                           int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, ROWS_AT_ONCE) \
    if (num_rows > 1 && num_rows * size >= MIN_PARALLEL_NORM)
    for (int64_t i = 0; i < num_rows; i++) {
        const void *from = at(x, i * size, half), *gradient = at(dy, i * size, half);
        void *to = (void *)at(y, i * size, half), *back = (void *)at(dx, i * size, half);
        if (half)
            norm_row_back(from, gradient, size, weight, eps, to, back, 1);
        else
            norm_row_back(from, gradient, size, weight, eps, to, back, 0);
    }
}

/* out as above, and the gradients of dy; all [size]. */
void finlora_gated_silu_back(const void *gate, const void *up, const void *dy, int64_t size,
                             void *out, void *d_gate, void *d_up, int half, int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(dynamic) if (size >= MIN_PARALLEL_GATED)
    for (int64_t begin = 0; begin < size; begin += PART) {
        const int64_t count = size - begin < PART ? size - begin : PART;
        const void *inputs[3] = {at(gate, begin, half), at(up, begin, half), at(dy, begin, half)};
        void *outputs[3] = {(void *)at(out, begin, half), (void *)at(d_gate, begin, half),
                            (void *)at(d_up, begin, half)};
        if (half)
            gated_row_back(inputs[0], inputs[1], inputs[2], count, outputs[0], outputs[1],
                           outputs[2], 1);
        else
            gated_row_back(inputs[0], inputs[1], inputs[2], count, outputs[0], outputs[1],
                           outputs[2], 0);
    }
}

/* y [num_tokens, num_heads, size] = x turned by the angles [num_tokens, size], or by -1 times them. */
void finlora_rotate(const void *x, int64_t num_tokens, int64_t num_heads, int64_t size,
                    const void *cos, const void *sin, float sign, void *y, int half,
                    int num_threads)
{
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, ROWS_AT_ONCE) \
    if (num_tokens * num_heads * size >= MIN_PARALLEL_GATED)
    for (int64_t token = 0; token < num_tokens; token++) {
        const void *c = at(cos, token * size, half), *s = at(sin, token * size, half);
        for (int64_t head = token * num_heads; head < (token + 1) * num_heads; head++) {
            const void *from = at(x, head * size, half);
            void *to = (void *)at(y, head * size, half);
            if (half)
                rotate_head(from, c, s, size, sign, to, 1);
            else
                rotate_head(from, c, s, size, sign, to, 0);
        }
    }
}
