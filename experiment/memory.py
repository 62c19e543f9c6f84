"""How much memory a process may still take on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class MemoryRoom:
    """What there is for a run.

    Attributes:
        host_bytes: of the computer's memory that can still be had.
        gpu_bytes: of the GPU that the run is placed on, all of it; None where it trains on the CPU.
    """

    host_bytes: int
    gpu_bytes: int | None = None


def read_free_memory(root: Path = ROOT) -> int:
    """Give the bytes that can still be had: `MemAvailable`, or what a control group leaves, whichever is less.

    A group's file cache that can be dropped counts as free, as it does in `MemAvailable`.

    Args:
        root: where `proc` and `sys` are.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([available, *_list_group_rooms(root)]))


def read_whole_memory(root: Path = ROOT) -> int:
    """Give the bytes that a process could have if no other had any: the machine's, or a control group's limit."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    return min([total, *_list_group_limits(root)])


def _list_group_limits(root: Path) -> Iterator[int]:
    for folder, limit_name, _, _ in _list_groups(root):
        try:
            limit = (folder / limit_name).read_text().strip()
        except OSError:  # the root group has no limit
            continue
        if limit.isdecimal():
            yield int(limit)


def _list_group_rooms(root: Path) -> Iterator[int]:
    """Give what is left below each limit of the groups that this process is in, and of those that they are in."""
    for folder, limit_name, usage_name, cache_name in _list_groups(root):
        try:
            limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the root group has no limit, and a container may not show all files
            continue
        if limit.isdecimal():
            yield int(limit) - usage + int(statistics.get(cache_name, 0))


def _list_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Give each group's folder with the names of its limit, usage and droppable cache, of versions 1 and 2.

    Where a container shows another path than its own, its own group is the mount's top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = Path(path).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield (top.joinpath(*parts[:depth]), *names)


def show_bytes(size: int) -> str:
    """Write bytes as MiB or GiB, whichever is readable."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
