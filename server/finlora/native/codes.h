/* The numbers that four-bit codes stand for, 32 at a time. */

#ifndef FINLORA_CODES_H
#define FINLORA_CODES_H

#include "vectors.h"

#define VECTORS 4 /* of numbers at a time */

/* Byte b of all 16 numbers, once in each half of a register. */
typedef struct {
    __m256i bytes[4];
} code_book;

INLINE code_book code_book_of(const float numbers[16])
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i fours[4], eights[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        fours[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(numbers + 4 * i)), by_byte);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        eights[i] = _mm_unpacklo_epi32(fours[2 * i], fours[2 * i + 1]);
        eights[i + 2] = _mm_unpackhi_epi32(fours[2 * i], fours[2 * i + 1]);
    }
    code_book book;
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m128i first = eights[2 * i], second = eights[2 * i + 1];
        book.bytes[2 * i] = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(first, second));
        book.bytes[2 * i + 1] = _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(first, second));
    }
    return book;
}

/* Bytes in the order that look_up takes: the first four of every eight, then the others. */
INLINE __m256i arranged(__m256i bytes)
{
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

/* What the codes in the low halves of arranged bytes stand for, or, if `high`, those in the high
 * halves. Each byte of a number is looked up by itself, which takes half of the time that choosing
 * between two permutations of eight numbers takes. */
INLINE void look_up(__m256i bytes, int high, const code_book *book, __m256 out[VECTORS])
{
    const __m256i halves = high ? _mm256_srli_epi16(bytes, 4) : bytes;
    const __m256i codes = _mm256_and_si256(halves, _mm256_set1_epi8(15));
    __m256i found[4], pairs[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        found[i] = _mm256_shuffle_epi8(book->bytes[i], codes);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        pairs[i] = _mm256_unpacklo_epi8(found[2 * i], found[2 * i + 1]);
        pairs[i + 2] = _mm256_unpackhi_epi8(found[2 * i], found[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m256i low = pairs[2 * i], high_pairs = pairs[2 * i + 1];
        out[2 * i] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high_pairs));
        out[2 * i + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high_pairs));
    }
}

#endif
