"""The code that made a run, as it was: `code/<version>/` of its experiment, put together again beside today's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiment.provenance import CodeHasher, hash_code

GIT_TIMEOUT_S = 300
SHOWN_FILES = 8


class RebuildError(ValueError):
    """Stored code that can't be put together again. The message says what is missing."""


@contextmanager
def rebuild_code(stored: Path, version: str, target: Path) -> Iterator[Path]:
    """Put the code of a version together, as a worktree of the repository that we are in, and give its folder.

    The worktree is gone afterwards, and with it all that git knew of it; nothing else in the repository is touched.

    Args:
        stored: the version's folder, with `commit`, `diff` and, where there were any, `untracked/` sources.
        version: what `hash_code` has to give.
        target: a folder to be made.

    Raises:
        RebuildError: something is missing, or what comes out is another version.
    """
    here = Path.cwd()
    commit = read_commit(stored)
    prefix = ask_git(here, "rev-parse", "--show-prefix").strip()
    check_commit(here, commit)
    try:
        # A user's hooks are for the user's own checkouts.
        no_hooks = ("-c", f"core.hooksPath={os.devnull}")
        ask_git(here, *no_hooks, "worktree", "add", "--quiet", "--detach", str(target), commit)
        root = target / prefix
        apply_differences(stored / "diff", target)
        if (stored / "untracked").is_dir():
            shutil.copytree(stored / "untracked", root, dirs_exist_ok=True)
        check_version(root, version)
        yield root
    finally:
        # Forced twice: also where adding it was cut off.
        remove = ["git", "worktree", "remove", "--force", "--force", str(target)]
        subprocess.run(remove, cwd=here, capture_output=True, check=False)


def read_commit(stored: Path) -> str:
    """Give the commit that a version's code was based on.

    Raises:
        RebuildError: none was stored.
    """
    try:
        commit = (stored / "commit").read_text().strip()
    except FileNotFoundError:
        raise RebuildError(f"{stored} holds no code: it has no file `commit`") from None
    if " " in commit:
        raise RebuildError(f"{stored / 'commit'} says: {commit}")
    return commit


def check_commit(here: Path, commit: str) -> None:
    """Make sure that a commit is in the repository.

    Raises:
        RebuildError: it isn't.
    """
    try:
        ask_git(here, "cat-file", "-e", f"{commit}^{{commit}}")
    except RebuildError:
        top = ask_git(here, "rev-parse", "--show-toplevel").strip()
        raise RebuildError(
            f"the repository {top} has no commit {commit}: fetch it, or go to the repository that has it"
        ) from None


def apply_differences(diff: Path, tree: Path) -> None:
    """Bring a fresh checkout to what was not committed then.

    Raises:
        RebuildError: it doesn't apply.
    """
    try:
        is_empty = not diff.stat().st_size
    except FileNotFoundError:
        raise RebuildError(f"{diff} is missing: what was not committed then is not known") from None
    if not is_empty:
        ask_git(tree, "apply", "--whitespace=nowarn", str(diff.absolute()))


def check_version(root: Path, version: str) -> None:
    """Make sure that the code below a folder is of a version.

    Raises:
        RebuildError: it isn't.
    """
    found = hash_code([root]) if root.is_dir() else "nothing"
    if found != version:
        raise RebuildError(
            f"what was stored makes the version {found}, not {version}: sources that git ignores, those of a submodule "
            "and a train.py outside the folder of the launch are not stored (or this is not the folder of the launch)"
        )


def ask_git(folder: Path, *words: str) -> str:
    """Run git in a folder and give what it prints.

    Raises:
        RebuildError: git isn't there, or refuses; the message has what it says.
    """
    try:
        command = ["git", *words]
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise RebuildError("there is no git here, which has the code") from None
    except subprocess.TimeoutExpired:
        raise RebuildError(f"git {words[0]} took over {GIT_TIMEOUT_S} s in {folder}") from None
    if answer.returncode:
        raise RebuildError(f"git in {folder}: {answer.stderr.strip() or f'it ended with {answer.returncode}'}")
    return answer.stdout


def list_changed_files(then: Path, now: Path) -> list[str]:
    """Give a line for each source that isn't the same below two folders; those beyond a few are counted."""
    before, after = (CodeHasher([root]).hash_sources(root) for root in (then, now))
    lines = [_say_change(name, before, after) for name in sorted(before | after)]
    changed = [line for line in lines if line]
    return cut(changed, SHOWN_FILES, "files")


def _say_change(name: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    if name not in after:
        return f"{name} was there then and is not now"
    if name not in before:
        return f"{name} is new"
    return "" if before[name] == after[name] else f"{name} has changed"


def cut(lines: Sequence[str], count: int, what: str) -> list[str]:
    """Give the first lines, and how many there are beside them."""
    return [*lines[:count], *([f"and {len(lines) - count:,} more {what}"] if len(lines) > count else [])]
