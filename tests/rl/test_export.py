"""Policies as modules: from what an environment gives to what it takes, as the trainer itself acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from envs.actions import ActionScale
from rl.export import PolicyModule, build_policy_module
from rl.normalizers import ObsNormalizer
from training.protocol import HasPolicyModule, NotOneModuleError

ALGORITHMS = ["ddpg", "td3", "sac"]


def compare(trainer: Any, observed: np.ndarray[Any, Any]) -> float:
    """Give the largest difference between a trainer's policy and its module, which gets all observations at once."""
    act = trainer.begin_acting()
    module = trainer.build_policy_module()
    action = module(torch.from_numpy(observed.astype(np.float32))).numpy()
    acted = np.stack([act(obs) for obs in observed])
    assert action.dtype == acted.dtype
    return float(np.abs(action - acted).max())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_module_acts_as_the_policy_in_the_environments_units(
    small_trainer: Any, algorithm: str, normalize: bool
) -> None:
    trainer = small_trainer(algorithm_name=algorithm, env_name="Clock-v0", normalize_obs=normalize)
    for _ in range(80):
        trainer.train_step()
    # Large enough to come near to the bounds.
    trainer.agent.actor.mlp.initialise(torch.Generator().manual_seed(0), final_bound=2.0)
    observed = np.random.default_rng(0).normal(0, 4, (200, 10))
    assert isinstance(trainer, HasPolicyModule)
    assert compare(trainer, observed) < 1e-5
    action = trainer.build_policy_module()(torch.from_numpy(observed.astype(np.float32)))
    assert (action >= torch.tensor([-2.0, 0.5])).all()
    assert (action <= torch.tensor([6.0, 0.75])).all()
    assert (action.std(0) > torch.tensor([0.5, 0.03])).all()


def test_a_module_is_a_copy_that_training_leaves_alone(small_trainer: Any) -> None:
    trainer = small_trainer(env_name="Clock-v0", normalize_obs=True)
    module = trainer.build_policy_module()
    before = {name: part.clone() for name, part in module.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in module.parameters())
    drawn = torch.get_rng_state()
    trainer.build_policy_module()
    assert torch.equal(torch.get_rng_state(), drawn)
    for _ in range(80):
        trainer.train_step()
    assert all(torch.equal(part, before[name]) for name, part in module.state_dict().items())
    changed = trainer.build_policy_module().state_dict()
    assert not torch.equal(changed["normalize.shift"], before["normalize.shift"])
    assert not torch.equal(changed["policy.0.0.weight"], before["policy.0.0.weight"])


def test_the_normalisation_is_clipped_like_the_policys() -> None:
    normalizer = ObsNormalizer(2, 0)
    normalizer.add(np.array([[0.0, 5.0], [1.0, 5.1]], dtype=np.float32))
    obs = np.array([[1e6, -1e6], [0.3, 5.05]], dtype=np.float32)
    module = normalizer.build_module()
    np.testing.assert_array_equal(module(torch.from_numpy(obs)).numpy(), normalizer.apply(obs))


def test_actions_have_the_environments_number_type() -> None:
    import gymnasium as gym

    space = gym.spaces.Box(np.array([-1.0]), np.array([3.0]), dtype=np.float64)
    module = PolicyModule(nn.Identity(), nn.Tanh(), ActionScale(space))
    action = module(torch.tensor([[0.0], [100.0]]))
    assert action.dtype == torch.float64
    assert action.flatten().tolist() == [1.0, 3.0]


def test_a_residual_policy_is_refused_because_its_controller_is_code(small_trainer: Any) -> None:
    trainer = small_trainer(base_controller="pendulum_energy", delta_scale_max=0.4)
    with pytest.raises(NotOneModuleError, match="the base controller pendulum_energy is code, and no network"):
        trainer.build_policy_module()


def test_an_actor_without_a_plain_form_is_refused() -> None:
    import gymnasium as gym

    scale = ActionScale(gym.spaces.Box(-1, 1, (1,)))
    with pytest.raises(NotOneModuleError, match=r"its actor, GRUCell, has no form .* \(no copy_policy\)"):
        build_policy_module(nn.Identity(), nn.GRUCell(2, 1), scale)
