/* Vectors of floats as wide as the processor's registers, by GCC's vector extensions, which clang knows too: powers,
   softplus, and tiles, which are read from rows of numbers as vectors of columns. */

#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef LANES /* as many as there are in the widest register; 4 will do anywhere */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

#if LANES == 16
#define LOW_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#elif LANES == 4
#define LOW_HALVES 0, 4, 1, 5
#define HIGH_HALVES 2, 6, 3, 7
#endif
#ifdef __clang__
#define MERGE(left, right, order) __builtin_shufflevector(left, right, order)
#else
#define MERGE(left, right, order) __builtin_shuffle(left, right, (Bits){order})
#endif

#define TILE 16 /* columns of a tile, a multiple of LANES */
#define LOG2_E 1.442695040888963f
#define LOG_2 0.693147180559945f

#define INLINE static inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* somewhere in memory */
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

INLINE Lanes fill(float value) { return (Lanes){0} + value; }

INLINE Lanes choose(Bits mask, Lanes yes, Lanes no) { return (Lanes)(((Bits)yes & mask) | ((Bits)no & ~mask)); }

/* Both give NaN where `value` is. The intrinsics are one instruction where compilers make two of a comparison. */
#if LANES == 16 && defined(__AVX512F__)
#define AT_LEAST(least, value) ((Lanes)_mm512_max_ps((__m512)fill(least), (__m512)(value)))
#define AT_MOST(most, value) ((Lanes)_mm512_min_ps((__m512)fill(most), (__m512)(value)))
#elif LANES == 8 && defined(__AVX__)
#define AT_LEAST(least, value) ((Lanes)_mm256_max_ps((__m256)fill(least), (__m256)(value)))
#define AT_MOST(most, value) ((Lanes)_mm256_min_ps((__m256)fill(most), (__m256)(value)))
#else
#define AT_LEAST(least, value) choose((Bits)((value) < fill(least)), fill(least), value)
#define AT_MOST(most, value) choose((Bits)((value) > fill(most)), fill(most), value)
#endif

/* 2^x to 2e-7 of itself, for x from -126, below which it stays, to 127.5, above which it is infinite.

   Adding 1.5 * 2^23 rounds to a whole number and leaves it in the last bits, 127 more of it make them an exponent.
   2^f on [-1/2, 1/2] is 1 + f p(f), p fitted for the least relative error (9e-8) by reweighted least squares. */
INLINE Lanes find_power(Lanes x)
{
    const float shift = 12582912.0f + 127.0f;
    x = AT_LEAST(-126.0f, x);
    x = AT_MOST(128.0f, x);
    const Lanes whole = x + shift, f = x - (whole - shift);
    Lanes p = f * 1.326472731307149e-3f + 9.671512991189957e-3f;
    p = p * f + 5.550733581185341e-2f;
    p = p * f + 2.4022242426872253e-1f;
    p = p * f + 6.931470036506653e-1f;
    p = p * f + 1.0f;
    return p * (Lanes)((Bits)whole << 23);
}

/* log(1 + e^x) to 4e-7 + 8e-8 |x| of itself (or 1e-38), and its slope.

   log(1 + e) = 2 artanh(s) with s = e / (e + 2), for e = e^-|x| at most 1; artanh(s) / s is fitted in s^2 (4e-9). */
INLINE Lanes find_softplus(Lanes x, Lanes *slope)
{
    const Lanes e = find_power((Lanes)((Bits)x & 0x7fffffffu) * -LOG2_E);
    const Lanes s = e / (e + 2.0f), square = s * s, part = 1.0f / (e + 1.0f);
    Lanes p = square * 1.400599330663681e-1f + 1.4000903069972992e-1f;
    p = p * square + 2.001076340675354e-1f;
    p = p * square + 3.333320915699005e-1f;
    p = p * square + 1.0f;
    *slope = choose((Bits)(x < fill(0)), e * part, part);
    return AT_LEAST(0.0f, x) + 2.0f * s * p;
}

/* Exchange rows and columns: each round merges the first half of the rows with the second. */
INLINE void turn(Lanes rows[LANES])
{
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        Lanes merged[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            merged[2 * i] = MERGE(rows[i], rows[i + LANES / 2], LOW_HALVES);
            merged[2 * i + 1] = MERGE(rows[i], rows[i + LANES / 2], HIGH_HALVES);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            rows[i] = merged[i];
    }
}

/* Read `lanes` rows of `columns` numbers (TILE at most) as `columns` vectors; missing lanes are 0.

   `end` is where the array ends: rows may be read beyond their last column, but not beyond that. `ahead` is how far off
   the numbers are that will be wanted next: memory is slow, and this isn't an order that processors guess. */
static void read_tile(const float *rows, int64_t stride, const float *end, int64_t ahead, int64_t lanes,
                      int64_t columns, Lanes *tile)
{
    if (lanes == LANES && (columns == TILE || (LANES - 1) * stride + TILE <= end - rows)) {
        for (int part = 0; part < TILE; part += LANES) {
            Lanes block[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *row = rows + i * stride + part;
                block[i] = *(const Loose *)row;
                __builtin_prefetch(row + ahead);
            }
            turn(block);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                tile[part + i] = block[i];
        }
        return;
    }
    float *flat = (float *)tile;
    memset(tile, 0, TILE * sizeof *tile);
    for (int64_t i = 0; i < lanes; i++)
        for (int64_t j = 0; j < columns; j++)
            flat[j * LANES + i] = rows[i * stride + j];
}

/* Write what `read_tile` reads. */
static void write_tile(float *rows, int64_t stride, int64_t lanes, int64_t columns, const Lanes *tile)
{
    if (lanes == LANES && columns == TILE) {
        for (int part = 0; part < TILE; part += LANES) {
            Lanes block[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                block[i] = tile[part + i];
            turn(block);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                *(Loose *)(rows + i * stride + part) = block[i];
        }
        return;
    }
    const float *flat = (const float *)tile;
    for (int64_t i = 0; i < lanes; i++)
        for (int64_t j = 0; j < columns; j++)
            rows[i * stride + j] = flat[j * LANES + i];
}

/* Read `columns` vectors (TILE at most) that lie as they are, `stride` apart; missing lanes are 0. */
static void read_vectors(const float *rows, int64_t stride, int64_t ahead, int64_t lanes, int64_t columns, Lanes *tile)
{
    if (lanes == LANES) {
        for (int64_t j = 0; j < columns; j++) {
            tile[j] = *(const Loose *)(rows + j * stride);
            __builtin_prefetch(rows + j * stride + ahead);
        }
        return;
    }
    memset(tile, 0, TILE * sizeof *tile);
    for (int64_t j = 0; j < columns; j++)
        memcpy(tile + j, rows + j * stride, lanes * sizeof *rows);
}

/* Write what `read_vectors` reads. */
static void write_vectors(float *rows, int64_t stride, int64_t lanes, int64_t columns, const Lanes *tile)
{
    if (lanes == LANES) {
        for (int64_t j = 0; j < columns; j++)
            *(Loose *)(rows + j * stride) = tile[j];
        return;
    }
    for (int64_t j = 0; j < columns; j++)
        memcpy(rows + j * stride, tile + j, lanes * sizeof *rows);
}

/* Add up the lanes of each of `columns` vectors; the sums are `stride` apart. */
static void sum_lanes(const Lanes *tile, int64_t columns, float *sums, int64_t stride)
{
    for (int part = 0; part < columns; part += LANES) {
        Lanes block[LANES], sum = fill(0);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            block[i] = tile[part + i];
        turn(block);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            sum += block[i];
        for (int64_t i = 0; i < LANES && part + i < columns; i++)
            sums[(part + i) * stride] = sum[i];
    }
}
