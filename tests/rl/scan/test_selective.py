"""Every backend that can be had here gives what the recurrence gives in float64, and refuses what can't be right."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.scan.backends import ScanBackendError, choose_backend
from rl.scan.selective import scan_step, selective_scan

WORST_Y = 1e-5
WORST_GRADIENT = 1e-4

Tools = Any


@pytest.fixture(params=["torch", "c"], scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Give the name of a backend that works here on the CPU."""
    name: str = request.param
    try:
        choose_backend(name, "cpu", torch.float32)
    except ScanBackendError as error:
        pytest.skip(str(error))
    return name


def assert_near(errors: dict[str, float]) -> None:
    y, *gradients = errors.values()
    assert y <= WORST_Y, errors
    assert max(gradients) <= WORST_GRADIENT, errors


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    channels=st.integers(1, 40),
    states=st.integers(1, 32),
    steps=st.one_of(st.integers(1, 40), st.integers(1, 441)),
    seed=st.integers(0, 1000),
)
def test_it_is_the_recurrence_whatever_the_shape(
    tools: Tools, backend: str, batch: int, groups: int, channels: int, states: int, steps: int, seed: int
) -> None:
    arguments = tools.draw_arguments(batch, groups, channels, states, steps, seed)
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), arguments))


@pytest.mark.parametrize("shape", [(2, 4, 96, 16, 256), (3, 1, 17, 1, 441), (5, 2, 256, 8, 4), (1, 4, 16, 32, 1)])
def test_it_is_the_recurrence_at_the_sizes_of_layers(tools: Tools, backend: str, shape: tuple[int, ...]) -> None:
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), tools.draw_arguments(*shape)))


@pytest.mark.parametrize("left_out", [["D"], ["delta_bias"], ["D", "delta_bias"]])
@pytest.mark.parametrize("softplus", [True, False])
def test_what_is_optional_may_be_left_out(tools: Tools, backend: str, left_out: list[str], softplus: bool) -> None:
    arguments = tools.draw_arguments(2, 2, 9, 5, 30, positive=not softplus)
    arguments = {name: value for name, value in arguments.items() if name not in left_out}
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), arguments))


def test_steps_of_all_sizes_keep_their_gradients(tools: Tools, backend: str) -> None:
    """Softplus where it is nearly 0, curved and nearly straight."""
    arguments = tools.draw_arguments(1, 1, 3, 4, 61)
    arguments["delta"] = torch.linspace(-40, 40, 61).expand(1, 3, 61).contiguous()
    arguments["A"] = arguments["A"] * 1e-3
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), arguments))
    for step in (0, 10, 20):  # on their own, so that the large ones don't hide an error of the small
        alone = {**arguments, **{name: arguments[name][..., step : step + 1] for name in ("u", "delta", "B", "C")}}
        alone["D"] = None
        alone["delta_bias"] = alone["delta_bias"] * 0
        assert_near(tools.find_errors(partial(selective_scan, backend=backend), alone))


def test_states_may_grow(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(1, 2, 5, 3, 20)
    arguments["A"] = -arguments["A"]
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), arguments))


def test_states_that_are_forgotten_at_once_leave_no_trace(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(1, 1, 5, 3, 40)
    arguments["A"] = arguments["A"] * 1e6
    assert_near(tools.find_errors(partial(selective_scan, backend=backend), arguments))


def test_arguments_may_be_views(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(2, 2, 9, 5, 30)
    views = dict(arguments)
    for name in ("u", "delta"):
        views[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
    for name in ("B", "C"):
        views[name] = torch.cat([arguments[name], arguments[name]], 2)[:, :, :5]
    views["A"] = arguments["A"].t().contiguous().t()
    assert not any(views[name].is_contiguous() for name in ("u", "delta", "A", "B", "C"))
    expected = selective_scan(**arguments, backend=backend)
    torch.testing.assert_close(selective_scan(**views, backend=backend), expected)
    slope = torch.ones(()).expand_as(expected)  # one number, spread over all, as a sum's gradient is
    leaf = arguments["u"].requires_grad_()
    spread = torch.autograd.grad(selective_scan(**arguments, backend=backend), leaf, slope)[0]
    dense = torch.autograd.grad(selective_scan(**arguments, backend=backend), leaf, slope.contiguous())[0]
    assert torch.equal(spread, dense)


def test_only_gradients_that_somebody_needs_are_given(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(2, 1, 5, 3, 9)
    everything = tools.find_y_and_gradients(partial(selective_scan, backend=backend), arguments)
    for name in everything.keys() - {"y"}:
        leaf = arguments[name].clone().requires_grad_()
        y = selective_scan(**arguments | {name: leaf}, backend=backend)
        assert torch.equal(y, everything["y"])
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y)
        assert torch.equal(torch.autograd.grad(y, leaf, slope)[0], everything[name]), name


def test_without_gradients_y_is_the_same_and_has_no_graph(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(2, 2, 9, 5, 70)
    arguments["u"].requires_grad_()
    with torch.no_grad():
        alone = selective_scan(**arguments, backend=backend)
    assert not alone.requires_grad
    assert torch.equal(alone, selective_scan(**arguments, backend=backend).detach())


def test_the_same_call_gives_the_same_bits(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(3, 2, 30, 5, 50)
    one, other = (tools.find_y_and_gradients(partial(selective_scan, backend=backend), arguments) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_at_least_float32_and_given_back(
    tools: Tools, backend: str, dtype: torch.dtype
) -> None:
    arguments = tools.draw_arguments(2, 2, 9, 5, 60, dtype=dtype)
    found = tools.find_y_and_gradients(partial(selective_scan, backend=backend), arguments)
    assert found["y"].dtype == dtype
    floats = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    expected = selective_scan(**floats, backend=backend).to(dtype)
    if dtype == torch.float64:
        torch.testing.assert_close(found["y"], expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found["y"], expected)


def test_autocast_around_changes_nothing(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(2, 2, 9, 5, 60)
    scan = partial(selective_scan, backend=backend)
    expected = tools.find_y_and_gradients(scan, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = tools.find_y_and_gradients(scan, arguments)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradients_cannot_be_differentiated_again(tools: Tools, backend: str) -> None:
    arguments = tools.draw_arguments(1, 1, 2, 2, 3)
    u = arguments["u"].requires_grad_()
    loss = selective_scan(**arguments, backend=backend).square().sum()
    (gradient,) = torch.autograd.grad(loss, u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 2, 3, 2, 5), (1, 1, 2, 3, 19)])
def test_the_gradients_of_torch_are_those_of_its_values(tools: Tools, shape: tuple[int, ...]) -> None:
    arguments = tools.draw_arguments(*shape, dtype=torch.float64)
    tensors = [value.requires_grad_() for value in arguments.values() if isinstance(value, torch.Tensor)]
    assert torch.autograd.gradcheck(lambda *leaves: selective_scan(*leaves, True, backend="torch"), tensors)


def test_float64_stays_float64_by_torch_also_when_nothing_is_chosen(tools: Tools) -> None:
    arguments = tools.draw_arguments(1, 1, 2, 2, 9, dtype=torch.float64)
    truth = tools.scan_step_by_step(**arguments)
    for backend in ("torch", "auto"):
        torch.testing.assert_close(selective_scan(**arguments, backend=backend), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"u": torch.zeros(2, 6)}, r"u \(2, 6\), .*wanted u \(batch, dim, L\)"),
        ({"B": torch.zeros(2, 4, 7)}, r"B \(2, 4, 7\): wanted .*B \(batch, groups, N, L\)"),
        ({"B": torch.zeros(2, 4, 3, 7)}, "4 groups, which don't divide the 6 channels"),
        ({"delta": torch.zeros(2, 6, 8)}, r"delta is of shape \(2, 6, 8\).* it is .*2, 6, 7"),
        ({"A": torch.zeros(6, 4)}, r"A is of shape \(6, 4\).* it is \(6, 3\)"),
        ({"C": torch.zeros(2, 1, 3, 7)}, r"C is of shape \(2, 1, 3, 7\).* it is \(2, 2, 3, 7\)"),
        ({"D": torch.zeros(5)}, r"D is of shape \(5,\).* it is \(6,\)"),
        ({"delta_bias": torch.zeros(1)}, r"delta_bias is of shape \(1,\).* it is \(6,\)"),
        ({"A": torch.zeros(6, 3, dtype=torch.complex64)}, "A holds torch.complex64; only real"),
        ({"u": torch.zeros(2, 6, 7, dtype=torch.int64)}, "u holds torch.int64; only real"),
        ({"D": torch.zeros(6, device="meta")}, "D is on meta and u on cpu"),
        ({"u": torch.zeros(2, 6, 0), "delta": torch.zeros(2, 6, 0)}, "no axis may be empty"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tools: Tools, changed: dict[str, torch.Tensor], message: str) -> None:
    arguments = tools.draw_arguments(2, 2, 3, 3, 7)
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments | changed)


@pytest.mark.parametrize("softplus", [True, False])
def test_steps_one_by_one_are_the_scan(tools: Tools, softplus: bool) -> None:
    arguments = tools.draw_arguments(3, 2, 4, 5, 11, positive=not softplus)
    expected = tools.scan_step_by_step(**arguments)
    state = torch.zeros(3, 8, 5)
    for step in range(11):
        now = {name: arguments[name][..., step] for name in ("u", "delta", "B", "C")}
        before = state.clone()
        y, after = scan_step(state, **arguments | now)
        assert torch.equal(state, before)
        torch.testing.assert_close(y, expected[..., step])
        state = after


def test_a_step_keeps_its_state_in_float32_inside_autocast(tools: Tools) -> None:
    arguments = tools.draw_arguments(2, 1, 4, 5, 1)
    now = {name: arguments[name][..., 0] for name in ("u", "delta", "B", "C")}
    expected, _ = scan_step(torch.zeros(2, 4, 5), **arguments | now)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = scan_step(torch.zeros(2, 4, 5), **arguments | now)
    assert state.dtype == torch.float32
    assert torch.equal(y, expected)
