"""The noise scale of the critic's gradient: unbiased, known where it can be known, and unnoticed by training."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl import noise_scale
from rl.buffers import Batch
from rl.noise_scale import DECAY, NoiseScale, estimate, measure_norms
from rl.off_policy import OffPolicyTrainer

BuildTrainer = Any
ALGORITHMS = ["ddpg", "td3", "sac"]
NEVER = 10**9


def run_steps(trainer: OffPolicyTrainer, number: int) -> list[dict[str, Any]]:
    return [dict(trainer.train_step().metrics) for _ in range(number)]


def draw_population(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(rows, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_guesses_are_right_on_average_over_all_batches_that_can_be_drawn(samples: int) -> None:
    """Least squares on six points: each gradient is known in closed form, 2 (w x + b - y) (x, 1)."""
    inputs, targets = draw_population(6, 2)
    line = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        own = 2 * (line(inputs) - targets) * torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1)
    true_squared = own.mean(0).square().sum()
    true_variance = (own - own.mean(0)).square().sum(1).mean()
    guesses = []
    for rows in product(range(6), repeat=samples):
        chosen = list(rows)
        whole, mean_single, count = measure_norms(
            line, lambda chosen=chosen: (line(inputs[chosen]) - targets[chosen]).square().mean()
        )
        assert count == samples
        guesses.append(estimate(float(whole), float(mean_single), count))
    squared, variance = torch.tensor(guesses, dtype=torch.float64).mean(0)
    torch.testing.assert_close(squared, true_squared, rtol=1e-10, atol=0)
    torch.testing.assert_close(variance, true_variance, rtol=1e-10, atol=0)


def test_the_scale_comes_to_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs and noise are normal: with the error e = w - w*, G = 2 e and tr(Sigma) = 4 ((d + 1) |e|^2 + d s^2)."""
    monkeypatch.setattr(noise_scale, "EVERY", 1)
    dim, deviation, generator = 3, 0.5, torch.Generator().manual_seed(0)
    line = nn.Linear(dim, 1, dtype=torch.float64)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[0.3, -0.4, 0.0]]))
        line.bias.zero_()
    squared_error = 0.25
    scales = NoiseScale()
    found = []

    def compute_loss() -> Tensor:
        inputs = torch.randn(64, dim, generator=generator, dtype=torch.float64)
        noise = deviation * torch.randn(64, 1, generator=generator, dtype=torch.float64)
        return (line(inputs) - noise).square().mean()  # the true line is 0

    for _ in range(4_000):
        found.append(scales.look(line, compute_loss)["train/noise_scale"])
    with_bias = 4 * (squared_error + deviation**2)  # the bias's gradient is 2 (e x - noise), of mean 0
    expected = (4 * ((dim + 1) * squared_error + dim * deviation**2) + with_bias) / (4 * squared_error)
    assert sum(found[200:]) / len(found[200:]) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_norms_are_those_of_the_gradients_of_single_samples(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm, n_step=2, batch_size=24)
    run_steps(trainer, 60)
    agent, batch = trainer.agent, trainer._sample()
    critic = agent.critic
    noise = 0.3 * torch.randn(24, 1, generator=torch.Generator().manual_seed(1))

    def gradient(rows: slice) -> Tensor:
        if algorithm != "ddpg":
            vars(agent)[f"_draw_{'smoothing' if algorithm == 'td3' else 'noise'}"] = lambda _: noise[rows]
        names = ("obs", "action", "reward", "terminated", "next_obs", "discount")
        part = replace(batch, **{name: getattr(batch, name)[rows] for name in names})
        return torch.cat([g.ravel() for g in torch.autograd.grad(agent.probe_critic(part), list(critic.parameters()))])

    singles = torch.stack([gradient(slice(row, row + 1)) for row in range(24)]).double()
    together = gradient(slice(None))
    torch.testing.assert_close(singles.mean(0), together.double(), rtol=1e-4, atol=1e-6)
    whole, mean_single, samples = measure_norms(critic, lambda: agent.probe_critic(batch))
    assert samples == 24
    assert float(whole) == pytest.approx(float(together.square().sum()), rel=1e-5)
    assert float(mean_single) == pytest.approx(float(singles.square().sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_looked_at_is_that_of_the_update_to_come(small_trainer: BuildTrainer, algorithm: str) -> None:
    """With the very noise that it will draw; so nothing may have been drawn before."""
    trainer = small_trainer(algorithm_name=algorithm, max_grad_norm=1.0)
    run_steps(trainer, 60)
    batch = trainer._sample()
    probed = [trainer.agent.probe_critic(batch).detach() for _ in range(2)]
    assert torch.equal(*probed)
    torch.testing.assert_close(trainer.agent.update(batch)["train/critic_loss"], probed[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_looking_at_every_update_or_at_none_trains_the_same_bits(
    small_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    states, metrics = [], []
    settings = {"algorithm_name": algorithm, "num_envs": 2, "normalize_obs": True, "normalize_reward": True}
    for every in (1, NEVER):
        monkeypatch.setattr(noise_scale, "EVERY", every)
        trainer = small_trainer(**settings)
        metrics.append(run_steps(trainer, 70))
        state = trainer.state_dict()
        state.pop("noise_scale")
        states.append(flatten(state))
    assert any("train/noise_scale" in row for row in metrics[0])
    assert not any("train/noise_scale" in row for row in metrics[1])
    assert states[0] == states[1]


def flatten(state: Any) -> Any:
    """Give a state with tensors and arrays as bytes."""
    from training.resources import hash_state

    return {key: hash_state(value) for key, value in state.items()}


def test_every_hundredth_update_is_looked_at_over_a_resumption_too(small_trainer: BuildTrainer) -> None:
    straight, resumed = small_trainer(), small_trainer()
    run_steps(straight, 240)  # the first update follows step 41
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    after = [run_steps(trainer, 110) for trainer in (straight, resumed)]
    assert after[0] == after[1]
    looked = [240 + number for number, row in enumerate(after[0], start=1) if "train/noise_scale" in row]
    assert set(looked) <= {240, 340}
    assert resumed.state_dict()["noise_scale"] == straight.state_dict()["noise_scale"]
    assert resumed.state_dict()["noise_scale"]["updates"] == 310


def test_guesses_are_averaged_before_they_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [(3.0, 12.0), (1.0, 30.0), (30.0, 10.0)]
    norms = iter(looks)
    monkeypatch.setattr(noise_scale, "EVERY", 1)
    monkeypatch.setattr(noise_scale, "measure_norms", lambda *_: (*(torch.tensor(value) for value in next(norms)), 4))
    scales, network = NoiseScale(), nn.Linear(1, 1)
    squared, variance, told = 0.0, 0.0, []
    for whole, single in looks:
        guess = ((4 * whole - single) / 3, (single - whole) * 4 / 3)
        squared, variance = DECAY * squared + (1 - DECAY) * guess[0], DECAY * variance + (1 - DECAY) * guess[1]
        told.append({"train/noise_scale": pytest.approx(variance / squared)} if squared > 0 else {})
    assert [scales.look(network, lambda: torch.zeros(())) for _ in range(3)] == told
    assert [len(row) for row in told] == [0, 0, 1], "0 and below tell nothing"


def test_one_sample_says_nothing_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_scale, "EVERY", 1)
    line = nn.Linear(2, 1)
    assert NoiseScale().look(line, lambda: line(torch.ones(1, 2)).square().mean()) == {}


def test_a_network_that_the_rule_does_not_hold_for_is_a_mistake() -> None:
    line, twice = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    features = torch.ones(4, 2)
    with pytest.raises(AssertionError, match="once through each layer"):
        measure_norms(line, lambda: line(line(features)).square().mean())
    with pytest.raises(AssertionError, match="beside weights and biases"):
        measure_norms(twice, lambda: twice(features).square().mean())
    assert not line._forward_hooks


def test_nothing_is_left_at_the_network_when_the_loss_fails() -> None:
    line = nn.Linear(2, 1)

    def fail() -> Tensor:
        raise KeyError("no loss")

    with pytest.raises(KeyError):
        measure_norms(line, fail)
    assert not line._forward_hooks


def test_batches_stay_what_they_were(small_trainer: BuildTrainer) -> None:
    trainer = small_trainer()
    run_steps(trainer, 60)
    batch: Batch = trainer._sample()
    before = copy.deepcopy(batch)
    measure_norms(trainer.agent.critic, lambda: trainer.agent.probe_critic(batch))
    for name in ("obs", "action", "reward", "terminated", "next_obs"):
        assert torch.equal(getattr(batch, name), getattr(before, name))
