"""What is wrong with settings, gathered over a grid and said once for each place in the spec."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from experiment.grid import Combination, locate
from experiment.loader import Mark
from experiment.problems import Fault, Problem, SpecError
from experiment.scalars import show_value
from experiment.spec import ExperimentSpec, sort_problems

MAX_SHOWN = 50
_MAX_KEPT = 1_000


class FaultList:
    """Faults of combinations, merged by place and message and counted.

    Messages that tell nothing apart but a drawn value are one, told of the first such value.
    """

    def __init__(self, spec: ExperimentSpec) -> None:
        self._spec = spec
        self._counts: Counter[Problem] = Counter()
        self._firsts: dict[tuple[Mark, str], Problem] = {}
        self._dropped = 0

    def add(self, combination: Combination, fault: Fault, runs: int = 1) -> None:
        """Note a fault of one combination, standing for a number of runs that have it."""
        mark = find_place(self._spec, combination, fault)
        kind = (mark, self._omit_drawn(combination, fault))
        if kind not in self._firsts and len(self._firsts) == _MAX_KEPT:
            self._dropped += 1
            return
        self._counts[self._firsts.setdefault(kind, mark.problem(fault.message))] += runs

    def _omit_drawn(self, combination: Combination, fault: Fault) -> str:
        """Give a fault's message without the values that were drawn between bounds."""
        message = fault.message
        for key in fault.keys:
            if key in self._spec.draws and self._spec.draws[key].name != "choice":
                message = message.replace(show_value(combination.settings[key]), "")
        return message

    def raise_any(self, total: int) -> None:
        """Raise what was noted, if anything was.

        Args:
            total: of combinations that were checked.

        Raises:
            SpecError: with at most `MAX_SHOWN` problems, in the order of the file, and the number of the others.
        """
        if not self._counts:
            return
        problems = []
        for problem, count in self._counts.items():
            part = f" ({count} of {total} runs)" if count < total else ""
            problems.append(replace(problem, message=f"{problem.message}{part}"))
        problems = sort_problems(problems, self._spec.sources)
        more = len(problems) - MAX_SHOWN + self._dropped
        if more > 0:
            problems = [*problems[:MAX_SHOWN], Problem(f"and {more} more")]
        raise SpecError(problems)


def find_place(spec: ExperimentSpec, combination: Combination, fault: Fault) -> Mark:
    """Give the place of the first of a fault's keys that the spec has; of a missing key, where it could go."""
    for key in fault.keys:
        if mark := locate(spec, combination, key, fault.about):
            return mark
    return spec.sections.places.get("constants") or Mark(str(spec.path), 1, 1)
