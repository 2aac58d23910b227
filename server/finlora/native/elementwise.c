/* What stands between a block's matrix products, each in one pass over its rows: RMSNorm and the
 * gated product of an MLP.
 *
 * Rounded wherever transformers' modules round. A row is computed by one thread in a fixed order, so
 * its bits depend neither on other rows nor on the number of threads. Sizes are multiples of 8.
 */

#include "vectors.h"

/* Numbers from which on a second thread saves at least 10 us. It costs 1 to 3 us when its core is
 * free; when another process has the core, all wait until it is given back. */
#define MIN_PARALLEL_NORM (128 * 1024)
#define MIN_PARALLEL_GATED (32 * 1024)

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

INLINE void norm_row(const void *x, int64_t size, const void *weight, float eps, void *y, int half)
{
    const float mean = sum_of_squares(x, size, half) / (float)size;
    const __m256 rms = _mm256_sqrt_ps(_mm256_set1_ps(mean + eps));
    const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(1.0f), rms);
    for (int64_t i = 0; i < size; i += LANES) {
        __m256 unit = rounded(_mm256_mul_ps(load(x, i, half), inverse), half);
        store(y, i, _mm256_mul_ps(load(weight, i, half), unit), half);
    }
}

/* x / (1 + e^-x). Where `exponential` ends, e^-x is infinite in float32 or nearly: the result is -0,
 * and of -infinity NaN, as torch has it. */
INLINE __m256 silu(__m256 x)
{
    const __m256 is_beyond = _mm256_cmp_ps(x, _mm256_set1_ps(-88.0f), _CMP_LT_OQ);
    const __m256 opposite = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 divisor = _mm256_add_ps(_mm256_set1_ps(1.0f), exponential(opposite));
    return _mm256_div_ps(x, _mm256_blendv_ps(divisor, _mm256_set1_ps(__builtin_inff()), is_beyond));
}

INLINE void gated_row(const void *gate, const void *up, int64_t size, void *out, int half)
{
    for (int64_t i = 0; i < size; i += LANES) {
        __m256 activated = rounded(silu(load(gate, i, half)), half);
        store(out, i, _mm256_mul_ps(activated, load(up, i, half)), half);
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
