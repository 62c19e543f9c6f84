"""TD-MPC2 in its environments: planning, remembering, learning. The algorithm is in `agent.py` and `planner.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.make import Env
from envs.snapshot import probe_resume_mode
from rl.slots import Environments, EnvironmentSlot, copy_obs
from rl.tdmpc2.acting import Pilot
from rl.tdmpc2.agent import TDMPC2, Batch
from rl.tdmpc2.buffer import SequenceBuffer, Sequences
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.kernels import describe_kernels
from rl.tdmpc2.planner import shift_plan
from rl.tdmpc2.sizes import count_components
from rl.tdmpc2.spaces import make_agent_env, measure_settings, plan_sizes, read_mask
from rl.tdmpc2.world_model import Tasks
from training.evaluation import evaluate_begun
from training.protocol import Episode, Evaluation, References, StepResult, Treatment
from training.seeding import derive_seed, spawn_generator
from training.vitals import Metrics, Vitals, combine_vitals, is_measured
from training.weights import copy_weights

PRETRAIN_CHUNK = 10
"""Updates of the pretraining in one training step: between steps a run can be stopped and saved."""


def build_trainer(config: TDMPC2Config, device: torch.device) -> TDMPC2Trainer:
    """Give a trainer for a config, with its environments made and nothing done yet."""
    return TDMPC2Trainer(config, device)


def count_parameters(config: TDMPC2Config) -> dict[str, int]:
    """Count the learnable parameters of each network, by arithmetic. The value heads' slow copy doesn't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    return count_components(plan_sizes(config, measure_settings(config)))


class TDMPC2Trainer:
    """The agent, its environments, its plans and its memory.

    Attributes:
        agent: networks and how they learn.
    """

    references: References | None = None
    TRANSIENT: ClassVar = ("config", "device", "_spaces", "_pilot", "_batch_size")

    def __init__(self, config: TDMPC2Config, device: torch.device) -> None:
        self.config, self.device = config, device
        probe = probe_resume_mode(config.env_name, config.env_kwargs)
        self._spaces = measure_settings(config)
        discount = max(config.find_discount(length) for length in self._spaces.episode_lengths)
        self._slots: Environments[Any] = Environments(
            probe, self._make_env, copy_obs, config.seed, config.num_envs, discount
        )
        self.agent = TDMPC2(config, plan_sizes(config, self._spaces), device)
        self._pilot = Pilot(self.agent, config, self._spaces, self._slots[0].env.action_space, device)
        self._buffer = SequenceBuffer(
            config.buffer_steps,
            config.horizon,
            self._spaces.obs_shape,
            self._spaces.obs_dtype,
            self._spaces.action_dim,
            spawn_generator(config.seed, "replay"),
            config.num_envs,
        )
        self._masks = torch.zeros(self._spaces.num_tasks, self._spaces.action_dim, device=device)
        self._means = self._pilot.begin_plans(config.num_envs)
        self._planning = torch.Generator(device).manual_seed(derive_seed(config.seed, "planning"))
        self._warmup = spawn_generator(config.seed, "warmup")
        self._env_steps = 0
        self._env_frames = 0
        self._updates = 0
        self._pretrained = 0
        self._steps_owed = 0
        self._rewarded = False
        self._batch_size = config.batch_size

    def _make_env(self) -> Env:
        return make_agent_env(self.config, self.config.env_kwargs)

    def _make_evaluation_env(self) -> Env:
        return make_agent_env(self.config, self.config.evaluation_kwargs)

    @property
    def resume_mode(self) -> Literal["exact", "episode"]:
        """Whether environments come back to the bit; see `training.protocol.Trainer`."""
        return self._slots.resume_mode

    @property
    def resume_reason(self) -> str | None:
        """Why they don't come back; None where they do."""
        return self._slots.resume_reason

    def train_step(self) -> StepResult:
        """Act once in each environment and learn from what is remembered; or, where learning starts, learn alone."""
        if self._is_pretraining():
            updates = min(PRETRAIN_CHUNK, self.config.num_pretrain - self._pretrained)
            self._pretrained += updates
            metrics, vitals = self._update(updates)
            return StepResult(metrics, 0, updates, vitals=vitals, ticks=0)
        metrics, episodes, faults = self._take_env_steps()
        updates = 0
        if self._env_steps > self.config.learning_starts and len(self._buffer) > 0 and not self._is_pretraining():
            updates, self._steps_owed = divmod(self._steps_owed + self.config.num_envs, self.config.train_freq)
        learned, vitals = self._update(updates)
        counts = {"rollout/agent_steps": self._env_steps, "rollout/env_frames": self._env_frames}
        return StepResult(
            metrics | learned, self.config.num_envs, updates, episodes, vitals=vitals, faults=faults, counts=counts
        )

    def _is_pretraining(self) -> bool:
        ready = self._env_steps >= self.config.learning_starts and len(self._buffer) > 0
        return ready and self._pretrained < self.config.num_pretrain

    def _update(self, updates: int) -> tuple[Metrics, Vitals]:
        """Learn from so many batches; give the means of the numbers, and of what was measured."""
        sums: Metrics = {}
        measured: list[Vitals] = []
        for _ in range(updates):
            vitals: Vitals | None = None
            if is_measured(self._updates) or self._env_steps >= self.config.max_timesteps:
                vitals = {}
                measured.append(vitals)
            batch = self._load(self._buffer.sample(self._batch_size))
            for name, value in self.agent.update(batch, vitals).items():
                sums[name] = sums[name] + value if name in sums else value
            self._updates += 1
        return {name: value / updates for name, value in sums.items()}, combine_vitals(measured) if measured else {}

    def _load(self, sequences: Sequences) -> Batch:
        """Put a batch on the device."""
        obs, action, reward, terminated, valid, index = (
            torch.from_numpy(array).to(self.device, non_blocking=True) for array in sequences
        )
        tasks = Tasks(index, self._masks[index]) if self._spaces.num_tasks else None
        discounts = self._pilot.discounts
        discount = discounts[index] if tasks is not None else discounts.expand(len(index), 1)
        return Batch(obs, action, reward, terminated, valid, discount, tasks)

    def _take_env_steps(self) -> tuple[Metrics, list[Episode], list[str]]:
        """Act once in each environment and remember the transitions; give numbers, ended episodes, faults as texts.

        Where the guard may repair, a transition with what isn't finite is left out and its episode cut off.
        """
        seen = [self._observe(number) for number in range(len(self._slots))]
        metrics, actions = self._choose_actions(seen)
        self._env_steps += len(self._slots)
        episodes, faults, rewarded = [], [], False
        for number, (slot, obs, action) in enumerate(zip(self._slots, seen, actions, strict=True)):
            following, reward, terminated, episode = slot.step(self._pilot.to_env(action), obs, action)
            self._env_frames += slot.frames
            if _is_fault(slot, obs, action, following, reward):
                faults.append(slot.describe_fault(number, reward))
                if self.config.guard == "repair":
                    slot.abandon()
                    self._buffer.abandon(number)
                    continue
            over = episode is not None
            self._buffer.add(number, action, reward, terminated, self._pilot.store(following), over)
            rewarded = rewarded or reward != 0
            if episode is not None:
                episodes.append(self._hold_against_prediction(slot, episode, following))
        if rewarded and not self._rewarded:
            self._rewarded = True  # until now values had no scale but the one that networks began with
            self.agent.forget_gradients()
        return metrics, episodes, faults

    def _observe(self, number: int) -> Any:
        """Give what is seen in one environment, whose next episode is begun if the last has ended."""
        seen = self._slots[number].obs
        if seen is not None:
            return seen
        seen = self._slots[number].begin_episode()
        task = 0
        if isinstance(seen, dict):
            task = int(seen["task"])
            self._masks[task] = torch.from_numpy(read_mask(seen)).to(self.device)
        self._buffer.begin(number, self._pilot.store(seen), task)
        self._means[:, number] = 0
        return seen

    def _choose_actions(self, seen: Sequence[Any]) -> tuple[Metrics, NDArray[np.float32]]:
        """Give actions, (num_envs, action_dim): random ones until learning starts, then planned ones."""
        if self._env_steps < self.config.learning_starts or self._updates == 0:
            return {}, self._draw_actions(seen)
        rows = self._pilot.look(seen)
        if not self.config.mpc:
            return {}, self._pilot.follow_policy(rows, self._planning, explore=True).cpu().numpy()
        found = self._pilot.plan(rows, self._means, self._planning, explore=True)
        self._means = shift_plan(found.mean)
        return {
            "rollout/q_std": found.spread.mean(),
            "rollout/plan_value": found.value.mean(),
        }, found.action.cpu().numpy()

    def _draw_actions(self, seen: Sequence[Any]) -> NDArray[np.float32]:
        """Give random actions, 0 where a task has none."""
        count, dim = len(seen), self._spaces.action_dim
        if self._spaces.discrete:
            return np.eye(dim, dtype=np.float32)[self._warmup.integers(0, dim, count)]
        actions = 2 * self._warmup.random((count, dim), dtype=np.float32) - 1
        return actions if not self._spaces.num_tasks else actions * np.stack([read_mask(each) for each in seen])

    def _hold_against_prediction(self, slot: EnvironmentSlot[Any], episode: Episode, last: Any) -> Episode:
        """Add what the value heads say of an episode's first step, and the discounted return that came."""
        if self._updates == 0 or slot.first_step is None or self._spaces.num_tasks:
            return episode
        first, action = slot.first_step
        came = slot.discounted_return
        if episode.truncated:
            own = self._pilot.follow_policy(self._pilot.look([last]), self._planning, explore=False)
            came += slot.discount_so_far * self._find_value(last, own)
        predicted = self._find_value(first, torch.from_numpy(action[None]).to(self.device))
        return replace(episode, predicted_return=predicted, discounted_return=came)

    def _find_value(self, seen: Any, action: Tensor) -> float:
        rows = self._pilot.look([seen])
        return float(self.agent.value(rows.obs, action, rows.tasks))

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode per seed without exploring, in an environment of its own.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        return evaluate_begun(self._make_evaluation_env, lambda _: self.begin_acting(), seeds, should_stop)

    def begin_acting(self) -> Callable[[Any], Any]:
        """Give the planner, or the policy where `mpc` is false, for one episode; see `Pilot.begin_acting`."""
        return self._pilot.begin_acting()

    def components(self) -> dict[str, nn.Module]:
        """Give the networks that learn, the slow copy left out."""
        return self.agent.components()

    def describe_backends(self) -> dict[str, str]:
        """Give what norms and activations are computed by."""
        return {"normed_layers": describe_kernels(self.device)}

    def take_weights(self, state: dict[str, Any]) -> None:
        """Take the networks alone out of another run's state; see `training.protocol.TakesWeights`."""
        copy_weights({"model": self.agent.model}, state["agent"])
        self.agent.version += 1

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's."""
        self.agent.scale_learning_rates(treatment.learning_rate_factor)
        self._batch_size = max(1, self.config.batch_size >> treatment.batch_halvings)

    def redraw(self, number: int) -> None:
        """Draw batches from a stream of their own from here on, another one for each number."""
        self._buffer.reseed(spawn_generator(self.config.seed, f"replay/{number}"))

    def close(self) -> None:
        """Let go of the environments."""
        self._slots.close()

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs; big parts are the trainer's own memory, not copies."""
        return {
            "agent": self.agent.state_dict(),
            "buffer": self._buffer.state_dict(),
            "masks": self._masks,
            "means": self._means,
            "planning": self._planning.get_state(),
            "warmup": self._warmup.bit_generator.state,
            "slots": self._slots.state_dicts(),
            "env_steps": self._env_steps,
            "env_frames": self._env_frames,
            "updates": self._updates,
            "pretrained": self._pretrained,
            "steps_owed": self._steps_owed,
            "rewarded": self._rewarded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, into fresh environments.

        Raises:
            ValueError: it is of networks or of a buffer of other sizes.
        """
        self.agent.load_state_dict(state["agent"])
        self._buffer.load_state_dict(state["buffer"])
        self._masks.copy_(state["masks"])
        self._means.copy_(state["means"])
        self._planning.set_state(state["planning"].cpu())
        self._warmup.bit_generator.state = state["warmup"]
        self._env_steps, self._env_frames = state["env_steps"], state["env_frames"]
        self._updates, self._pretrained = state["updates"], state["pretrained"]
        self._steps_owed, self._rewarded = state["steps_owed"], state["rewarded"]
        for number in self._slots.load_state_dicts(state["slots"]):
            self._buffer.abandon(number)


def _is_fault(slot: EnvironmentSlot[Any], obs: Any, action: NDArray[np.float32], following: Any, reward: float) -> bool:
    """Tell whether the environment gave what isn't finite: where its episode began, or as answer to a finite action."""
    if slot.episode_length == 1 and not _is_finite(obs):
        return True
    return bool(np.isfinite(action).all()) and not (math.isfinite(reward) and _is_finite(following))


def _is_finite(seen: Any) -> bool:
    parts = seen.values() if isinstance(seen, dict) else (seen,)
    return all(bool(np.isfinite(part).all()) for part in parts)
