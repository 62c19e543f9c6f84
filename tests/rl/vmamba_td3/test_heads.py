"""Actor and twin critic with their norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rl.vmamba_td3.counting import count_actor, count_twin_critic
from rl.vmamba_td3.heads import Actor, NormedMLP, TwinCritic


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build() -> tuple[Actor, TwinCritic]:
    actor, critic = Actor(16, 24, 3), TwinCritic(16, 24, 3)
    for number, network in enumerate((actor, critic)):
        network.initialise(torch.Generator().manual_seed(number))
    return actor, critic


def test_shapes_and_the_range_of_actions() -> None:
    actor, critic = build()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter *= 100
    action = actor(draw(7, 16))
    assert action.shape == (7, 3)
    assert 0.99 < action.abs().max() <= 1
    values = critic(draw(7, 16), action)
    assert [value.shape for value in values] == [(7, 1), (7, 1)]
    assert not torch.equal(*values)


def test_there_is_a_norm_before_each_layer_and_relu_before_all_but_the_first() -> None:
    mlp = NormedMLP(16, 24, 3)
    first, second, last = mlp.layers
    hidden = first(functional.layer_norm(draw(7, 16), (16,)))
    hidden = second(functional.relu(functional.layer_norm(hidden, (24,))))
    torch.testing.assert_close(mlp(draw(7, 16)), last(functional.relu(functional.layer_norm(hidden, (24,)))))


def test_first_actions_and_values_are_near_zero() -> None:
    actor, critic = build()
    action = actor(draw(50, 16))
    assert 0 < action.abs().max() < 0.05
    for value in critic(draw(50, 16), action):
        assert 0 < value.abs().max() < 0.05


def test_they_are_as_large_as_counted() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    actor, critic = build()
    assert count(actor) == count_actor(16, 24, 3)
    assert count(critic) == count_twin_critic(16, 24, 3)
    assert (count_actor(128, 128, 3), count_twin_critic(128, 128, 3)) == (34_179, 68_622)


def test_actions_of_any_size_and_scale_of_input_are_seen_through_norms() -> None:
    actor, _ = build()
    context = draw(5, 16)
    torch.testing.assert_close(actor(1000 * context), actor(context), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_first_weights_follow_the_generator_alone(number: int) -> None:
    torch.manual_seed(number)
    one = build()[number]
    torch.manual_seed(number + 10)
    for mine, theirs in zip(one.parameters(), build()[number].parameters(), strict=True):
        assert torch.equal(mine, theirs)
