/* Vectors of floats from and into memory, where numbers are float32, or bfloat16: the upper half of a float32.

   Comes after lanes.h. What is left of a row after its last whole vector goes number by number: a call of memcpy would
   have sums out of the registers in each round of a loop, and unrolling makes ten times as much code. */

typedef enum { FULL, HALF } Number;

typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t Pairs __attribute__((vector_size(4 * LANES))); /* lower and upper halves in turn */
typedef uint16_t LooseHalves __attribute__((vector_size(2 * LANES), aligned(2), may_alias)); /* somewhere in memory */

/* The intrinsics are an instruction or two where compilers make five. */
INLINE Lanes widen(Halves halves)
{
#if LANES == 16 && defined(__AVX512BW__) /* number 16, and all after it, are 0 */
    const Pairs order = {16, 0, 16, 1, 16, 2,  16, 3,  16, 4,  16, 5,  16, 6,  16, 7,
                         16, 8, 16, 9, 16, 10, 16, 11, 16, 12, 16, 13, 16, 14, 16, 15};
    return (Lanes)_mm512_permutexvar_epi16((__m512i)order, _mm512_zextsi256_si512((__m256i)halves));
#elif LANES == 8 && defined(__AVX2__)
    return (Lanes)((Bits)_mm256_cvtepu16_epi32((__m128i)halves) << 16);
#else
    return (Lanes)(__builtin_convertvector(halves, Bits) << 16);
#endif
}

/* Round to the nearest bfloat16, to the even one of two as near. NaN stays so, which adding might make infinite.

   The instruction that some processors have for it takes numbers below 2^-126 for 0. */
INLINE Halves narrow(Lanes x)
{
#if LANES == 16 && defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    const Bits bits = (Bits)x, rounded = bits + (bits >> 16 & 1) + 0x7fff, quiet = bits | 0x400000;
    const Bits kept = (Bits)choose((Bits)(x != x), (Lanes)quiet, (Lanes)rounded);
    return __builtin_convertvector(kept >> 16, Halves);
#endif
}

/* Read a vector where `left` float32 are left; lanes beyond them are `rest`. */
INLINE Lanes read_lanes(const float *numbers, int64_t left, float rest)
{
    float lanes[LANES];
    if (left >= LANES)
        return *(const Loose *)numbers;
#pragma GCC unroll 1
    for (int i = 0; i < LANES; i++)
        lanes[i] = i < left ? numbers[i] : rest;
    return *(const Loose *)lanes;
}

/* Write what `read_lanes` reads. */
INLINE void write_lanes(float *numbers, int64_t left, Lanes lanes)
{
    if (left >= LANES) {
        *(Loose *)numbers = lanes;
        return;
    }
#pragma GCC unroll 1
    for (int i = 0; i < LANES; i++)
        if (i < left)
            numbers[i] = lanes[i];
}

/* Read a vector as `read_lanes` does where `left` bfloat16 are left. */
INLINE Lanes read_halves(const uint16_t *numbers, int64_t left, float rest)
{
    uint16_t halves[LANES];
    float lanes[LANES];
    if (left >= LANES)
        return widen(*(const LooseHalves *)numbers);
#pragma GCC unroll 1
    for (int i = 0; i < LANES; i++)
        halves[i] = i < left ? numbers[i] : 0;
    const Lanes wide = widen(*(const LooseHalves *)halves);
#pragma GCC unroll 1
    for (int i = 0; i < LANES; i++)
        lanes[i] = i < left ? wide[i] : rest;
    return *(const Loose *)lanes;
}

/* Write what `read_halves` reads. */
INLINE void write_halves(uint16_t *numbers, int64_t left, Lanes lanes)
{
    const Halves halves = narrow(lanes);
    if (left >= LANES) {
        *(LooseHalves *)numbers = halves;
        return;
    }
#pragma GCC unroll 1
    for (int i = 0; i < LANES; i++)
        if (i < left)
            numbers[i] = halves[i];
}

/* Give where number `place` of an array is. */
INLINE void *find_place(const void *numbers, int64_t place, Number number)
{
    return (char *)numbers + place * (number == HALF ? sizeof(uint16_t) : sizeof(float));
}

/* Read a vector from number `place` on, of either kind. */
INLINE Lanes read_numbers(const void *numbers, int64_t place, int64_t left, float rest, Number number)
{
    const void *from = find_place(numbers, place, number);
    return number == HALF ? read_halves(from, left, rest) : read_lanes(from, left, rest);
}

/* Write what `read_numbers` reads. */
INLINE void write_numbers(void *numbers, int64_t place, int64_t left, Lanes lanes, Number number)
{
    void *to = find_place(numbers, place, number);
    if (number == HALF)
        write_halves(to, left, lanes);
    else
        write_lanes(to, left, lanes);
}
