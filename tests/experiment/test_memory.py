"""Free memory as the kernel's files have it, in a tree made by hand."""

from pathlib import Path

import psutil
import pytest

from experiment.memory import read_free_memory, read_whole_memory

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_machine(root: Path, groups: str) -> None:
    write(root, {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB\n", "proc/self/cgroup": groups})


def write_group(root: Path, folder: str, limit: str, usage: int, cache: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 1\n{names[2]} {cache}\n"
    write(root / folder, {names[0]: f"{limit}\n", names[1]: f"{usage}\n", "memory.stat": stat})


def test_what_is_available_counts_where_no_group_is_smaller(tmp_path: Path) -> None:
    make_machine(tmp_path, "0::/user\n")
    assert read_free_memory(tmp_path) == 8 * GIB
    write_group(tmp_path, "sys/fs/cgroup/user", "max", GIB, 0)
    assert read_free_memory(tmp_path) == 8 * GIB


@pytest.mark.parametrize(
    ("version", "groups", "folder"),
    [(2, "0::/job/step\n", "sys/fs/cgroup/job/step"), (1, "3:cpu:/x\n4:memory:/job\n", "sys/fs/cgroup/memory/job")],
)
def test_a_groups_limit_less_what_it_uses_counts_and_its_cache_can_go(
    tmp_path: Path, version: int, groups: str, folder: str
) -> None:
    make_machine(tmp_path, groups)
    write_group(tmp_path, folder, str(4 * GIB), 3 * GIB, GIB // 2, version)
    assert read_free_memory(tmp_path) == 3 * GIB // 2


def test_a_limit_further_up_counts_too(tmp_path: Path) -> None:
    make_machine(tmp_path, "0::/job/step\n")
    write_group(tmp_path, "sys/fs/cgroup/job/step", str(6 * GIB), 0, 0)
    write_group(tmp_path, "sys/fs/cgroup/job", str(2 * GIB), GIB, 0)
    assert read_free_memory(tmp_path) == GIB


def test_a_container_that_shows_another_path_is_held_to_the_limit_at_the_top(tmp_path: Path) -> None:
    make_machine(tmp_path, "0::/somewhere/else\n")
    write_group(tmp_path, "sys/fs/cgroup", str(2 * GIB), GIB, 0)
    assert read_free_memory(tmp_path) == GIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    make_machine(tmp_path, "0::/job\n")
    write_group(tmp_path, "sys/fs/cgroup/job", str(GIB), 2 * GIB, 0)
    assert read_free_memory(tmp_path) == 0


def test_this_machine_has_memory_and_no_more_than_all() -> None:
    assert 0 < read_free_memory() <= psutil.virtual_memory().total


def test_the_whole_memory_is_the_machines_or_the_smallest_limit_whoever_uses_it(tmp_path: Path) -> None:
    make_machine(tmp_path, "0::/job/step\n")
    assert read_whole_memory(tmp_path) == 99 * 1024
    write_group(tmp_path, "sys/fs/cgroup/job/step", "max", 5, 0)
    write_group(tmp_path, "sys/fs/cgroup/job", "70000", 60_000, 0)
    assert read_whole_memory(tmp_path) == 70_000
