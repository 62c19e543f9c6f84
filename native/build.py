"""Shared libraries from the C sources in this folder: built on first use, kept in the user's cache.

A library's file name holds a hash of everything that it depends on: its source, the flags, the compiler's version and
the processor, for whose instructions it is made. So an old one is never loaded for a new source, and machines that
share a home folder don't load each other's.

A source may have headers in this folder, `#include "<name>.h"`, and flags of its own, on a line `/* flags: ... */`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

FLAGS = (
    *("-std=c11", "-O3", "-march=native", "-fPIC", "-shared", "-Wall"),
    # The same bits as NumPy: no product and sum in one rounding.
    "-ffp-contract=off",
    # Loops with square roots can be vectorised; no number changes.
    "-fno-math-errno",
)
"""What every source is compiled with; nothing that lets a compiler reorder arithmetic. A source's own come after."""

_OWN_FLAGS = re.compile(rb"^/\* flags: (.*) \*/$", re.MULTILINE)
_HEADER = re.compile(rb'^#include "(.*)"$')
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_S = 120.0
_VERSION_S = 30.0
_CPU_LINES = ("vendor_id", "model name", "flags", "CPU implementer", "CPU variant", "CPU part", "Features")


class NativeError(RuntimeError):
    """A library can't be had. The message says why and what to do."""


class NoCompilerError(NativeError):
    """There is no C compiler that works."""


class BuildError(NativeError):
    """A source can't be compiled, or the library can't be loaded."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler on this machine.

    Attributes:
        command: the program and its first arguments.
        version: the first line of what it says about itself.
    """

    command: tuple[str, ...]
    version: str


def load_library(name: str) -> ctypes.CDLL:
    """Give the library of `native/<name>.c`, compiled first if this user hasn't done so yet.

    Raises:
        NoCompilerError: there is no compiler. It is needed also where a library was built earlier, as the library's
            name holds the compiler's version.
        BuildError: the compiler refuses the source, or the library can't be loaded; with what was said.
    """
    return load_source(Path(__file__).with_name(f"{name}.c"))


def load_source(source: Path) -> ctypes.CDLL:
    """Give the library of one C source; see `load_library`.

    Several processes may do so at once. A library gets its name when it is whole, so nobody loads half of one. Where
    the cache can't be written to, it is built in a private temporary folder and forgotten, with a warning.
    """
    compiler, code = find_compiler(), read_code(source)
    name = name_library(source.stem, code, compiler)
    try:
        folder = find_cache_folder()
        path = folder / name
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as workshop:
                built = compile_library(source, code, compiler, Path(workshop) / name)
                built.replace(path)
    except OSError as error:
        advice = "set XDG_CACHE_HOME to a folder that can be written to"
        warnings.warn(f"{error}: {source.name} is built anew by every process; {advice}", stacklevel=3)
        with tempfile.TemporaryDirectory(prefix="gridpilot-") as workshop:
            return _open_library(compile_library(source, code, compiler, Path(workshop) / name))
    return _open_library(path)


def find_compiler() -> Compiler:
    """Give the compiler that $CC names, else the first of cc, gcc and clang.

    Raises:
        NoCompilerError: there is none, or it doesn't run.
    """
    wanted = shlex.split(os.environ.get("CC", ""))
    if wanted:
        program = shutil.which(wanted[0])
        if program is None:
            raise NoCompilerError(f"CC is {os.environ['CC']!r}, and there is no such program; unset CC or correct it")
        command = (program, *wanted[1:])
    else:
        programs = [program for name in _COMPILERS if (program := shutil.which(name))]
        if not programs:
            names = ", ".join(_COMPILERS)
            raise NoCompilerError(f"there is no C compiler ({names}); install one (apt install gcc), or name it in CC")
        command = (programs[0],)
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoCompilerError(f"the C compiler doesn't run: {error}; install another, or name one in CC") from error
    return Compiler(command, done.stdout.partition("\n")[0])


def read_code(source: Path) -> bytes:
    """Give a source with its headers in place; the compiler still knows which line is whose."""
    lines = source.read_bytes().splitlines()
    for number, line in enumerate(lines):
        if found := _HEADER.match(line):
            name = found.group(1).decode()
            header = source.with_name(name).read_bytes()
            back = f'#line {number + 2} "{source.name}"'
            lines[number] = b"\n".join((f'#line 1 "{name}"'.encode(), header, back.encode()))
    return b"\n".join((f'#line 1 "{source.name}"'.encode(), *lines, b""))


def read_flags(code: bytes) -> list[str]:
    """Give the flags that a source has of its own."""
    found = _OWN_FLAGS.search(code)
    return found.group(1).decode().split() if found else []


def name_library(stem: str, code: bytes, compiler: Compiler) -> str:
    """Give a file name that changes with whatever may change the library."""
    digest = hashlib.sha256()
    flags = "\0".join((*compiler.command[1:], *FLAGS))
    for part in (code, flags.encode(), compiler.version.encode(), describe_cpu().encode()):
        digest.update(hashlib.sha256(part).digest())
    return f"{stem}-{digest.hexdigest()[:32]}.so"


def describe_cpu() -> str:
    """Give the processor's model and the instructions that it knows."""
    lines = [platform.system(), platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return "\n".join([*lines, platform.processor()])
    first = cpuinfo.read_text().partition("\n\n")[0]
    return "\n".join(lines + [line for line in first.splitlines() if line.startswith(_CPU_LINES)])


def find_cache_folder() -> Path:
    """Give the folder for built libraries, which needn't be there yet.

    Raises:
        OSError: this user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if Path(cache).is_absolute():  # others are to be ignored, says the standard that defines it
        return Path(cache) / "gridpilot" / "native"
    try:
        return Path.home() / ".cache" / "gridpilot" / "native"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def compile_library(source: Path, code: bytes, compiler: Compiler, target: Path) -> Path:
    """Write a library to `target`, to the disk itself, and give `target`.

    Args:
        code: what is compiled; `source` is only named.

    Raises:
        BuildError: the compiler says no, or nothing for two minutes.
    """
    command = [*compiler.command, *FLAGS, *read_flags(code), "-x", "c", "-", "-o", str(target), "-lm"]
    try:
        done = _run_alone(command, code)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{source}: {error}; another compiler can be named in CC") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BuildError(
            f"{source}: {shlex.join(command)} ended with {done.returncode}; another compiler can be named in CC. "
            f"It said:\n{said}"
        )
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target


def _run_alone(command: list[str], code: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a compiler in a session of its own: it starts others, and where time is up all of them are to end.

    Raises:
        subprocess.TimeoutExpired: nothing came of it in two minutes.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            out, errors = process.communicate(code, timeout=_COMPILE_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f"{error}; delete {path}, or set XDG_CACHE_HOME to a folder that programs may be loaded from"
        ) from error
