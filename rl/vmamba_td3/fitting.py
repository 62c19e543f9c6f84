"""Whether training fits into memory, and what to lower where it doesn't. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from experiment.memory import MemoryRoom
from experiment.problems import Fault
from rl.vmamba_td3.architecture import StreamConfig
from rl.vmamba_td3.memory import MemoryEstimate, Workload, estimate_memory

GIB = 2**30


def find_memory_faults(
    stream: StreamConfig, action_dim: int, work: Workload, buffer_frames: int, room: MemoryRoom
) -> list[Fault]:
    """Refuse what can't fit, with the estimate, what there is, and what would fit.

    Args:
        stream: of the actor, and of the critic.
        action_dim: numbers of an action.
        work: what an update works on.
        buffer_frames: frames that the replay buffer keeps.
        room: on the machine and the device that the run is placed on.
    """
    estimate = estimate_memory(stream, action_dim, work, buffer_frames)
    on_gpu = room.gpu_bytes is not None
    faults = []
    if estimate.buffer > room.host_bytes:
        faults.append(_refuse_buffer(estimate, buffer_frames, room))
    left = room.gpu_bytes if room.gpu_bytes is not None else max(0, room.host_bytes - estimate.buffer)

    def fits(stream: StreamConfig, work: Workload) -> bool:
        return find_need(estimate_memory(stream, action_dim, work), on_gpu) <= left

    if not faults and not fits(stream, work):
        faults.append(_refuse_batch(stream, work, estimate, room, fits))
    return faults


def find_need(estimate: MemoryEstimate, on_gpu: bool) -> int:
    """Give what training takes of the memory that its networks are in, without the buffer."""
    return estimate.peak if on_gpu else estimate.process


def find_largest_batch(work: Workload, fits: Callable[[Workload], bool]) -> int:
    """Give the most windows, no more than there are, with which an update fits; 0 where not even one does."""
    low, high = 0, work.batch_size
    while low < high:
        middle = (low + high + 1) // 2
        if fits(replace(work, batch_size=middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _refuse_buffer(estimate: MemoryEstimate, frames: int, room: MemoryRoom) -> Fault:
    each = estimate.buffer // frames
    message = (
        f"buffer_size: {frames:,} frames of {each:,} bytes are {_show(estimate.buffer)}, and {_show(room.host_bytes)} "
        f"of memory are free; at most {room.host_bytes // each:,} frames fit"
    )
    return Fault(("buffer_size", "max_timesteps"), message)


def _refuse_batch(
    stream: StreamConfig,
    work: Workload,
    estimate: MemoryEstimate,
    room: MemoryRoom,
    fits: Callable[[StreamConfig, Workload], bool],
) -> Fault:
    on_gpu = room.gpu_bytes is not None
    need = find_need(estimate, on_gpu)
    there = (
        f"the GPU has {_show(room.gpu_bytes)}"
        if room.gpu_bytes is not None
        else (
            f"{_show(room.host_bytes)} of memory are free, of which the replay buffer may take {_show(estimate.buffer)}"
        )
    )
    largest = find_largest_batch(work, lambda smaller: fits(stream, smaller))
    advice = [f"batch_size {largest} fits" if largest else "not even batch_size 1 fits"]
    advice += [f"so does {change}" if largest else f"{change} fits" for change in _list_changes(stream, work, fits)]
    if not largest and len(advice) == 1:
        advice.append("take a smaller vmamba_hidden_dim, or fewer vmamba_num_vss_blocks")
    message = (
        f"batch_size ({work.batch_size}): training is estimated to take {_show(need)} (networks, targets and moments "
        f"{_show(estimate.lasting)}, an update {_show(need - estimate.lasting)}), and {there}; {'; '.join(advice)}"
    )
    return Fault(("batch_size",), message)


def _list_changes(
    stream: StreamConfig, work: Workload, fits: Callable[[StreamConfig, Workload], bool]
) -> Iterator[str]:
    """Give single changes with which the whole batch fits."""
    if stream.encoder == "vmamba":
        if not work.use_checkpointing and fits(stream, replace(work, use_checkpointing=True)):
            yield "use_checkpointing: true"
        patch = 2 * stream.trunk.patch_size
        while patch <= min(stream.frame_shape[1:]):
            if fits(replace(stream, trunk=replace(stream.trunk, patch_size=patch)), work):
                yield f"vmamba_patch_size: {patch}"
                break
            patch *= 2
    shorter = next((steps for steps in range(work.seq_len - 1, 0, -1) if fits(stream, replace(work, seq_len=steps))), 0)
    if shorter:
        yield f"seq_len: {shorter}"
    if (
        work.encoder_sharing == "separate"
        and not work.privileged_dim
        and fits(stream, replace(work, encoder_sharing="shared"))
    ):
        yield "encoder_sharing: shared"


def _show(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
