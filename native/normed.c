/* flags: -ffp-contract=fast -Wno-unused-function */

/* Layer norm and what comes after it in one go, forward and backward, in float32; forward of bfloat16 too.

       h = (x - mean(x)) / sqrt(var(x) + EPSILON)        z = weight h + bias        y = Mish(z), or softmax(z) in groups

   ROWS rows are done side by side, so that none waits for the one before; they stay in the first-level cache from their
   first reading to their last. Where fewer are left, rows of zeros take part that nobody looks at. Backward keeps
   nothing but the arguments, and makes the rest again: reading it would take about as long. All is computed in float32;
   bfloat16 is read into it, and the results are rounded.

   Sums over rows go from the first to the last, so results depend on LANES and on nothing else. Any number of features
   and any group that divides them will do; groups of a power of two that LANES is a multiple of are fastest. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"
#include "halves.h"

#define ROWS 4
#define EPSILON 1e-5f
#define MISH_IS_STRAIGHT 40.0f /* from here on, and long before, in float32 */

/* What a layer is called with; `rl/tdmpc2/kernels.py` has the same. Numbers are member, row, feature in memory; weight
   and bias are member, feature. A group of 0 is for Mish. */
typedef struct {
    int64_t members, rows, dim, group; /* rows: of one member */
    const void *x, *weight, *bias;
} Layer;

typedef struct {
    float *x, *weight, *bias;
} Gradients;

typedef enum { MISH, SMALL, ANY } Kind; /* what comes after; groups that `add_up` is for are SMALL */

/* Where a row is: what goes in, the loss's derivative by what comes out, and what is written: y or a gradient. */
typedef struct {
    const void *x;
    const float *slope;
    void *out;
} Row;

/* What one member has of its own, what backward adds up, and numbers of ROWS rows as vector, row, lane. */
typedef struct {
    int64_t dim, vectors;
    Lanes *weight, *bias, *for_weight, *for_bias, *zeros, *spare, *rows, *pulls;
} Bench;

/* What a row on the bench is normed by: h = (row - shift) factor. */
typedef struct {
    Lanes shift[ROWS], factor[ROWS];
} Scale;

/* Give 0 where there is no memory left. */
static int prepare(Bench *bench, int64_t dim)
{
    const int64_t vectors = (dim + LANES - 1) / LANES, size = (6 + 2 * ROWS) * vectors * sizeof(Lanes);
    Lanes *room = aligned_alloc(64, (size + 63) / 64 * 64);
    if (room == NULL)
        return 0;
    memset(room, 0, 6 * vectors * sizeof *room);
    *bench = (Bench){dim, vectors, room, room + vectors, room + 2 * vectors, room + 3 * vectors, room + 4 * vectors,
                     room + 5 * vectors, room + 6 * vectors, room + (6 + ROWS) * vectors};
    return 1;
}

/* Partners of lanes: those that groups of two, four, eight and sixteen are put together of. */
#if LANES == 16
#define BY_ONES 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define BY_TWOS 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#define BY_FOURS 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11
#define BY_EIGHTS 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#elif LANES == 8
#define BY_ONES 1, 0, 3, 2, 5, 4, 7, 6
#define BY_TWOS 2, 3, 0, 1, 6, 7, 4, 5
#define BY_FOURS 4, 5, 6, 7, 0, 1, 2, 3
#define BY_EIGHTS BY_ONES /* there is no such group */
#elif LANES == 4
#define BY_ONES 1, 0, 3, 2
#define BY_TWOS 2, 3, 0, 1
#define BY_FOURS BY_ONES
#define BY_EIGHTS BY_ONES
#endif

/* Where one of them isn't a number, either may come out. */
#if LANES == 16 && defined(__AVX512F__)
#define LARGER(one, other) ((Lanes)_mm512_max_ps((__m512)(one), (__m512)(other)))
#elif LANES == 8 && defined(__AVX__)
#define LARGER(one, other) ((Lanes)_mm256_max_ps((__m256)(one), (__m256)(other)))
#else
#define LARGER(one, other) choose((Bits)((one) > (other)), one, other)
#endif

/* Every lane gets the sum of its group, which is of a power of two that LANES is a multiple of. */
INLINE Lanes add_up(Lanes x, int64_t group)
{
    if (group > 1)
        x += MERGE(x, x, BY_ONES);
    if (group > 2)
        x += MERGE(x, x, BY_TWOS);
    if (group > 4)
        x += MERGE(x, x, BY_FOURS);
    if (group > 8)
        x += MERGE(x, x, BY_EIGHTS);
    return x;
}

/* The same with the largest of the group. */
INLINE Lanes find_most(Lanes x, int64_t group)
{
    if (group > 1)
        x = LARGER(x, MERGE(x, x, BY_ONES));
    if (group > 2)
        x = LARGER(x, MERGE(x, x, BY_TWOS));
    if (group > 4)
        x = LARGER(x, MERGE(x, x, BY_FOURS));
    if (group > 8)
        x = LARGER(x, MERGE(x, x, BY_EIGHTS));
    return x;
}

/* Read rows as their distances from about their means, and say how the normed rows follow from them.

   The mean of large numbers is rounded by more than what they may differ by, but the mean of the distances is not: it
   is the shift. A row of one number only gets exactly 0. */
INLINE Scale read_rows(const Bench *bench, const Row rows[ROWS], Number number)
{
    Lanes sums[ROWS] = {0}, squares[ROWS] = {0}, means[ROWS];
    for (int64_t v = 0; v < bench->vectors; v++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
            sums[r] += read_numbers(rows[r].x, v * LANES, bench->dim - v * LANES, 0, number);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        means[r] = add_up(sums[r], LANES) / (float)bench->dim;
        sums[r] = fill(0);
    }
    for (int64_t v = 0; v < bench->vectors; v++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const Lanes x = read_numbers(rows[r].x, v * LANES, bench->dim - v * LANES, means[r][0], number);
            const Lanes distance = x - means[r];
            bench->rows[v * ROWS + r] = distance;
            sums[r] += distance;
            squares[r] += distance * distance;
        }
    Scale scale;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const Lanes sum = add_up(sums[r], LANES), shift = sum / (float)bench->dim;
        const Lanes variance = (add_up(squares[r], LANES) - sum * shift) / (float)bench->dim;
        scale.shift[r] = shift;
        scale.factor[r] = fill(1 / sqrtf(variance[0] + EPSILON));
    }
    return scale;
}

/* x tanh(log(1 + e^x)): with e = e^x and n = e^2 + 2 e, the tanh is n / (n + 2). */
INLINE Lanes find_mish(Lanes x)
{
    const Lanes e = find_power(AT_MOST(MISH_IS_STRAIGHT, x) * LOG2_E), n = e * (e + 2.0f);
    return x * (n / (n + 2.0f)); /* x n may be infinite */
}

/* Its derivative, n / (n + 2) + 4 x e (e + 1) / (n + 2)^2. */
INLINE Lanes find_mish_slope(Lanes x)
{
    x = AT_MOST(MISH_IS_STRAIGHT, x);
    const Lanes e = find_power(x * LOG2_E), n = e * (e + 2.0f), part = 1.0f / (n + 2.0f);
    return part * (n + 4.0f * x * e * ((e + 1.0f) * part));
}

/* The softmax of each group, which is as for `add_up`. */
INLINE void soften(Lanes x[ROWS], int64_t group)
{
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        x[r] = (x[r] - find_most(x[r], group)) * LOG2_E;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        x[r] = find_power(x[r]);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        x[r] = x[r] / add_up(x[r], group);
}

/* Turn the numbers of each group, of any size, into their softmax. */
static void soften_groups(float *numbers, int64_t dim, int64_t group)
{
    for (float *first = numbers; first < numbers + dim; first += group) {
        Lanes most = fill(first[0]), sum = fill(0);
        for (int64_t i = 0; i < group; i += LANES)
            most = LARGER(most, read_lanes(first + i, group - i, first[0]));
        most = find_most(most, LANES);
        for (int64_t i = 0; i < group; i += LANES) {
            const Lanes z = read_lanes(first + i, group - i, 0);
            write_lanes(first + i, group - i, find_power((z - most) * LOG2_E));
            sum += read_lanes(first + i, group - i, 0);
        }
        sum = add_up(sum, LANES);
        for (int64_t i = 0; i < group; i += LANES)
            write_lanes(first + i, group - i, read_lanes(first + i, group - i, 0) / sum);
    }
}

/* Turn softmaxes into the loss's derivative by what they are of; `slope` is that by them. */
static void pull_groups(float *softmaxes, const float *slope, int64_t dim, int64_t group)
{
    for (int64_t first = 0; first < dim; first += group) {
        Lanes sum = fill(0);
        for (int64_t i = first; i < first + group; i += LANES)
            sum += read_lanes(softmaxes + i, first + group - i, 0) * read_lanes(slope + i, first + group - i, 0);
        sum = add_up(sum, LANES);
        for (int64_t i = first; i < first + group; i += LANES) {
            const int64_t left = first + group - i;
            const Lanes soft = read_lanes(softmaxes + i, left, 0);
            write_lanes(softmaxes + i, left, soft * (read_lanes(slope + i, left, 0) - sum));
        }
    }
}

/* Write y of rows that were read.

   Softmaxes of groups of ANY size are made in memory as float32: where y will be, or else where backward has pulls. */
INLINE void write_rows(const Bench *bench, const Row rows[ROWS], const Scale *scale, Kind kind, int64_t group,
                       Number number)
{
    const int is_aside = kind == ANY && number == HALF;
    for (int64_t v = 0; v < bench->vectors; v++) {
        Lanes z[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const Lanes h = (bench->rows[v * ROWS + r] - scale->shift[r]) * scale->factor[r];
            z[r] = h * bench->weight[v] + bench->bias[v];
            if (kind == MISH)
                z[r] = find_mish(z[r]);
        }
        if (kind == SMALL)
            soften(z, group);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
            if (is_aside)
                bench->pulls[r * bench->vectors + v] = z[r];
            else
                write_numbers(rows[r].out, v * LANES, bench->dim - v * LANES, z[r], number);
    }
    for (int r = 0; r < ROWS && kind == ANY; r++) {
        float *numbers = is_aside ? (float *)(bench->pulls + r * bench->vectors) : rows[r].out;
        soften_groups(numbers, bench->dim, group);
        for (int64_t i = 0; i < bench->dim && is_aside; i += LANES)
            write_numbers(rows[r].out, i, bench->dim - i, read_lanes(numbers + i, bench->dim - i, 0), number);
    }
}

/* Write the loss's derivatives by rows that were read, and add to those by weight and bias. */
INLINE void pull_rows(const Bench *bench, const Row rows[ROWS], const Scale *scale, Kind kind, int64_t group)
{
    Lanes sums[ROWS] = {0}, products[ROWS] = {0};
    if (kind == ANY) { /* softmaxes are needed as a whole; there is room for them where the gradients will be */
        write_rows(bench, rows, scale, kind, group, FULL);
        for (int r = 0; r < ROWS; r++)
            pull_groups(rows[r].out, rows[r].slope, bench->dim, group);
    }
    for (int64_t v = 0; v < bench->vectors; v++) {
        const Lanes weight = bench->weight[v];
        Lanes h[ROWS], z[ROWS], pull[ROWS], for_weight = fill(0), for_bias = fill(0);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const float *from = kind == ANY ? rows[r].out : rows[r].slope;
            pull[r] = read_lanes(from + v * LANES, bench->dim - v * LANES, 0);
            h[r] = (bench->rows[v * ROWS + r] - scale->shift[r]) * scale->factor[r];
            z[r] = h[r] * weight + bench->bias[v];
            if (kind == MISH)
                pull[r] *= find_mish_slope(z[r]);
        }
        if (kind == SMALL) {
            soften(z, group);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                pull[r] = z[r] * (pull[r] - add_up(z[r] * pull[r], group));
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            for_weight += pull[r] * h[r];
            for_bias += pull[r];
            pull[r] *= weight;
            sums[r] += pull[r];
            products[r] += pull[r] * h[r];
            bench->pulls[v * ROWS + r] = pull[r];
        }
        bench->for_weight[v] += for_weight;
        bench->for_bias[v] += for_bias;
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        sums[r] = add_up(sums[r], LANES) / (float)bench->dim;
        products[r] = add_up(products[r], LANES) / (float)bench->dim * scale->factor[r]; /* the factor is h's */
    }
    for (int64_t v = 0; v < bench->vectors; v++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const int64_t i = v * ROWS + r;
            const Lanes lean = (bench->rows[i] - scale->shift[r]) * products[r];
            const Lanes for_x = (bench->pulls[i] - sums[r] - lean) * scale->factor[r];
            write_numbers(rows[r].out, v * LANES, bench->dim - v * LANES, for_x, FULL);
        }
}

/* Begin with a member: nothing is added up yet. */
INLINE void read_member(const Bench *bench, const Layer *layer, int64_t member, Number number)
{
    const int64_t dim = layer->dim;
    for (int64_t v = 0; v < bench->vectors; v++) {
        const int64_t place = member * dim + v * LANES, left = dim - v * LANES;
        bench->weight[v] = read_numbers(layer->weight, place, left, 0, number);
        bench->bias[v] = read_numbers(layer->bias, place, left, 0, number);
    }
    memset(bench->for_weight, 0, 2 * bench->vectors * sizeof(Lanes));
}

/* Write y; or the gradients, if these are not null, by `slope`, the loss's derivative by y, all of it FULL then. */
INLINE int run(const Layer *layer, Kind kind, int64_t group, Number number, void *y, const float *slope,
               const Gradients *gradients)
{
    const int64_t dim = layer->dim;
    void *out = gradients ? gradients->x : y;
    Bench bench;
    if (!prepare(&bench, dim))
        return 1;
    const Row nothing = {bench.zeros, (float *)bench.zeros, bench.spare};
    for (int64_t member = 0; member < layer->members; member++) {
        read_member(&bench, layer, member, number);
        for (int64_t first = 0; first < layer->rows; first += ROWS) {
            Row rows[ROWS];
            for (int r = 0; r < ROWS; r++) {
                const int64_t place = (member * layer->rows + first + r) * dim;
                rows[r] = nothing;
                if (first + r < layer->rows)
                    rows[r] = (Row){find_place(layer->x, place, number), gradients ? slope + place : NULL,
                                    find_place(out, place, number)};
            }
            const Scale scale = read_rows(&bench, rows, number);
            if (gradients)
                pull_rows(&bench, rows, &scale, kind, group);
            else
                write_rows(&bench, rows, &scale, kind, group, number);
        }
        if (gradients) {
            memcpy(gradients->weight + member * dim, bench.for_weight, dim * sizeof(float));
            memcpy(gradients->bias + member * dim, bench.for_bias, dim * sizeof(float));
        }
    }
    free(bench.weight);
    return 0;
}

INLINE int run_kind(const Layer *layer, Number number, void *y, const float *slope, const Gradients *gradients)
{
    const int64_t group = layer->group;
    if (group == 0)
        return run(layer, MISH, group, number, y, slope, gradients);
    if (group == 8 && LANES >= 8) /* the usual one: its size is known while this is compiled */
        return run(layer, SMALL, 8, number, y, slope, gradients);
    if (LANES % group == 0)
        return run(layer, SMALL, group, number, y, slope, gradients);
    return run(layer, ANY, group, number, y, slope, gradients);
}

int64_t count_lanes(void) { return LANES; }

/* Write y. Gives 0, or 1 if there is no memory left. */
int run_forward(const Layer *layer, float *y) { return run_kind(layer, FULL, y, NULL, NULL); }

/* The same where x, weight, bias and y are bfloat16. */
int run_forward_halves(const Layer *layer, uint16_t *y) { return run_kind(layer, HALF, y, NULL, NULL); }

/* Write all gradients. `slope` is the loss's derivative by y. Gives as forward does. */
int run_backward(const Layer *layer, const float *slope, const Gradients *gradients)
{
    return run_kind(layer, FULL, NULL, slope, gradients);
}
