"""The settings of one run, from a file, from flags, or from both: what `train.py` starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from experiment.assignments import parse_assignments
from experiment.faults import find_place
from experiment.grid import Combination, count_combinations, expand_grid, make_label
from experiment.loader import Document, load_yaml
from experiment.plan import nest_settings
from experiment.problems import Fault, Problem, SpecError
from experiment.run import Run
from experiment.spec import ExperimentSpec, load_spec

SECTIONS = {"meta_data", "constants", "variables", "cases", "exclude"}


@dataclass(frozen=True)
class SingleRun:
    """Settings of one run and where they came from.

    Attributes:
        settings: flat or nested, as given; flags over the file.
        locate: turns a fault into a problem with a place.
        label: from the spec; None leaves it to the trainer's name.
        exp_name: from the spec.
        home: the folder of the run whose `config.yaml` was given.
        extend: from the spec: whether a shorter run that is there is gone on from.
    """

    settings: dict[str, Any]
    locate: Callable[[Fault], Problem]
    label: str | None = None
    exp_name: str | None = None
    home: Run | None = None
    extend: bool = False


def read_single(file: Path | None, flags: Sequence[str]) -> SingleRun:
    """Read the settings of one run.

    Args:
        file: a run's `config.yaml` (flat), or a spec with exactly one combination; None for flags alone.
        flags: `key=value` texts, over the file.

    Raises:
        SpecError: the file or a flag can't be read, or the spec has several combinations.
    """
    if file is None:
        return _read_flat(None, flags)
    document = load_yaml(file)
    if isinstance(document.data, dict) and SECTIONS & document.data.keys():
        return _read_spec(file, flags)
    return _read_flat((file, document), flags)


def _read_spec(file: Path, flags: Sequence[str]) -> SingleRun:
    spec = load_spec(file, flags)
    if len(list(islice(expand_grid(spec), 2))) != 1:
        count = count_combinations(spec)
        fix = f"python run_experiment.py -e {file} runs them; or fix {', '.join(spec.swept_keys)} by flags"
        raise SpecError([Problem(f"this spec has {count} combinations, train.py trains one: {fix}", str(file))])
    combination = next(expand_grid(spec))
    return SingleRun(
        combination.settings,
        lambda fault: _locate_in_spec(spec, combination, fault),
        make_label(spec, combination),
        spec.meta.exp_name,
        extend=spec.meta.extend,
    )


def _locate_in_spec(spec: ExperimentSpec, combination: Combination, fault: Fault) -> Problem:
    return find_place(spec, combination, fault).problem(fault.message)


def _read_flat(source: tuple[Path, Document] | None, flags: Sequence[str]) -> SingleRun:
    problems: list[Problem] = []
    given = parse_assignments("--key", flags, problems)
    settings: dict[str, Any] = {}
    home = None
    if source is not None:
        file, document = source
        if isinstance(document.data, dict):
            settings = nest_settings(document.data)
        else:
            problems.append(Problem("a run's settings are a mapping of keys to values", str(file), 1, 1))
        home = _find_home(file)
    for key, setting in given.items():
        if not _put(settings, key, setting.value):
            problems.append(Problem(f"--{key}: {key.rpartition('.')[0]} holds no keys of its own"))
    if problems:
        raise SpecError(problems)

    def locate(fault: Fault) -> Problem:
        key = fault.keys[0]
        if key in given:
            return Problem(f"--{key}: {fault.message}")
        mark = None if source is None else source[1].marks.keys.get(tuple(key.split(".")))
        return Problem(fault.message) if mark is None else mark.problem(fault.message)

    return SingleRun(settings, locate, home=home)


def _put(settings: dict[str, Any], key: str, value: Any) -> bool:
    """Set a dotted key in nested settings, in copies of what it goes through; False where there is no way through."""
    parent, _, rest = key.partition(".")
    if not rest:
        settings[parent] = value
        return True
    inner = settings.get(parent, {})
    if not isinstance(inner, dict):
        return False
    settings[parent] = dict(inner)
    return _put(settings[parent], rest, value)


def _find_home(file: Path) -> Run | None:
    """Give the run that a `config.yaml` belongs to, None for a file that is anywhere else."""
    try:
        return Run.open(file.absolute().parent) if file.name == "config.yaml" else None
    except ValueError:
        return None


def read_flags(words: Sequence[str]) -> list[str]:
    """Turn `--key value ...` flags into `key=value` overrides: several values are a list, none means true.

    Raises:
        SpecError: a value that no flag stands before.
    """
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            flags.append((key, [value] if has_value else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise SpecError([Problem(f"{word!r} belongs to no flag; settings are given as --key value")])
    return [f"{key}={_join_values(values)}" for key, values in flags]


def _join_values(values: Sequence[str]) -> str:
    if not values:
        return "true"
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
