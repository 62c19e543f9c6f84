"""The spec that a launch writes beside its runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from experiment.grid import expand_grid
from experiment.spec import ExperimentSpec, load_spec
from experiment.sweep import describe_spec

RANDOM = """\
meta_data: {samples: 4, samples_seed: 5, exp_name: drawn}
constants: {tau: 0.1}
variables:
  net: {lr: {log_uniform: [1e-5, 1e-2]}}
  seed: [0, 1]
  act: {choice: [relu, [1, 2]]}
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(RANDOM)


def write_again(*overrides: str) -> tuple[ExperimentSpec, ExperimentSpec]:
    """The spec, and the one that is read from what a launch writes."""
    spec = load_spec(Path("x.yaml"), overrides)
    Path("spec.yaml").write_text(describe_spec(spec, Namespace(overrides=list(overrides))))
    return spec, load_spec(Path("spec.yaml"))


@pytest.mark.parametrize("overrides", [(), ("tau=0.2",), ("samples=9",), ("tau={uniform: [0, 1]}", "samples_seed=0")])
def test_a_written_spec_draws_the_same_points_again(overrides: tuple[str, ...]) -> None:
    spec, again = write_again(*overrides)
    assert again.draws == spec.draws
    assert (again.meta, again.axes) == (spec.meta, spec.axes)
    assert list(expand_grid(again)) == list(expand_grid(spec))


def test_a_written_spec_says_nothing_of_samples_where_no_variable_is_random_any_more() -> None:
    spec, again = write_again("net.lr=0.1", "act=[relu]")
    assert (again.meta.samples, again.notes) == (None, ())
    assert list(expand_grid(again)) == list(expand_grid(spec))


def test_a_written_spec_keeps_what_is_run_at_the_end() -> None:
    Path("x.yaml").write_text("meta_data: {on_finish: mail -s 'all done' me}\nconstants: {tau: 0.1}\n")
    spec, again = write_again("tau=0.2")
    assert again.meta.on_finish == spec.meta.on_finish == ("mail", "-s", "all done", "me")
