"""Virtual environments of peers whose packages can't live with ours, made once and kept.

python -m benchmarks.peers.make_venv pyflyt      makes .cache/peers/pyflyt out of benchmarks/peers/pyflyt.txt
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINS = Path(__file__).parent
CACHE = Path(__file__).parents[2] / ".cache" / "peers"


class VenvError(Exception):
    """A virtual environment that can't be made; the message says which step failed and what it said."""


def make_venv(pins: Path, folder: Path) -> Path:
    """Give the Python of a virtual environment that holds what a list of exact versions names, and no more.

    One that was made from the same list is kept; any other is made anew.

    Args:
        pins: a requirements file that names every package, since none is added to it.
        folder: where the environment is.

    Raises:
        VenvError: venv or pip failed.
    """
    if find_python(pins, folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        python = folder / "bin" / "python"
        run_step(sys.executable, "-m", "venv", str(folder))
        run_step(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(pins))
        run_step(str(python), "-m", "pip", "check")
        (folder / "made_from.txt").write_bytes(pins.read_bytes())
    return folder / "bin" / "python"


def find_python(pins: Path, folder: Path) -> Path | None:
    """Give the Python of a finished virtual environment; None where it isn't there, or made from another list."""
    made_from = folder / "made_from.txt"
    if made_from.is_file() and made_from.read_bytes() == pins.read_bytes():
        return folder / "bin" / "python"
    return None


def run_step(*words: str) -> None:
    """Run a program to its end.

    Raises:
        VenvError: it said no.
    """
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise VenvError(f"{' '.join(words)} ended with {done.returncode}. It said:\n{done.stdout.strip()}")


def main(words: Sequence[str] | None = None) -> int:
    """Make the virtual environment that is named, and give 0 if it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.make_venv", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("peer", choices=sorted(path.stem for path in PINS.glob("*.txt")))
    peer = parser.parse_args(words).peer
    try:
        print(make_venv(PINS / f"{peer}.txt", CACHE / peer))
    except VenvError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
