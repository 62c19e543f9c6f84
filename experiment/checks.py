"""What is checked of a whole plan before anything starts: environments, memory, which runs are meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from experiment.devices import Device
from experiment.faults import FaultList
from experiment.lineage import Lineage
from experiment.measure import measure_held
from experiment.plan import Plan, Planned
from experiment.preflight import Footprint, ask_preflight, shape_key
from experiment.problems import SettingsError
from experiment.run import State
from experiment.spec import ExperimentSpec
from experiment.views import ViewError


@dataclass(frozen=True)
class Found:
    """What was found out on the way, by run id: `max_timesteps`, and, where that was asked for, memory."""

    totals: dict[str, int]
    footprints: Mapping[str, Footprint]


def check_environments(
    spec: ExperimentSpec,
    plan: Plan,
    devices: Sequence[Device],
    *,
    predict: bool = False,
    settled: Collection[str] = frozenset(),
) -> Found:
    """Check in one process, before anything starts, that environments and memory are there for each distinct footprint.

    Args:
        spec: of the plan.
        plan: only the runs that are asked for are looked at.
        devices: that they may be placed on.
        predict: whether their networks are counted too, for which torch is loaded.
        settled: ids of runs that won't be started, and may need what this machine doesn't have.

    Raises:
        SpecError: an environment isn't there, or a trainer can't act in it, or a run doesn't fit into memory.
        PreflightError: the check itself failed.
    """
    firsts: dict[str, Planned] = {}
    counts: Counter[str] = Counter()
    keys: dict[str, str] = {}
    totals: dict[str, int] = {}
    for run in plan.runs:
        planned = plan.check_again(run.id)
        if planned.config is None:
            continue
        totals[run.id] = planned.config.resolved()["max_timesteps"]
        if run.id not in settled:
            key = keys[run.id] = shape_key(planned.config.footprint_settings())
            firsts.setdefault(key, planned)
            counts[key] += 1
    lots = [planned.config.footprint_settings() for planned in firsts.values() if planned.config]
    faults = FaultList(spec)
    answers = ask_preflight(
        spec.meta.script_file, "count" if predict else "check", lots, devices, measure_held(plan.runs)
    )
    memory = {}
    for (key, planned), answer in zip(firsts.items(), answers, strict=True):
        for fault in answer.faults:
            faults.add(planned.combination, fault, counts[key])
        memory[key] = answer.memory
    faults.raise_any(len(plan.runs))
    footprints = {run_id: footprint for run_id, key in keys.items() if (footprint := memory[key]) is not None}
    return Found(totals, footprints)


def check_reruns(spec: ExperimentSpec, plan: Plan, rerun: Collection[str], lineage: Lineage) -> None:
    """Refuse to put away what finished runs have where they could not begin once more: their parents are gone, say.

    Raises:
        SpecError: with every such run.
    """
    faults = FaultList(spec)
    finished = [run for run in plan.runs if run.id in rerun and run.is_done()]
    for run in finished:
        planned = plan.check_again(run.id)
        if planned.config is None:
            continue
        try:
            lineage.check(planned.settings, planned.config, anew=True)
        except SettingsError as error:
            for fault in error.faults:
                faults.add(planned.combination, fault)
    faults.raise_any(len(finished))


def choose_reruns(wanted: str | None, plan: Plan) -> set[str]:
    """Give the ids of the runs that `--rerun` means: `failed`, `all`, or one id or the beginning of one.

    Raises:
        ViewError: the plan has no such run.
    """
    if wanted is None:
        return set()
    states = {run.id: run.status().state for run in plan.runs}
    if wanted == "failed":
        return {run_id for run_id, state in states.items() if state is State.FAILED}
    if wanted == "all":
        return {run_id for run_id, state in states.items() if state in (State.FAILED, State.DONE)}
    matches = [run_id for run_id in states if run_id.startswith(wanted)]
    if len(matches) == 1:
        return set(matches)
    if matches:
        raise ViewError(f"--rerun {wanted}: it begins {len(matches)} ids: {', '.join(matches[:5])}; give more of it")
    if any(run_id.startswith(wanted) for run_id in plan.ids):
        raise ViewError(f"--rerun {wanted}: that run is left out by --only")
    raise ViewError(f"--rerun {wanted}: the spec has no run with this id; -n lists them")
