"""C sources become libraries once, whole, for the right source and machine, or it is said why not."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from native import build
from native.build import BuildError, Compiler, NoCompilerError, find_compiler, load_source, name_library

SOURCES = sorted(Path(build.__file__).parent.glob("*.c"))

MakeCompiler = Callable[[str], Path]


@pytest.fixture
def real_compiler() -> Compiler:
    try:
        return find_compiler()
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that libraries go to, which isn't there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gridpilot" / "native"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@pytest.fixture
def make_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_compiler: Compiler) -> MakeCompiler:
    """Give a function that makes a compiler of a shell script, in which `real` is a true one."""

    def make(compile_script: str) -> Path:
        path = tmp_path / "fake-cc"
        real = " ".join(real_compiler.command)
        path.write_text(
            f'#!/bin/sh\nreal() {{ {real} "$@"; }}\n'
            f'if [ "$1" = --version ]; then echo fake compiler 1.0; exit; fi\n{compile_script}\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return path

    return make


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_library_is_built_once_and_then_reused(
    cache: Path, source: Path, make_compiler: MakeCompiler, tmp_path: Path
) -> None:
    make_compiler(f'echo compiled >> {tmp_path}/count; real "$@"')
    assert load_source(source).answer() == 42
    (library,) = cache.iterdir()
    built = library.stat().st_mtime_ns
    assert load_source(source).answer() == 42
    assert list(cache.iterdir()) == [library]
    assert library.stat().st_mtime_ns == built
    assert (tmp_path / "count").read_text() == "compiled\n"


def test_a_changed_source_is_built_anew(cache: Path, source: Path, real_compiler: Compiler) -> None:
    load_source(source)
    source.write_text("int answer(void) { return 43; }\n")
    assert load_source(source).answer() == 43
    assert len(list(cache.iterdir())) == 2


def test_a_source_may_have_flags_of_its_own(cache: Path, source: Path, real_compiler: Compiler) -> None:
    source.write_text("/* flags: -DANSWER=8 -DMORE=1 */\nint answer(void) { return ANSWER + MORE; }\n")
    assert load_source(source).answer() == 9
    source.write_text("int answer(void) { return 3; } /* flags: this is no line of its own */\n")
    assert load_source(source).answer() == 3


def test_a_source_may_have_headers_that_count_as_part_of_it(cache: Path, source: Path, real_compiler: Compiler) -> None:
    header = source.with_name("parts.h")
    source.write_text('#include <stdint.h>\n#include "parts.h"\nint answer(void) { return PART; }\n')
    for number in (5, 6):
        header.write_text(f"#define PART {number}")
        assert load_source(source).answer() == number
    assert len(list(cache.iterdir())) == 2


def test_mistakes_are_told_by_the_line_that_they_are_on(cache: Path, source: Path, real_compiler: Compiler) -> None:
    header = source.with_name("parts.h")
    header.write_text("\n\nint here(void) { return one; }\n")
    source.write_text('int x;\n#include "parts.h"\n\nint answer(void) { return two; }\n')
    with pytest.raises(BuildError) as caught:
        load_source(source)
    assert "parts.h:3:" in str(caught.value)
    assert "answer.c:4:" in str(caught.value)


def test_the_name_changes_with_whatever_changes_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(("cc",), "cc 1.0")
    names = [name_library("x", b"1", compiler)]
    assert name_library("x", b"1", Compiler(("/usr/bin/gcc",), "cc 1.0")) == names[0], "a link to the same compiler"
    names.append(name_library("x", b"2", compiler))
    names.append(name_library("y", b"1", compiler))
    names.append(name_library("x", b"1", replace(compiler, version="cc 1.1")))
    names.append(name_library("x", b"1", replace(compiler, command=("cc", "-m32"))))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DX"))
    names.append(name_library("x", b"1", compiler))
    monkeypatch.setattr(build, "describe_cpu", lambda: "another")
    names.append(name_library("x", b"1", compiler))
    assert len(set(names)) == len(names)


def test_the_processor_is_described_by_model_and_instructions() -> None:
    described = build.describe_cpu()
    assert "MHz" not in described, "the clock changes"
    if Path("/proc/cpuinfo").exists() and "x86" in described:
        assert "model name" in described
        assert "flags" in described


def test_two_processes_may_build_at_once(
    cache: Path, source: Path, make_compiler: MakeCompiler, tmp_path: Path
) -> None:
    """Each compiler goes on only when the other has begun."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    make_compiler(f'touch {meeting}/$$; until [ "$(ls {meeting} | wc -l)" = 2 ]; do :; done; real "$@"')
    code = f"import pathlib, native.build as b; print(b.load_source(pathlib.Path({str(source)!r})).answer())"
    command, root = [sys.executable, "-c", code], Path(build.__file__).parents[1]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["42\n", "42\n"]
    assert len(list(cache.iterdir())) == 1, "nothing is left beside the library"


def test_half_a_library_is_never_in_the_cache(cache: Path, source: Path, make_compiler: MakeCompiler) -> None:
    make_compiler('for last; do [ "$previous" = -o ] && out=$last; previous=$last; done; echo half > $out; exit 3')
    with pytest.raises(BuildError, match="ended with 3"):
        load_source(source)
    assert list_files(cache) == []
    make_compiler('real "$@"')
    assert load_source(source).answer() == 42


def test_a_broken_source_is_told_with_what_the_compiler_says(
    cache: Path, source: Path, real_compiler: Compiler
) -> None:
    source.write_text("int answer(void) { return unheard_of; }\n")
    with pytest.raises(BuildError, match=r"answer\.c: .* ended with 1; .*CC.*") as caught:
        load_source(source)
    assert "unheard_of" in str(caught.value)
    assert list_files(cache) == []


def test_a_compiler_that_never_ends_is_stopped(
    cache: Path, source: Path, make_compiler: MakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_compiler("exec tail -f /dev/null")
    monkeypatch.setattr(build, "_COMPILE_S", 0.2)
    with pytest.raises(BuildError, match=r"answer\.c: .*timed out after 0\.2 seconds; another compiler"):
        load_source(source)


def test_what_a_compiler_that_never_ends_has_started_is_stopped_too(
    cache: Path, source: Path, make_compiler: MakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe's other end is held by the child alone: it reads to the end when that has gone."""
    monkeypatch.setattr(build, "_COMPILE_S", 1.0)
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        make_compiler(f"tail -f /dev/null > {alive} 2> /dev/null & wait")
        with pytest.raises(BuildError, match="timed out"):
            load_source(source)
        select.select([reader], [], [], 30)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_without_a_compiler_it_is_said_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompilerError, match=r"there is no C compiler \(cc, gcc, clang\); install one .* in CC"):
        load_source(source)


def test_a_compiler_that_is_not_there_or_does_not_run_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(NoCompilerError, match=r"CC is 'no-such-compiler -m64', and there is no such program"):
        load_source(source)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(NoCompilerError, match=r"the C compiler doesn't run: .*false"):
        load_source(source)


def test_a_compiler_may_be_named_with_arguments(
    cache: Path, source: Path, real_compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", " ".join([*real_compiler.command, "-DANSWER=7"]))
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert load_source(source).answer() == 7


def test_where_the_cache_cannot_be_written_to_every_process_builds_and_is_told(
    source: Path, tmp_path: Path, real_compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"answer\.c is built anew by every process; set XDG_CACHE_HOME") as caught:
        assert load_source(source).answer() == 42
    assert len(caught) == 1
    assert list_files(tmp_path) == ["answer.c", "file"]


def test_without_a_home_every_process_builds_and_is_told(
    source: Path, real_compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.warns(UserWarning, match="home directory.*: answer.c is built anew"):
        assert load_source(source).answer() == 42


def test_a_relative_cache_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert build.find_cache_folder() == tmp_path / ".cache" / "gridpilot" / "native"


def test_a_library_that_cannot_be_loaded_is_named(cache: Path, source: Path, real_compiler: Compiler) -> None:
    cache.mkdir(parents=True)
    name = name_library("answer", build.read_code(source), real_compiler)
    (cache / name).write_bytes(b"no library")
    with pytest.raises(BuildError, match=rf"delete .*{name}, or set XDG_CACHE_HOME"):
        load_source(source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_our_sources_compile_without_a_warning(path: Path, real_compiler: Compiler, tmp_path: Path) -> None:
    flags = [
        *build.FLAGS,
        *build.read_flags(path.read_bytes()),
        "-Wextra",
        "-Werror",
        str(path),
        "-o",
        str(tmp_path / "library.so"),
        "-lm",
    ]
    done = subprocess.run([*real_compiler.command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
