"""What code, packages and machine made an experiment's numbers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiment.devices import Gpu, count_cores
from experiment.files import now_text, read_json, write_atomically, write_json

CODE_SUFFIXES = (".py", ".c")
NOT_CODE = {"logs", "tests", "docs", "benchmarks", "build", "dist", "node_modules"}
GIT_TIMEOUT_S = 20
DIFF = (
    *("diff", "--binary", "--unified=3", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
"""As `git apply` reads it, whatever a user's own settings make of differences."""


class CodeHasher:
    """Gives the version of the code below some folders, again and again: a file that hasn't changed is read once.

    The version is a hash of the sources, whether or not they are committed. Tests, benchmarks, documents, logs and
    hidden files don't count: they can't change a run.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self._known: dict[Path, tuple[tuple[int, ...], bytes]] = {}

    def hash(self) -> str:
        """Give the version of the code as it is now."""
        digest = hashlib.blake2b(digest_size=8)
        for root in self.roots:
            for name, content in self.hash_sources(root).items():
                digest.update(f"{name}\0".encode())
                digest.update(content)
        return digest.hexdigest()

    def hash_sources(self, root: Path) -> dict[str, bytes]:
        """Give a hash of each source below one of the folders that counts, by its path there, in one order."""
        hashes = {}
        for path in sorted(_list_sources(root)):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                hashes[path.relative_to(root).as_posix()] = self._hash_file(path)
        return hashes

    def _hash_file(self, path: Path) -> bytes:
        there = path.stat()
        identity = (there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != identity:
            known = self._known[path] = identity, hashlib.blake2b(path.read_bytes()).digest()
        return known[1]


def hash_code(roots: Sequence[Path]) -> str:
    """Give the version of the code below some folders."""
    return CodeHasher(roots).hash()


def _list_sources(root: Path) -> Iterator[Path]:
    for folder, children, names in os.walk(root):
        children[:] = [name for name in children if not name.startswith(".") and not _is_left_out(Path(folder), name)]
        paths = [Path(folder) / name for name in names if name.endswith(CODE_SUFFIXES) and not name.startswith(".")]
        yield from (path for path in paths if path.is_file())


def _is_left_out(folder: Path, name: str) -> bool:
    return name in NOT_CODE or name == "__pycache__" or (folder / name / "pyvenv.cfg").exists()


def record_provenance(experiment_dir: Path, code: CodeHasher, gpus: Sequence[Gpu]) -> str:
    """Write `env.json` once a machine and `code/<version>/` once a version. Gives the version of the code.

    `code/<version>/` has the commit, what differs from it, and, under `untracked/`, sources that git doesn't have.
    """
    version = code.hash()
    folder = experiment_dir / "code" / version
    if not (folder / "commit").exists():
        folder.mkdir(parents=True, exist_ok=True)
        root = code.roots[0]
        write_atomically(folder / "diff", [_ask_git(root, *DIFF, "HEAD") or b""])
        _keep_untracked(root, folder / "untracked")
        commit = _ask_git(root, "rev-parse", "HEAD")
        write_atomically(folder / "commit", [commit or b"not a git checkout, or nothing committed\n"])
    if (env := _find_env_path(experiment_dir)) is not None:
        write_json(env, describe_machine(gpus))
    return version


def read_machine(experiment_dir: Path, host: str | None) -> dict[str, Any]:
    """Give what was written of a machine, by its host's name, or of the first one where it has no file of its own."""
    own = read_json(experiment_dir / f"env.{host}.json")
    return own or read_json(experiment_dir / "env.json") or {}


def _find_env_path(experiment_dir: Path) -> Path | None:
    """Give where this machine is to be described: `env.json`, or a file of its own beside another's. None if it is."""
    env = read_json(experiment_dir / "env.json")
    host = platform.node()
    if env is None:
        return experiment_dir / "env.json"
    own = experiment_dir / f"env.{host}.json"
    return None if env.get("host") == host or own.exists() else own


def _keep_untracked(root: Path, target: Path) -> None:
    listed = _ask_git(root, "ls-files", "--others", "--exclude-standard", "-z") or b""
    sources = {path.relative_to(root) for path in _list_sources(root)}
    for name in map(Path, filter(None, listed.decode(errors="replace").split("\0"))):
        if name in sources:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                content = (root / name).read_bytes()
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target / name, [content])


def _ask_git(root: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=GIT_TIMEOUT_S, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def describe_machine(gpus: Sequence[Gpu]) -> dict[str, Any]:
    """Give Python, packages, host, cores and GPUs, as `env.json` holds them."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "recorded": now_text(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _read_cpu_name(),
        "cores": count_cores(),
        "gpus": [asdict(gpu) for gpu in gpus],
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
