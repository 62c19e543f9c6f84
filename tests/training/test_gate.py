"""Which optimizer steps are left out, and that nothing at all remains of those that are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.fast_ddpg import FlatAdam, FlatMLP
from rl.networks import MLP
from training.adam import Adam
from training.gate import HISTORY, LIMIT, RENEW_EVERY, GradientGate

CPU = torch.device("cpu")


def make_gate(lengths: float = 1.0, number: int = HISTORY) -> GradientGate:
    """A gate that has seen so many gradients of one length."""
    gate = GradientGate(CPU)
    for _ in range(number):
        assert gate.judge(torch.tensor(lengths)) == 0
    return gate


@pytest.mark.parametrize("length", [math.nan, math.inf])
@pytest.mark.parametrize("seen", [0, 1, 2 * HISTORY])
def test_what_is_not_finite_is_refused_from_the_first_on(length: float, seen: int) -> None:
    assert make_gate(number=seen).judge(torch.tensor(length)) == 1


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_only_what_is_out_of_all_proportion_to_the_median_is_refused(unit: float) -> None:
    gate = make_gate(unit)
    for multiple, refused in ((1e3, 0), (0.99 * LIMIT, 0), (1.01 * LIMIT, 1), (0.0, 0)):
        assert gate.judge(torch.tensor(unit * multiple)) == refused


def test_before_there_is_a_median_only_what_is_not_finite_is_refused() -> None:
    gate = make_gate(number=RENEW_EVERY - 1)
    assert gate.judge(torch.tensor(1e30)) == 0


def test_lengths_that_are_infinite_are_refused_whatever_the_median() -> None:
    gate = make_gate(1e35)
    assert gate.judge(torch.tensor(3e38)) == 0
    assert gate.judge(torch.tensor(math.inf)) == 1


def test_a_median_of_nothing_refuses_nothing() -> None:
    """An actor whose every action lies flat at a bound has a gradient of 0, and may move again."""
    gate = make_gate(0.0)
    assert gate.judge(torch.tensor(1.0)) == 0
    assert gate.judge(torch.tensor(math.nan)) == 1


def test_refused_lengths_do_not_move_the_median() -> None:
    gate = make_gate()
    for _ in range(3 * HISTORY):
        assert gate.judge(torch.tensor(2 * LIMIT)) == 1
    assert gate.judge(torch.tensor(0.9 * LIMIT)) == 0
    assert gate.judge(torch.tensor(1.1 * LIMIT)) == 1


def test_the_median_follows_what_is_let_through() -> None:
    gate = make_gate()
    for _ in range(HISTORY):
        gate.judge(torch.tensor(1e3))
    assert gate.judge(torch.tensor(0.9e3 * LIMIT)) == 0
    assert gate.judge(torch.tensor(1.1e3 * LIMIT)) == 1


def test_a_gate_that_forgets_begins_anew_but_for_its_count() -> None:
    gate = make_gate()
    assert gate.judge(torch.tensor(math.nan)) == 1
    gate.forget()
    for number in range(3 * RENEW_EVERY):
        assert gate.judge(torch.tensor(2 * LIMIT)) == 0, number
    assert gate.take_skips() == 1


def test_steps_left_out_are_counted_until_somebody_asks() -> None:
    gate = make_gate()
    for length in (math.nan, 1.0, math.inf):
        gate.judge(torch.tensor(length))
    assert gate.take_skips() == 2
    assert gate.take_skips() == 0


@pytest.mark.parametrize("stop", [0, 1, RENEW_EVERY, RENEW_EVERY + 3, HISTORY + 7])
def test_a_restored_gate_judges_as_if_never_stopped(stop: int) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = 10 ** (4 * torch.randn(HISTORY + 120, generator=generator))
    straight, resumed = GradientGate(CPU), GradientGate(CPU)
    for length in lengths[:stop]:
        straight.judge(length)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    verdicts = [(float(straight.judge(length)), float(resumed.judge(length))) for length in lengths[stop:]]
    assert all(left == right for left, right in verdicts)
    assert {left for left, _ in verdicts} == {0.0, 1.0}
    assert {name: str(part) for name, part in straight.state_dict().items()} == {
        name: str(part) for name, part in resumed.state_dict().items()
    }


def test_every_attribute_of_a_gate_is_in_its_state() -> None:
    gate = GradientGate(CPU)
    assert {name.lstrip("_") for name in vars(gate)} - set(GradientGate.TRANSIENT) == set(gate.state_dict())


def make_adam() -> tuple[Adam, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator) for shape in ((5, 3), (5,), ())]
    return Adam(parameters, 1e-2), parameters


def make_flat_adam() -> tuple[Adam, list[Tensor]]:
    network = FlatMLP(MLP(3, (5,), 2, "cpu"))
    return FlatAdam(network, 1e-2), [network.parameters]


def step(adam: Adam, value: float, length: float | None = None) -> None:
    gradients = [torch.full_like(parameter, value) for parameter in adam.parameters]
    adam.step(gradients, None if length is None else torch.tensor(length))


def copy_bits(adam: Adam, parameters: list[Tensor]) -> list[bytes]:
    state = adam.state_dict()
    tensors = [*parameters, *state["first"], *state["second"], *state["steps"]]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


BUILDERS: list[Callable[[], tuple[Adam, list[Tensor]]]] = [make_adam, make_flat_adam]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
@pytest.mark.parametrize("steps", [0, 60])
def test_nothing_remains_of_a_step_that_is_left_out(build: Any, value: float, steps: int) -> None:
    adam, parameters = build()
    adam.gate = GradientGate(CPU)
    for _ in range(steps):
        step(adam, 0.5, length=1.0)
    before = copy_bits(adam, parameters)
    if steps or not math.isfinite(value):
        step(adam, value, length=value)
        assert copy_bits(adam, parameters) == before
        assert adam.gate.take_skips() == 1
    step(adam, 0.5, length=1.0)
    assert copy_bits(adam, parameters) != before
    assert adam.gate.take_skips() == 0


@pytest.mark.parametrize("build", BUILDERS)
def test_training_goes_on_as_if_the_step_had_never_been(build: Any) -> None:
    """And a gate that refuses nothing changes no bit."""
    (gated, gated_parameters), (plain, plain_parameters) = build(), build()
    for mine, theirs in zip(gated_parameters, plain_parameters, strict=True):
        mine.data.copy_(theirs)
    gated.gate = GradientGate(CPU)
    for number in range(30):
        step(gated, 0.1 * number, length=1.0)
        step(plain, 0.1 * number)
        if number % 4 == 0:
            step(gated, math.nan, length=math.nan)
    assert copy_bits(gated, gated_parameters) == copy_bits(plain, plain_parameters)


@pytest.mark.parametrize("build", BUILDERS)
def test_an_optimizers_state_brings_its_gates(build: Any) -> None:
    (one, _), (other, _) = build(), build()
    for adam in (one, other):
        adam.gate = GradientGate(CPU)
    for _ in range(RENEW_EVERY):
        step(one, 0.5, length=1.0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for adam in (one, other):
        step(adam, 1.0, length=2 * LIMIT)
        assert adam.gate is not None
        assert adam.gate.take_skips() == 1
