/* Counts up whenever the meaning or arguments of any function in this folder change. */
int finlora_kernels_version(void) { return 7; }

/* Whether this CPU runs the library that is compiled with AVX512_BF16. */
int finlora_has_avx512_bf16(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}
