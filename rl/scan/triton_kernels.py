"""The selective scan's kernels for CUDA, in Triton.

A program has some neighbouring channels of a group; time lies along the threads, so that reads are of neighbouring
numbers, and each state's recurrence is an associative scan over pairs (decay, drive). For every state u, delta and y
stay in registers. Longer sequences go chunk by chunk. Sums over images and channels are written in parts and never
added up atomically: the same call gives the same bits.

Shape letters: T steps of a chunk, D channels of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _chain(first_decay, first_drive, decay, drive):
    """Give what two neighbouring pieces of time do to a state, as one: it decays, and this is added."""
    return decay * first_decay, decay * first_drive + drive


@triton.jit
def _soften(x):
    """Give softplus and its slope; the fit is that of native/lanes.h, exact also where softplus is tiny."""
    e = tl.exp(-tl.abs(x))
    s = e / (e + 2)
    square = s * s
    p = square * 1.400599330663681e-1 + 1.4000903069972992e-1
    p = p * square + 2.001076340675354e-1
    p = p * square + 3.333320915699005e-1
    p = p * square + 1
    part = 1 / (1 + e)
    return tl.maximum(x, 0.0) + 2 * s * p, tl.where(x < 0, e * part, part)


@triton.jit
def _read_delta(delta_ptr, places, bias, inside, SOFTPLUS: tl.constexpr):
    """Give steps as they are used and their slope by what was read; outside, 0: nothing decays, nothing is added."""
    raw = tl.load(delta_ptr + places, mask=inside, other=0.0) + bias[:, None]
    slope = tl.full(raw.shape, 1.0, tl.float32)
    if SOFTPLUS:
        raw, slope = _soften(raw)
    return tl.where(inside, raw, 0.0), slope


@triton.jit
def scan_forward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, y_ptr, starts_ptr,
    groups, channels, states, steps, chunks, blocks,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, ONE_CHUNK: tl.constexpr,
    D: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write y; with several chunks also the states before each but the first, as image, channel, chunk, state."""
    program = tl.program_id(0).to(tl.int64)
    shared = program // blocks  # image and group
    lane = program % blocks * D + tl.arange(0, D)
    real = lane < channels
    own = shared % groups * channels + lane  # the channel among all
    row = shared * channels + lane  # the channel among those of all images
    skip = tl.load(D_ptr + own, mask=real, other=0.0) if HAS_D else tl.zeros((D,), tl.float32)
    bias = tl.load(bias_ptr + own, mask=real, other=0.0) if HAS_BIAS else tl.zeros((D,), tl.float32)
    for chunk in range(chunks):
        time = chunk * T + tl.arange(0, T)
        inside = real[:, None] & (time < steps)[None, :]
        places = row[:, None] * steps + time[None, :]
        u = tl.load(u_ptr + places, mask=inside, other=0.0)
        delta, _ = _read_delta(delta_ptr, places, bias, inside, SOFTPLUS)
        y = skip[:, None] * u
        drive = delta * u
        for n in range(states):
            rate = tl.load(A_ptr + own * states + n, mask=real, other=0.0)
            at = (shared * states + n) * steps + time
            B = tl.load(B_ptr + at, mask=time < steps, other=0.0)
            C = tl.load(C_ptr + at, mask=time < steps, other=0.0)
            decay, state = tl.associative_scan((tl.exp(delta * rate[:, None]), drive * B[None, :]), 1, _chain)
            if not ONE_CHUNK:
                start = starts_ptr + (row * (chunks - 1) + chunk - 1) * states + n
                if chunk > 0:
                    state += decay * tl.load(start, mask=real, other=0.0)[:, None]
                if chunk < chunks - 1:
                    last = tl.sum(tl.where((tl.arange(0, T) == T - 1)[None, :], state, 0.0), 1)
                    tl.store(start + states, last, mask=real)
            y += state * C[None, :]
        tl.store(y_ptr + places, y, mask=inside)
        if not ONE_CHUNK:
            tl.debug_barrier()  # what one thread has written, another reads in the next chunk


@triton.jit
def scan_backward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, slope_ptr, starts_ptr, pulls_ptr,
    for_u_ptr, for_delta_ptr, for_A_ptr, for_B_ptr, for_C_ptr, for_D_ptr, for_bias_ptr,
    groups, channels, states, steps, chunks, parts, blocks_in_part,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, ONE_CHUNK: tl.constexpr,
    D: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write gradients: those of A, D and bias for each image, those of B and C for each part of a group's channels."""
    program = tl.program_id(0).to(tl.int64)
    shared = program // parts
    for block in range(blocks_in_part):
        lane = (program % parts * blocks_in_part + block) * D + tl.arange(0, D)
        real = lane < channels
        own = shared % groups * channels + lane
        row = shared * channels + lane
        skip = tl.load(D_ptr + own, mask=real, other=0.0) if HAS_D else tl.zeros((D,), tl.float32)
        bias = tl.load(bias_ptr + own, mask=real, other=0.0) if HAS_BIAS else tl.zeros((D,), tl.float32)
        for_D = tl.zeros((D,), tl.float32)
        for_bias = tl.zeros((D,), tl.float32)
        for back in range(chunks):
            chunk = chunks - 1 - back
            time = chunk * T + tl.arange(0, T)
            inside = real[:, None] & (time < steps)[None, :]
            places = row[:, None] * steps + time[None, :]
            u = tl.load(u_ptr + places, mask=inside, other=0.0)
            slope = tl.load(slope_ptr + places, mask=inside, other=0.0)
            delta, soft = _read_delta(delta_ptr, places, bias, inside, SOFTPLUS)
            follows = real[:, None] & (time + 1 < steps)[None, :]
            later, _ = _read_delta(delta_ptr, places + 1, bias, follows, SOFTPLUS)
            drive = delta * u
            for_drive = tl.zeros((D, T), tl.float32)
            for_delta = tl.zeros((D, T), tl.float32)
            for n in range(states):
                rate = tl.load(A_ptr + own * states + n, mask=real, other=0.0)
                at = (shared * states + n) * steps + time
                B = tl.load(B_ptr + at, mask=time < steps, other=0.0)
                C = tl.load(C_ptr + at, mask=time < steps, other=0.0)
                added = drive * B[None, :]
                decay, state = tl.associative_scan((tl.exp(delta * rate[:, None]), added), 1, _chain)
                reach, pull = tl.associative_scan(
                    (tl.exp(later * rate[:, None]), slope * C[None, :]), 1, _chain, reverse=True
                )
                if not ONE_CHUNK:
                    start = starts_ptr + (row * (chunks - 1) + chunk - 1) * states + n
                    if chunk > 0:
                        state += decay * tl.load(start, mask=real, other=0.0)[:, None]
                    pulled = pulls_ptr + row * states + n
                    if back > 0:
                        pull += reach * tl.load(pulled, mask=real, other=0.0)[:, None]
                    first = tl.sum(tl.where((tl.arange(0, T) == 0)[None, :], pull, 0.0), 1)
                    tl.debug_barrier()  # all have read what is now written over
                    tl.store(pulled, first, mask=real)
                for_exponent = pull * (state - added)  # what is left of the state before
                for_drive += pull * B[None, :]
                for_delta += for_exponent * rate[:, None]
                for_rate = tl.sum(for_exponent * delta, 1)
                if back > 0:
                    for_rate += tl.load(for_A_ptr + row * states + n, mask=real, other=0.0)
                    tl.debug_barrier()
                tl.store(for_A_ptr + row * states + n, for_rate, mask=real)
                at = (program * states + n) * steps + time
                for_B = tl.sum(pull * drive, 0)
                for_C = tl.sum(slope * state, 0)
                if block > 0:
                    for_B += tl.load(for_B_ptr + at, mask=time < steps, other=0.0)
                    for_C += tl.load(for_C_ptr + at, mask=time < steps, other=0.0)
                    tl.debug_barrier()
                tl.store(for_B_ptr + at, for_B, mask=time < steps)
                tl.store(for_C_ptr + at, for_C, mask=time < steps)
            for_delta = (for_delta + for_drive * u) * soft
            tl.store(for_u_ptr + places, for_drive * delta + skip[:, None] * slope, mask=inside)
            tl.store(for_delta_ptr + places, for_delta, mask=inside)
            for_D += tl.sum(slope * u, 1)
            for_bias += tl.sum(tl.where(inside, for_delta, 0.0), 1)
            tl.debug_barrier()  # what one thread has written, another reads in the next chunk or block
        tl.store(for_D_ptr + row, for_D, mask=real)
        tl.store(for_bias_ptr + row, for_bias, mask=real)
