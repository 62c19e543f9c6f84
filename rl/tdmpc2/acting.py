"""What acts: the planner in a world model, or its policy alone; between environments and networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.actions import ActionScale
from rl.slots import copy_obs
from rl.tdmpc2.agent import TDMPC2
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.planner import Plan, PlannerSettings, Situation, draw_noise, plan, shift_plan
from rl.tdmpc2.spaces import Spaces, read_mask
from rl.tdmpc2.world_model import Tasks, WorldModel, build_half, refresh_half
from training.seeding import derive_seed


class Seen(NamedTuple):
    """What environments show, a row each.

    Attributes:
        obs: (rows, *obs_shape).
        tasks: of the rows; None where there is one.
    """

    obs: Tensor
    tasks: Tasks | None


class Pilot:
    """Chooses actions in [-1, 1], or one 1 among zeros where they are discrete, and turns them into an environment's.

    Args:
        agent: whose networks are planned with, as they are when it is asked.
        config: of the run.
        spaces: of the environment.
        actions: its action space.
        device: of the agent.

    Attributes:
        discounts: (tasks, 1), per step.
        settings: of the planner.
    """

    TRANSIENT: ClassVar = (
        *(
            "_agent",
            "_config",
            "_spaces",
            "_device",
            "_scale",
            "_first_action",
            "discounts",
            "settings",
            "_half",
            "_half_version",
        ),
    )

    def __init__(
        self, agent: TDMPC2, config: TDMPC2Config, spaces: Spaces, actions: gym.Space[Any], device: torch.device
    ) -> None:
        self._agent, self._config, self._spaces, self._device = agent, config, spaces, device
        self._scale = ActionScale(actions) if isinstance(actions, gym.spaces.Box) else None
        self._first_action = int(actions.start) if isinstance(actions, gym.spaces.Discrete) else 0
        self.discounts = torch.tensor(
            [config.find_discount(length) for length in spaces.episode_lengths], device=device
        )
        self.discounts = self.discounts[:, None]
        self.settings = build_settings(config, spaces.action_dim)
        self._half: WorldModel | None = None
        self._half_version = -1

    def begin_plans(self, count: int) -> Tensor:
        """Give what planning begins with in so many environments, (horizon, count, action_dim)."""
        return torch.zeros(self._config.horizon, count, self._spaces.action_dim, device=self._device)

    def store(self, seen: Any) -> NDArray[Any]:
        """Give an observation without its task, as it is kept: bytes of pixels, or float32."""
        obs: NDArray[Any] = seen["obs"] if isinstance(seen, dict) else seen
        return obs.astype(self._spaces.obs_dtype, copy=False)

    def look(self, seen: Sequence[Any]) -> Seen:
        """Put what several environments show on the device."""
        obs = torch.from_numpy(np.stack([self.store(each) for each in seen])).to(self._device)
        if not self._spaces.num_tasks:
            return Seen(obs, None)
        index = torch.tensor([int(each["task"]) for each in seen], device=self._device)
        masks = torch.from_numpy(np.stack([read_mask(each) for each in seen])).to(self._device)
        return Seen(obs, Tasks(index, masks))

    @torch.no_grad()
    def plan(self, rows: Seen, means: Tensor, generator: torch.Generator, *, explore: bool) -> Plan:
        """Plan in each environment, from `means`, (horizon, rows, action_dim), the plans before."""
        model, spaces = self._agent.model.eval(), self._spaces
        task = model.embed(rows.tasks)
        latent = model.encode(rows.obs, task)
        count = len(rows.obs)
        discount = self.discounts.expand(count, 1) if rows.tasks is None else self.discounts[rows.tasks.number]
        if self._config.plan_bf16:
            model, latent = self._find_half(), latent.bfloat16()
        situation = Situation(latent, discount, task, None if rows.tasks is None else rows.tasks.mask)
        noise = draw_noise(
            count,
            self.settings,
            spaces.action_dim,
            self._config.num_q,
            discrete=spaces.discrete,
            device=self._device,
            generator=generator,
        )
        return plan(model, situation, means, noise, self.settings, explore=explore)

    def _find_half(self) -> WorldModel:
        """Give the model in bfloat16, as its parameters are now."""
        if self._half is None:
            self._half, self._half_version = build_half(self._agent.model), self._agent.version
        if self._half_version != self._agent.version:
            refresh_half(self._half, self._agent.model)
            self._half_version = self._agent.version
        return self._half

    def follow_policy(self, rows: Seen, generator: torch.Generator, *, explore: bool) -> Tensor:
        """Give what the policy alone does, (rows, action_dim)."""
        choice = self._agent.act(rows.obs, rows.tasks, generator)
        return choice.action if explore else choice.mean

    def to_env(self, action: NDArray[np.float32]) -> Any:
        """Give an action as the environment takes it."""
        if self._scale is None:
            return self._first_action + int(action.argmax())
        return self._scale.to_env(np.clip(action, -1, 1))

    def begin_acting(self) -> Callable[[Any], Any]:
        """Give the planner, or the policy where `mpc` is false, for one episode; it remembers its last plan.

        What plans draw is the same in each episode, and the same whatever training has drawn.
        """
        means = self.begin_plans(1)
        generator = torch.Generator(self._device).manual_seed(derive_seed(self._config.seed, "evaluation"))

        def act(obs: Any) -> Any:
            nonlocal means
            rows = self.look([copy_obs(obs)])
            if not self._config.mpc:
                return self.to_env(self.follow_policy(rows, generator, explore=False)[0].cpu().numpy())
            found = self.plan(rows, means, generator, explore=False)
            means = shift_plan(found.mean)
            return self.to_env(found.action[0].cpu().numpy())

        return act


def build_settings(config: TDMPC2Config, action_dim: int) -> PlannerSettings:
    """Give the planner's settings for actions of so many numbers."""
    return PlannerSettings(
        config.horizon,
        config.find_iterations(action_dim),
        config.num_samples,
        config.num_elites,
        config.num_pi_trajs,
        config.min_std,
        config.max_std,
        config.temperature,
        config.value_uncertainty_weight,
    )
