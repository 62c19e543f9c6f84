"""Packages of ours, lent to programs that run in another virtual environment.

torch is one that a list of exact versions can't name: which build of a version there is depends on where packages come
from. Lent, it is ours to the file, whichever build that is, and takes no room.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def lend(name: str, folder: Path) -> None:
    """Link into a folder, which then goes on a program's PYTHONPATH, a package of ours and all that it needs.

    Args:
        name: of the package, as pip knows it.
        folder: made if it isn't there. It belongs outside the other environment, whose pip would follow the links.

    Raises:
        PackageNotFoundError: it isn't installed here.
    """
    folder.mkdir(exist_ok=True)
    link_files(name, folder)
    waiting, known = list_needed(name), {name}
    while waiting:
        needed = waiting.pop()
        if needed in known:
            continue
        known.add(needed)
        try:
            link_files(needed, folder)
        except PackageNotFoundError:
            continue  # needed on other systems
        waiting += list_needed(needed)


def link_files(name: str, folder: Path) -> None:
    """Link the topmost files and folders of an installed package, but for programs and caches."""
    package = distribution(name)
    tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
    for top in tops:
        link = folder / top
        if not link.is_symlink():
            link.symlink_to(Path(str(package.locate_file(top))))


def list_needed(name: str) -> list[str]:
    """Give the names of what an installed package asks for, its extras left out."""
    asked = [text for text in distribution(name).requires or () if "extra ==" not in text]
    return [re.split(r"[^\w.-]", text, maxsplit=1)[0].lower() for text in asked]
