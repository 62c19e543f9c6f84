"""Which devices there are, and what `-g` means. NVML is asked behind a small interface, torch never."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path


class DeviceError(RuntimeError):
    """A device that was asked for is not there. The runner ends with exit code 3."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. `index` is what users call it, `physical` its place in PCI bus order on this machine."""

    index: int
    physical: int
    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Device:
    """Where a run is placed: one GPU, or the CPU (`gpu` None)."""

    gpu: Gpu | None

    @property
    def name(self) -> str:
        """The device as a user calls it: `cpu`, `0`, `1`."""
        return "cpu" if self.gpu is None else str(self.gpu.index)

    def environment(self) -> dict[str, str]:
        """Give the variables that make this the one device that a process started with them can see."""
        visible = "" if self.gpu is None else self.gpu.uuid
        return {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


CPU = Device(None)

ListGpus = Callable[[], Sequence[Gpu]]


def list_gpus() -> list[Gpu]:
    """Give the CUDA devices of this machine that this process may use, in PCI bus order, by asking NVML.

    Where `CUDA_VISIBLE_DEVICES` is set (by Slurm, say) it is obeyed: the list holds those devices in that order, with
    indices counted from 0 within it, as every CUDA program numbers them.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            gpus.append(Gpu(index, index, pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle), memory))
    finally:
        pynvml.nvmlShutdown()
    return choose_visible(gpus, os.environ)


@dataclass(frozen=True)
class GpuReading:
    """A GPU's memory now, in bytes. `by_pid` has the processes that NVML tells of; in a container it may be none."""

    free_bytes: int
    used_bytes: int
    by_pid: Mapping[int, int]


class GpuMeter:
    """Reads the memory of GPUs; NVML, which takes its time to open, stays open."""

    def __init__(self) -> None:
        self._is_open = False

    def read(self, uuid: str) -> GpuReading:
        """Give how a GPU's memory is used now.

        Raises:
            DeviceError: NVML can't say.
        """
        import pynvml

        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError as error:
            raise DeviceError(f"the memory of GPU {uuid} can't be read: {error}") from error
        by_pid = {int(process.pid): int(process.usedGpuMemory) for process in processes if process.usedGpuMemory}
        return GpuReading(int(memory.free), int(memory.used), by_pid)


def read_utilisation(uuid: str) -> int | None:
    """Give the percent of the last second or less in which any kernel ran on a GPU; None where NVML can't say."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByUUID(uuid)).gpu)
    except pynvml.NVMLError:  # part of a GPU (MIG) has none
        return None
    finally:
        pynvml.nvmlShutdown()


def choose_visible(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Keep the GPUs that `CUDA_VISIBLE_DEVICES` lets a process see, in its order and numbered from 0.

    As in CUDA itself, an entry that names no device hides itself and all after it.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(gpus)
    visible: list[Gpu] = []
    for entry in (part.strip() for part in wanted.split(",")):
        match = next((gpu for gpu in gpus if entry == str(gpu.index) or (entry and gpu.uuid.startswith(entry))), None)
        if match is None:
            break
        visible.append(replace(match, index=len(visible)))
    return visible


def choose_devices(wanted: str, gpus: Sequence[Gpu]) -> tuple[list[Device], str | None]:
    """Give the devices that `-g` names, and a line to say where that isn't what was literally asked for.

    Args:
        wanted: `0`, `0,1`, `all` or `cpu`.
        gpus: those that there are. Without any, every choice means the CPU.

    Raises:
        DeviceError: there are GPUs, but not the one that was named.
        ValueError: `wanted` is none of these.
    """
    if wanted == "cpu":
        return [CPU], None
    indices = list(range(len(gpus))) if wanted == "all" else _parse_indices(wanted)
    if not gpus:
        return [CPU], f"There is no CUDA device here: -g {wanted} runs on the CPU."
    for index in indices:
        if index >= len(gpus):
            there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
            raise DeviceError(f"-g {wanted}: there is no GPU {index} here; there are {there}")
    return [Device(gpus[index]) for index in indices], None


def _parse_indices(wanted: str) -> list[int]:
    parts = wanted.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"-g {wanted}: give a GPU's index, several as 0,1, or all, or cpu")
    indices = [int(part) for part in parts]
    if len(set(indices)) != len(indices):
        raise ValueError(f"-g {wanted}: a GPU is named twice; use -j for several runs on one GPU")
    return indices


def count_cores() -> int:
    """Give the number of CPU cores that this process may use: its affinity, cut by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
