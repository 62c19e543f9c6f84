"""VMamba-TD3 in its environments: a `training.protocol.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from envs.actions import ActionScale
from envs.make import Env, make_env
from envs.snapshot import probe_resume_mode
from rl.noise import ActionNoise, GaussianNoise
from rl.scan.backends import describe_backend
from rl.slots import Environments, EnvironmentSlot, copy_obs
from rl.vmamba_td3.agent import VMambaTD3
from rl.vmamba_td3.buffer import SequenceReplayBuffer
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.counting import count_parameters as count_networks
from rl.vmamba_td3.export import WindowPolicyModule, build_window_policy
from rl.vmamba_td3.noise import ShrinkingNoise
from rl.vmamba_td3.spaces import complete_env_kwargs, measure_settings, measure_windows, plan_stream
from rl.vmamba_td3.stream import FrameFeatures
from rl.vmamba_td3.tracing import Tracer
from training.evaluation import evaluate_policy
from training.protocol import Episode, Evaluation, NotOneModuleError, References, StepResult, Treatment
from training.seeding import spawn_generator
from training.vitals import Metrics, Vitals, is_measured
from training.weights import copy_weights

Windows: TypeAlias = dict[str, NDArray[np.float32]]
Slot: TypeAlias = EnvironmentSlot[Windows]


def build_trainer(config: VMambaTD3Config, device: torch.device) -> VMambaTD3Trainer:
    """Give a trainer for a config, with its environments made and nothing done yet."""
    return VMambaTD3Trainer(config, device)


def count_parameters(config: VMambaTD3Config) -> dict[str, int]:
    """Count the learnable parameters of each network, by arithmetic. Targets are copies and don't count.

    Raises:
        SettingsError: the environment can't be made.
    """
    windows = measure_settings(config)
    stream = plan_stream(config, windows)
    return count_networks(stream, windows.action_dim, config.encoder_sharing, windows.privileged_dim)


class VMambaTD3Trainer:
    """The agent, its environments and its memory.

    Attributes:
        agent: networks and how they learn.
    """

    references: References | None = None
    TRANSIENT: ClassVar = ("config", "device", "_scale", "_windows", "_batch_size", "_rate_factor")

    def __init__(self, config: VMambaTD3Config, device: torch.device) -> None:
        self.config, self.device = config, device
        probe = probe_resume_mode(config.env_name, complete_env_kwargs(config, config.env_kwargs))
        self._slots: Environments[Windows] = Environments(
            probe, self._make_env, copy_obs, config.seed, config.num_envs, config.gamma
        )
        env = self._slots[0].env
        assert isinstance(env.action_space, gym.spaces.Box)
        self._scale = ActionScale(env.action_space)
        self._windows = measure_windows(env.observation_space, env.action_space)
        sizes = plan_stream(config, self._windows)
        self.agent = VMambaTD3(config, sizes, self._windows.action_dim, device, self._windows.privileged_dim)
        self.buffer = SequenceReplayBuffer(
            config.buffer_frames,
            self._windows.steps,
            spawn_generator(config.seed, "replay"),
            num_envs=config.num_envs,
            discount=config.gamma,
            n_step=config.n_step,
            depth_scale=self._windows.depth_scale,
        )
        self.noise = build_exploration(config, self._windows.action_dim)
        self._warmup = spawn_generator(config.seed, "warmup")
        self._env_steps = 0
        self._updates = 0
        self._steps_owed = 0
        self._rewarded = False
        self._batch_size = config.batch_size
        self._rate_factor = 1.0

    def _make_env(self) -> Env:
        return make_env(self.config.env_name, complete_env_kwargs(self.config, self.config.env_kwargs))

    def _make_evaluation_env(self) -> Env:
        return make_env(self.config.env_name, self.config.evaluation_kwargs)

    @property
    def resume_mode(self) -> Literal["exact", "episode"]:
        """Whether environments come back to the bit; see `training.protocol.Trainer`."""
        return self._slots.resume_mode

    @property
    def resume_reason(self) -> str | None:
        """Why they don't come back; None where they do."""
        return self._slots.resume_reason

    def train_step(self) -> StepResult:
        """Take one step in each environment, and one update for every `train_freq` of them once there is enough."""
        episodes, faults = self._take_env_steps()
        vitals: Vitals = {}
        metrics: Metrics = {}
        updates = 0
        if self._env_steps > self.config.learning_starts and len(self.buffer) >= self._batch_size:
            updates, self._steps_owed = divmod(self._steps_owed + self.config.num_envs, self.config.train_freq)
            self._schedule_rates()
        for _ in range(updates):
            measured = is_measured(self._updates) or self._env_steps >= self.config.max_timesteps
            batch = self.agent.load_batch(self.buffer.sample_windows(self._batch_size))
            metrics |= self.agent.update(batch, vitals if measured else None)
            self._updates += 1
        return StepResult(metrics, self.config.num_envs, updates, episodes, vitals=vitals, faults=faults)

    def _schedule_rates(self) -> None:
        """Have learning rates fall in a line, to 0 at the run's end, where that is asked for."""
        if self.config.lr_schedule == "linear":
            left = max(0.0, 1 - self._env_steps / self.config.max_timesteps)
            self.agent.scale_learning_rates(self._rate_factor * left)

    def _take_env_steps(self) -> tuple[list[Episode], list[str]]:
        """Act once in each environment and remember the transitions; give ended episodes, and faults as texts.

        Where the guard may repair, a transition with what isn't finite is left out and its episode cut off.
        """
        windows = [self._observe(number) for number in range(len(self._slots))]
        actions = self._choose_actions(windows)
        self._env_steps += len(self._slots)
        episodes, faults, rewarded = [], [], False
        for number, (slot, seen, action) in enumerate(zip(self._slots, windows, actions, strict=True)):
            following, reward, terminated, episode = slot.step(self._scale.to_env(action), seen, action)
            if np.isfinite(action).all() and not (math.isfinite(reward) and _is_finite(following)):
                what = "an observation" if math.isfinite(reward) else f"reward {reward}"
                faults.append(
                    f"{what} of environment {number} in its episode {slot.episodes_begun}, step {slot.episode_length}"
                )
                if self.config.guard == "repair":
                    slot.abandon()
                    self.buffer.end_episode(number)
                    continue
            over = episode is not None and not terminated
            self.buffer.add(
                seen["base"],
                seen["depth"],
                action,
                reward,
                following["base"],
                following["depth"],
                terminated,
                truncated=over,
                env=number,
                privileged=seen.get("privileged"),
                next_privileged=following.get("privileged"),
            )
            rewarded = rewarded or reward != 0
            if episode is not None:
                episodes.append(self._hold_against_prediction(slot, episode, following))
        if rewarded and not self._rewarded:
            self._rewarded = True  # until now values had no scale but the one that networks began with
            self.agent.forget_gradients()
        return episodes, faults

    def _observe(self, number: int) -> Windows:
        """Give what is seen in one environment, whose next episode is begun if the last has ended."""
        seen = self._slots[number].obs
        if seen is not None:
            return seen
        self.noise.reset(number)
        self.buffer.end_episode(number)
        return self._slots[number].begin_episode()

    def _choose_actions(self, windows: Sequence[Windows]) -> NDArray[np.float32]:
        """Give actions, (num_envs, action_dim): uniform ones for `random_steps`, then the policy's with noise."""
        shape = (len(windows), self._windows.action_dim)
        if self._env_steps < self.config.random_steps:
            return 2 * self._warmup.random(shape, dtype=np.float32) - 1
        if isinstance(self.noise, ShrinkingNoise):
            self.noise.scale_sigma(min(self._env_steps / self.config.max_timesteps, 1.0))
        base, depth = (torch.from_numpy(np.stack([seen[key] for seen in windows])) for key in ("base", "depth"))
        actions = self.agent.act(base.to(self.device), self._scale_depth(depth)).cpu().numpy()
        noisy: NDArray[np.float32] = np.clip(actions + self.noise.sample(), -1, 1)
        return noisy

    def _scale_depth(self, depth: torch.Tensor) -> torch.Tensor:
        return (depth / self._windows.depth_scale if self._windows.depth_scale != 1 else depth).to(self.device)

    def _hold_against_prediction(self, slot: Slot, episode: Episode, last: Windows) -> Episode:
        """Add what the critic says of an episode's first step, and the discounted return that came, once it learns."""
        if self._updates == 0 or slot.first_step is None:
            return episode
        first, action = slot.first_step
        came = slot.discounted_return
        if episode.truncated:
            came += slot.discount_so_far * self._find_value(last, None)
        return replace(episode, predicted_return=self._find_value(first, action), discounted_return=came)

    def _find_value(self, seen: Windows, action: NDArray[np.float32] | None) -> float:
        """Give the critic's value of an action, or of the policy's own."""
        base, depth = torch.from_numpy(seen["base"][None]), torch.from_numpy(seen["depth"][None])
        base, depth = base.to(self.device), self._scale_depth(depth)
        chosen = self.agent.act(base, depth) if action is None else torch.from_numpy(action[None]).to(self.device)
        known = torch.from_numpy(seen.get("privileged", np.zeros(0, np.float32))[None]).to(self.device)
        return float(self.agent.value(base, depth, known, chosen))

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode without noise per seed, in an environment of its own.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        return evaluate_policy(self._make_evaluation_env, self.begin_acting(), seeds, should_stop)

    def begin_acting(self) -> Callable[[Any], NDArray[Any]]:
        """Give the policy without noise, from windows to actions in the environment's units.

        It keeps the features of frames that it has seen, for as long as the weights stay as they are.
        """
        known = FrameFeatures()

        def act(obs: Any) -> NDArray[Any]:
            return self._scale.to_env(self.act(copy_obs(obs), known))

        return act

    def begin_tracing(self) -> Callable[[Any], dict[str, NDArray[Any]]]:
        """Give the policy as `begin_acting` does, with what its networks make of each window; see `tracing.Tracer`."""
        return Tracer(self.agent, self._scale, self._windows.depth_scale, self.device)

    def act(self, seen: Windows, known: FrameFeatures) -> NDArray[np.float32]:
        """Give the policy's action in [-1, 1] for one window, with the features of frames that are known."""
        self.agent.networks.eval()
        stream = self.agent.find_stream("actor")
        depth = seen["depth"] / np.float32(self._windows.depth_scale)
        features = known.find(stream, self.agent.version, depth, self.device)
        with torch.no_grad():
            context = stream.gather(features, torch.from_numpy(seen["base"][None]).to(self.device))
            action: NDArray[np.float32] = self.agent.choose(context)[0].cpu().numpy()
        return action

    def build_policy_module(self) -> WindowPolicyModule:
        """Give the policy as one module of two inputs, `base` and `depth`; see `training.protocol.HasPolicyModule`.

        Raises:
            NotOneModuleError: it computes in 16 bits, which a file would round elsewhere.
        """
        if self.config.use_amp:
            why = "with use_amp: true its products are rounded to 16 bits, and a file would round others"
            raise NotOneModuleError(why)
        return build_window_policy(self.agent, self._scale, self._windows.depth_scale)

    def components(self) -> dict[str, nn.Module]:
        """Give the networks that learn by their published names, targets left out."""
        return self.agent.components()

    def describe_backends(self) -> dict[str, str]:
        """Give what the selective scan is done by."""
        found = describe_backend(self.device)
        return {"selective_scan": f"{found['backend']} ({found['details']})"}

    def take_weights(self, state: dict[str, Any]) -> None:
        """Take the networks alone out of another run's state; see `training.protocol.TakesWeights`."""
        copy_weights({"networks": self.agent.networks, "targets": self.agent.targets}, state["agent"])
        self.agent.version += 1

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's."""
        self._rate_factor = treatment.learning_rate_factor
        self.agent.scale_learning_rates(self._rate_factor)
        self._batch_size = max(1, self.config.batch_size >> treatment.batch_halvings)

    def redraw(self, number: int) -> None:
        """Draw batches from a stream of their own from here on, another one for each number."""
        self.buffer.reseed(spawn_generator(self.config.seed, f"replay/{number}"))

    def close(self) -> None:
        """Let go of the environments."""
        self._slots.close()

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs; big parts are the trainer's own memory, not copies."""
        return {
            "agent": self.agent.state_dict(),
            "buffer": self.buffer.state_dict(),
            "noise": self.noise.state_dict(),
            "warmup": self._warmup.bit_generator.state,
            "slots": self._slots.state_dicts(),
            "env_steps": self._env_steps,
            "updates": self._updates,
            "steps_owed": self._steps_owed,
            "rewarded": self._rewarded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, into fresh environments."""
        self.agent.load_state_dict(state["agent"])
        self.buffer.load_state_dict(state["buffer"])
        self.noise.load_state_dict(state["noise"])
        self._warmup.bit_generator.state = state["warmup"]
        self._env_steps, self._updates = state["env_steps"], state["updates"]
        self._steps_owed, self._rewarded = state["steps_owed"], state["rewarded"]
        for number in self._slots.load_state_dicts(state["slots"]):
            self.buffer.end_episode(number)


def build_exploration(config: VMambaTD3Config, action_dim: int) -> ActionNoise:
    """Give the noise that a config asks for."""
    shape, generator = (config.num_envs, action_dim), spawn_generator(config.seed, "noise")
    if config.exploration == "gaussian":
        return GaussianNoise(shape, config.noise_std, generator)
    return ShrinkingNoise(shape, config.ou_sigma, config.ou_sigma_min, config.ou_theta, generator)


def _is_finite(windows: Windows) -> bool:
    return all(bool(np.isfinite(part).all()) for part in windows.values())
