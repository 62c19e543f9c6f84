/* flags: -ffp-contract=fast -pthread */

/* The selective scan, forward and backward, in float32.

       h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t        h_0 = 0

   A lane is a channel: LANES neighbouring channels of a group, a block, go through time together. Time is cut into
   chunks of CHUNK steps. Where in memory time is innermost, each block's chunk is turned round as it is read, into a
   tile, and back as it is written; where channels are, its steps are vectors as they are. Forward keeps the states
   before each chunk but the first; backward makes the states of one chunk again before it goes through it in reverse.

   Results depend on LANES, so on the processor's kind, and not on the number of threads. Any number of channels, states
   and steps will do; full blocks and full chunks are fastest. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

#define CHUNK TILE      /* a state is kept for every so many steps */
#define LEAST_SHARES 16 /* pieces of work that backward is cut into, if there are as many images */
#define MOST_THREADS 256

/* What a scan is called with; `rl/scan/by_c.py` has the same. D and bias may be null.

   u, delta and y are batch, group, channel, step in memory, B and C are batch, group, state, step; or, with
   `channels_last`, batch, step, group, channel and batch, step, group, state. */
typedef struct {
    int64_t batch, groups, channels, states, steps; /* channels: of one group */
    int64_t channels_last, softplus, threads;
    const float *u, *delta, *A, *B, *C, *D, *bias;
} Scan;

typedef struct {
    float *u, *delta, *A, *B, *C, *D, *bias;
} Gradients;

/* A block of channels at one chunk of one image. */
typedef struct {
    int64_t lanes, steps;           /* how many channels and steps it has */
    int64_t channel, shared, place; /* where it begins among all channels, in B and C, and in u, delta and y */
} Site;

static int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

static int64_t divide_up(int64_t amount, int64_t size) { return (amount + size - 1) / size; }

static int64_t count_dim(const Scan *scan) { return scan->groups * scan->channels; }

static int64_t count_blocks(const Scan *scan) { return divide_up(scan->channels, LANES); }

static int64_t count_chunks(const Scan *scan) { return divide_up(scan->steps, CHUNK); }

static void *allocate(int64_t vectors) { return aligned_alloc(64, (vectors * sizeof(Lanes) + 63) / 64 * 64); }

static Site find_site(const Scan *scan, int64_t image, int64_t group, int64_t block, int64_t chunk)
{
    const int64_t first = block * LANES, step = chunk * CHUNK, part = image * scan->groups + group;
    const int64_t moment = image * scan->steps + step, channel = group * scan->channels + first;
    const int last = scan->channels_last != 0;
    return (Site){
        .lanes = least(LANES, scan->channels - first),
        .steps = least(CHUNK, scan->steps - step),
        .channel = channel,
        .shared = last ? (moment * scan->groups + group) * scan->states : part * scan->states * scan->steps + step,
        .place = last ? moment * count_dim(scan) + channel : (part * scan->channels + first) * scan->steps + step,
    };
}

/* In B and C: how far off the next state is, and the next step. */
static int64_t find_state_stride(const Scan *scan) { return scan->channels_last ? 1 : scan->steps; }

static int64_t find_step_stride(const Scan *scan) { return scan->channels_last ? scan->groups * scan->states : 1; }

/* In u, delta and y: how far off the next chunk is, and the next block. */
static int64_t find_chunk_ahead(const Scan *scan) { return scan->channels_last ? CHUNK * count_dim(scan) : CHUNK; }

static int64_t find_block_ahead(const Scan *scan) { return scan->channels_last ? LANES : LANES * scan->steps; }

/* Read a block's chunk of u, delta or y: a vector for each step. `ahead`: see `read_tile`. */
static void read_chunk(const Scan *scan, const Site *site, const float *numbers, int64_t ahead, Lanes *tile)
{
    const int64_t dim = count_dim(scan);
    const float *rows = numbers + site->place;
    if (!scan->channels_last) {
        const float *end = numbers + scan->batch * dim * scan->steps;
        read_tile(rows, scan->steps, end, ahead, site->lanes, site->steps, tile);
    } else {
        read_vectors(rows, dim, ahead, site->lanes, site->steps, tile);
    }
}

/* Write what `read_chunk` reads. */
static void write_chunk(const Scan *scan, const Site *site, float *numbers, const Lanes *tile)
{
    const int64_t dim = count_dim(scan);
    float *rows = numbers + site->place;
    if (!scan->channels_last) {
        write_tile(rows, scan->steps, site->lanes, site->steps, tile);
    } else {
        write_vectors(rows, dim, site->lanes, site->steps, tile);
    }
}

/* What each channel has of its own, as block, state (and two more), lane: A times log2(e), so that decays are powers
   of 2, then D, then bias. Gradients are added up in the same order. */
static void read_weights(const Scan *scan, Lanes *weights)
{
    const int64_t states = scan->states, dim = count_dim(scan);
    for (int64_t i = 0; i < scan->groups * count_blocks(scan); i++, weights += states + 2) {
        const Site site = find_site(scan, 0, i / count_blocks(scan), i % count_blocks(scan), 0);
        for (int64_t n = 0; n < states; n += TILE) {
            const int64_t columns = least(TILE, states - n);
            Lanes tile[TILE];
            read_tile(scan->A + site.channel * states + n, states, scan->A + dim * states, 0, site.lanes, columns, tile);
            for (int64_t j = 0; j < columns; j++)
                weights[n + j] = tile[j] * LOG2_E;
        }
        weights[states] = weights[states + 1] = fill(0);
        for (int64_t j = 0; j < site.lanes; j++) {
            weights[states][j] = scan->D ? scan->D[site.channel + j] : 0;
            weights[states + 1][j] = scan->bias ? scan->bias[site.channel + j] : 0;
        }
    }
}

/* Read u and delta of a chunk; delta with its bias, and softened. */
static void read_inputs(const Scan *scan, const Site *site, Lanes bias, int64_t ahead, Lanes *u, Lanes *delta,
                        Lanes *slope)
{
    read_chunk(scan, site, scan->u, ahead, u);
    read_chunk(scan, site, scan->delta, ahead, delta);
    for (int64_t t = 0; t < site->steps; t++) {
        slope[t] = fill(1);
        delta[t] += bias;
        if (scan->softplus)
            delta[t] = find_softplus(delta[t], slope + t);
    }
}

/* Work that threads share: they take one task after the other. */
typedef struct Job {
    void (*run)(const struct Job *, int64_t task, Lanes *scratch);
    const Scan *scan;
    const Lanes *weights;
    const float *slope; /* of the loss by y */
    float *y, *checkpoints;
    Gradients gradients;
    Lanes *sums; /* the gradients of `weights`, for each share */
    int64_t tasks, shares, scratch;
    atomic_llong next;
    atomic_int failed;
} Job;

static void *work(void *data)
{
    Job *job = data;
    Lanes *scratch = allocate(job->scratch);
    if (scratch == NULL) {
        atomic_store(&job->failed, 1);
        return NULL;
    }
    for (int64_t task; (task = atomic_fetch_add(&job->next, 1)) < job->tasks;)
        job->run(job, task, scratch);
    free(scratch);
    return NULL;
}

/* Give 0 when all is done. A thread that can't be started leaves its work to the others. */
static int run_job(Job *job)
{
    pthread_t helpers[MOST_THREADS];
    const int64_t wanted = least(least(job->scan->threads, MOST_THREADS), job->tasks) - 1;
    int64_t started = 0;
    while (started < wanted && pthread_create(&helpers[started], NULL, work, job) == 0)
        started++;
    work(job);
    for (int64_t i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
    return atomic_load(&job->failed);
}

static float *find_checkpoint(const Job *job, int64_t block, int64_t chunk)
{
    const int64_t place = block * (count_chunks(job->scan) - 1) + chunk - 1; /* block: counted through all images */
    return job->checkpoints + place * job->scan->states * LANES;
}

/* Forward's task: one block of one image through all of time. `states` is scratch. */
static void run_block(const Job *job, int64_t task, Lanes *states)
{
    const Scan *scan = job->scan;
    const int64_t blocks = count_blocks(scan), group = task / blocks % scan->groups, block = task % blocks;
    const int64_t state_stride = find_state_stride(scan), step_stride = find_step_stride(scan);
    const Lanes *weights = job->weights + (group * blocks + block) * (scan->states + 2);
    memset(states, 0, scan->states * sizeof *states);
    for (int64_t chunk = 0; chunk < count_chunks(scan); chunk++) {
        const Site site = find_site(scan, task / blocks / scan->groups, group, block, chunk);
        Lanes u[CHUNK], delta[CHUNK], drive[CHUNK], y[CHUNK], slope[CHUNK];
        const int64_t ahead = chunk + 1 < count_chunks(scan) ? find_chunk_ahead(scan) : find_block_ahead(scan);
        read_inputs(scan, &site, weights[scan->states + 1], ahead, u, delta, slope);
        for (int64_t t = 0; t < site.steps; t++) {
            drive[t] = delta[t] * u[t];
            y[t] = weights[scan->states] * u[t];
        }
        if (job->checkpoints && chunk)
            memcpy(find_checkpoint(job, task, chunk), states, scan->states * sizeof *states);
        for (int64_t n = 0; n < scan->states; n++) {
            const float *B = scan->B + site.shared + n * state_stride, *C = scan->C + site.shared + n * state_stride;
            const Lanes rate = weights[n];
            Lanes state = states[n];
            for (int64_t t = 0; t < site.steps; t++) {
                state = find_power(delta[t] * rate) * state + drive[t] * B[t * step_stride];
                y[t] += state * C[t * step_stride];
            }
            states[n] = state;
        }
        write_chunk(scan, &site, job->y, y);
    }
}

/* Where backward is: one block's part of what goes on from chunk to chunk and from block to block. */
typedef struct {
    const Lanes *weights;
    const float *starts;  /* the states before the chunk; null for 0 */
    Lanes *pulls;         /* what later chunks ask of each state: the loss's derivative */
    Lanes *sums;          /* gradients of the weights */
    Lanes *for_B, *for_C; /* gradients as state, step, lane, of the blocks until here */
} Trail;

/* Backward through one block's chunk. */
static void pull_back(const Job *job, const Site *site, const Trail *trail)
{
    const Scan *scan = job->scan;
    const int64_t steps = site->steps, ahead = find_block_ahead(scan);
    const int64_t state_stride = find_state_stride(scan), step_stride = find_step_stride(scan);
    const Lanes skip = trail->weights[scan->states], bias = trail->weights[scan->states + 1];
    Lanes u[CHUNK], delta[CHUNK], soft[CHUNK], drive[CHUNK], slope[CHUNK], for_drive[CHUNK], for_delta[CHUNK];
    read_inputs(scan, site, bias, ahead, u, delta, soft);
    read_chunk(scan, site, job->slope, ahead, slope);
    for (int64_t t = 0; t < steps; t++) {
        drive[t] = delta[t] * u[t];
        for_drive[t] = for_delta[t] = fill(0);
    }
    for (int64_t n = 0; n < scan->states; n++) {
        const float *B = scan->B + site->shared + n * state_stride, *C = scan->C + site->shared + n * state_stride;
        const Lanes rate = trail->weights[n];
        Lanes decays[CHUNK], states[CHUNK + 1], pull = trail->pulls[n], sum = fill(0);
        Lanes *for_B = trail->for_B + n * CHUNK, *for_C = trail->for_C + n * CHUNK;
        states[0] = fill(0);
        if (trail->starts)
            states[0] = ((const Loose *)trail->starts)[n];
        for (int64_t t = 0; t < steps; t++) {
            decays[t] = find_power(delta[t] * rate);
            states[t + 1] = decays[t] * states[t] + drive[t] * B[t * step_stride];
        }
        for (int64_t t = steps - 1; t >= 0; t--) {
            pull += slope[t] * C[t * step_stride];
            for_C[t] += slope[t] * states[t + 1];
            for_B[t] += pull * drive[t];
            for_drive[t] += pull * B[t * step_stride];
            pull *= decays[t];
            const Lanes for_exponent = pull * states[t]; /* of what the decay is e to the power of */
            for_delta[t] += for_exponent * rate;
            sum += for_exponent * delta[t];
        }
        trail->pulls[n] = pull;
        trail->sums[n] += sum;
    }
    for (int64_t t = 0; t < steps; t++) {
        for_delta[t] = (for_delta[t] * LOG_2 + for_drive[t] * u[t]) * soft[t];
        for_drive[t] = for_drive[t] * delta[t] + slope[t] * skip; /* of u, from here on */
        trail->sums[scan->states] += slope[t] * u[t];
        trail->sums[scan->states + 1] += for_delta[t];
    }
    write_chunk(scan, site, job->gradients.u, for_drive);
    write_chunk(scan, site, job->gradients.delta, for_delta);
}

/* One image's group, from the last chunk to the first. */
static void pull_image_back(const Job *job, int64_t image, int64_t group, Lanes *sums, Lanes *scratch)
{
    const Scan *scan = job->scan;
    const int64_t blocks = count_blocks(scan), states = scan->states, size = states * CHUNK;
    Lanes *pulls = scratch, *for_B = pulls + blocks * states, *for_C = for_B + size;
    memset(pulls, 0, blocks * states * sizeof *pulls);
    for (int64_t chunk = count_chunks(scan) - 1; chunk >= 0; chunk--) {
        Site site;
        memset(for_B, 0, 2 * size * sizeof *for_B);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t all = (image * scan->groups + group) * blocks + block;
            const Trail trail = {
                .weights = job->weights + (group * blocks + block) * (states + 2),
                .starts = chunk ? find_checkpoint(job, all, chunk) : NULL,
                .pulls = pulls + block * states,
                .sums = sums + block * (states + 2),
                .for_B = for_B,
                .for_C = for_C,
            };
            site = find_site(scan, image, group, block, chunk);
            pull_back(job, &site, &trail);
        }
        site = find_site(scan, image, group, 0, chunk);
        for (int64_t n = 0; n < states; n++) {
            const int64_t place = site.shared + n * find_state_stride(scan), stride = find_step_stride(scan);
            sum_lanes(for_B + n * CHUNK, site.steps, job->gradients.B + place, stride);
            sum_lanes(for_C + n * CHUNK, site.steps, job->gradients.C + place, stride);
        }
    }
}

/* Backward's task: one group of a share of the images. What images add up to has a place of its own in each share. */
static void run_share(const Job *job, int64_t task, Lanes *scratch)
{
    const Scan *scan = job->scan;
    const int64_t share = task / scan->groups, group = task % scan->groups;
    const int64_t size = count_blocks(scan) * (scan->states + 2);
    Lanes *sums = job->sums + task * size;
    memset(sums, 0, size * sizeof *sums);
    for (int64_t image = share; image < scan->batch; image += job->shares)
        pull_image_back(job, image, group, sums, scratch);
}

/* Add up the shares, always in the same order, and write the gradients of A, D and bias. */
static void write_sums(const Job *job)
{
    const Scan *scan = job->scan;
    const int64_t states = scan->states, size = states + 2, all = scan->groups * count_blocks(scan);
    for (int64_t i = 0; i < all; i++) {
        Lanes *sums = job->sums + i * size;
        for (int64_t share = 1; share < job->shares; share++)
            for (int64_t n = 0; n < size; n++)
                sums[n] += sums[share * all * size + n];
        const Site site = find_site(scan, 0, i / count_blocks(scan), i % count_blocks(scan), 0);
        for (int64_t n = 0; n < states; n += TILE) {
            float *rows = job->gradients.A + site.channel * states + n;
            write_tile(rows, states, site.lanes, least(TILE, states - n), sums + n);
        }
        for (int64_t j = 0; j < site.lanes; j++) {
            if (job->gradients.D)
                job->gradients.D[site.channel + j] = sums[states][j];
            if (job->gradients.bias)
                job->gradients.bias[site.channel + j] = sums[states + 1][j];
        }
    }
}

int64_t count_lanes(void) { return LANES; }

/* How many floats `run_forward` keeps for `run_backward`. */
int64_t count_kept(const Scan *scan)
{
    const int64_t blocks = scan->batch * scan->groups * count_blocks(scan);
    return blocks * (count_chunks(scan) - 1) * scan->states * LANES;
}

/* Write y, and into `checkpoints`, unless null, what backward needs. Gives 0, or 1 if there is no memory left. */
int run_forward(const Scan *scan, float *y, float *checkpoints)
{
    const int64_t blocks = scan->groups * count_blocks(scan);
    Lanes *weights = allocate(blocks * (scan->states + 2));
    if (weights == NULL)
        return 1;
    read_weights(scan, weights);
    Job job = {.run = run_block, .scan = scan, .weights = weights, .y = y, .checkpoints = checkpoints};
    job.tasks = scan->batch * blocks;
    job.scratch = scan->states;
    const int failed = run_job(&job);
    free(weights);
    return failed;
}

/* Write all gradients; those of D and bias may be null. `slope` is the loss's derivative by y. Gives as forward does. */
int run_backward(const Scan *scan, const float *slope, float *checkpoints, const Gradients *gradients)
{
    const int64_t blocks = count_blocks(scan), size = scan->groups * blocks * (scan->states + 2);
    const int64_t shares = least(scan->batch, divide_up(LEAST_SHARES, scan->groups));
    Lanes *weights = allocate((1 + shares) * size);
    if (weights == NULL)
        return 1;
    read_weights(scan, weights);
    Job job = {.run = run_share, .scan = scan, .weights = weights, .slope = slope, .checkpoints = checkpoints};
    job.gradients = *gradients;
    job.sums = weights + size;
    job.tasks = shares * scan->groups;
    job.shares = shares;
    job.scratch = blocks * scan->states + 2 * scan->states * CHUNK;
    const int failed = run_job(&job);
    if (!failed)
        write_sums(&job);
    free(weights);
    return failed;
}
