"""Learning a diffusion policy from recorded episodes first, and then from its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffuser.config import DiffusionRLConfig
from diffuser.policy_gradient import (
    Rollout,
    compare_to_peers,
    estimate_advantages,
    estimate_kl,
    measure_return_size,
    normalize_advantages,
    policy_loss,
)
from diffuser.utils.evaluator import draw_noise
from diffuser.utils.training import Trainer
from diffuser.worlds import ChunkOutcome, World, stack_histories
from envs.make import Env
from envs.plain_values import SnapshotError
from envs.snapshot import Snapshot, probe_resume_mode, take_snapshot
from training.protocol import Episode, StepResult, Treatment
from training.seeding import derive_reset_seed, spawn_generator
from training.vitals import Metrics, Vitals, combine_vitals, is_measured, note_skips


class OnlineOfflineTrainer(Trainer):
    """Offline training for `rl_warmup_steps` steps; from then on the policy acts, and is improved by what comes of it.

    At that moment the averaged networks take the place of the others, and VAE and trajectory encoder stop moving:
    stored chains keep their meaning, and the decoder is a part of the world. Then every `rl_collect_freq`-th step
    executes chunks in all environments, every `rl_update_freq`-th makes a pass over what was collected last, and the
    steps between do nothing. A collection forgets the one before. An update is one batch of a pass.

    Args:
        config: of the run, with `online_training: true`.
        device: for the networks.
        make_environment: gives a fresh environment; by default that of the config.

    Raises:
        SettingsError: the data set can't be learnt from.
    """

    TRANSIENT: ClassVar[tuple[str, ...]] = (*Trainer.TRANSIENT, "_positions", "_rl_batch_size")

    def __init__(
        self, config: DiffusionRLConfig, device: torch.device, make_environment: Callable[[], Env] | None = None
    ) -> None:
        super().__init__(config, device, make_environment)
        probe = probe_resume_mode(config.env_name, config.env_kwargs)
        self.resume_mode, self.resume_reason = probe.mode, probe.reason
        self._worlds = [
            World(
                self._make_env,
                self.dataset.normalizer,
                self.dataset.action_scale,
                config.history_horizon,
                f"environment {number}",
            )
            for number in range(config.num_envs)
        ]
        self._check_environment(self._worlds[0].env)
        tuned: list[nn.Module] = [self.model.denoiser, self.model.exploration]
        parts = {"policy": [parameter for network in tuned for parameter in network.parameters()]}
        if self.model.value is not None:
            parts["value"] = list(self.model.value.parameters())
        self._rl_optimizers = {
            name: self._build_optimizer(parameters, config.rl_learning_rate) for name, parameters in parts.items()
        }
        self._positions = tuple(range(self.model.num_steps - config.rl_tuned_steps, self.model.num_steps))
        self._exploring = [spawn_generator(config.seed, f"exploring/{number}") for number in range(config.num_envs)]
        self._passes = spawn_generator(config.seed, "passes")
        self._rollout: Rollout | None = None
        self._rl_batch_size = config.rl_batch_size
        self._acts = False
        self._online_updates = 0
        self._return_size: float | None = None

    def train_step(self) -> StepResult:
        """Learn from data while warming up; afterwards collect, improve, or let the step pass, as the keys say."""
        if self._steps < self.config.rl_warmup_steps:
            return super().train_step()
        if not self._acts:
            self._begin_acting()
        online_step, updates_before = self._steps - self.config.rl_warmup_steps, self._online_updates
        self._steps += 1
        collected, faults, env_steps = self._collect(online_step)
        metrics, vitals = self._improve(online_step)
        updates = self._online_updates - updates_before
        return StepResult(metrics, env_steps, updates, collected, vitals=vitals, faults=faults, ticks=1)

    def _begin_acting(self) -> None:
        """Go over from the moving networks to their average, and keep what chains mean as it is from here on."""
        with torch.no_grad():
            for mine, average in zip(self.model.parameters(), self.average.parameters(), strict=True):
                mine.copy_(average)
        self.model.freeze_representation()
        self._acts = True

    def _collect(self, online_step: int) -> tuple[list[Episode], list[str], int]:
        """Execute chunks where it is time to; give the episodes that ended, faults, and steps taken."""
        if online_step % self.config.rl_collect_freq:
            return [], [], 0
        chunks = self.config.rl_collect_steps // self.config.horizon
        rows = [self._execute_chunk() for _ in range(chunks)]
        self._rollout = _stack_rows([row for row, _ in rows])
        if self._return_size is None:
            self._return_size = measure_return_size(self._rollout)
        outcomes = [outcome for _, chunk in rows for outcome in chunk]
        episodes = [outcome.episode for outcome in outcomes if outcome.episode is not None]
        faults = [outcome.fault for outcome in outcomes if outcome.fault]
        return episodes, faults, sum(len(outcome.rewards) for outcome in outcomes)

    def _execute_chunk(self) -> tuple[Rollout, list[ChunkOutcome]]:
        """Have each environment's policy decide once, and execute what it decided."""
        for number, world in enumerate(self._worlds):
            if world.is_over:
                stream = f"env{number}/{world.episodes_begun}"
                world.begin_episode(derive_reset_seed(self.config.seed, stream) if world.needs_seed else None)
        c = self._encode()
        with torch.no_grad():
            noise = draw_noise(self.model, self._exploring, self.model.noise_shape)[:, 0]
            chain = self.model.run_chain(c, noise, explore=True)
            log_prob = self.model.log_prob(chain, c, self._positions) / self.model.latent_size
            chunks: NDArray[np.float32] = self.model.decode(chain[:, -1]).cpu().numpy()
        outcomes = [world.execute(chunk) for world, chunk in zip(self._worlds, chunks, strict=True)]
        return self._record(c, chain, log_prob, outcomes), outcomes

    def _encode(self) -> Tensor:
        history = stack_histories([world.history for world in self._worlds], self._device)
        with torch.no_grad():
            return self.model.encode_history(history.obs, history.action, history.mask)

    def _record(self, c: Tensor, chain: Tensor, log_prob: Tensor, outcomes: list[ChunkOutcome]) -> Rollout:
        """Give what one decision in each environment came to; a fault ends an episode as the clock would."""
        discount = self.config.discount
        # What isn't finite counts nothing: the guard has heard of it.
        rewards = [np.nan_to_num(np.array(o.rewards), nan=0.0, posinf=0.0, neginf=0.0) for o in outcomes]
        sums = [float(values @ discount ** np.arange(len(values))) for values in rewards]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)

        return Rollout(
            c=c,
            next_c=torch.nan_to_num(self._encode()),
            chain=chain,
            log_prob=log_prob,
            reward=column(sums),
            discount=column([discount ** len(values) for values in rewards]),
            terminated=column([float(o.terminated) for o in outcomes]),
            ended=column([float(o.terminated or o.truncated or bool(o.fault)) for o in outcomes]),
        )

    def _improve(self, online_step: int) -> tuple[Metrics, Vitals]:
        """Make a pass over what was collected, where it is time to; each of its batches is an update."""
        if online_step % self.config.rl_update_freq or self._rollout is None:
            return {}, {}
        rollout = self._rollout
        advantages, returns = self._judge(rollout)
        flat = {name: getattr(rollout, name).flatten(0, 1) for name in ("c", "chain", "log_prob")}
        decisions = len(flat["c"])
        order = torch.from_numpy(self._passes.permutation(decisions * len(self._positions))).to(self._device)
        metrics: Metrics = {}
        measured: list[Vitals] = []
        done = 0
        for part in torch.split(order, self._rl_batch_size):
            vitals: Vitals | None = {} if is_measured(self._online_updates) else None
            done += 1
            self._online_updates += 1
            loss, numbers = self._find_loss(part, flat, advantages.flatten(), returns)
            self._descend_together(loss, vitals)
            if vitals is not None:
                measured.append(vitals)
            self.model.exploration.put_in_range()
            self._move_average()
            for name, value in numbers.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + value
            limit = self.config.rl_target_kl
            if limit is not None and float(numbers["train/kl"]) > limit:
                break
        metrics = {name: value / done for name, value in metrics.items()}
        metrics["train/exploration_std"] = self.model.exploration().detach().mean()
        return metrics, self._gather_vitals(measured)

    def _gather_vitals(self, measured: list[Vitals]) -> Vitals:
        """Give the vitals of a pass of which some updates were measured, or none."""
        if not measured:
            return {}
        vitals = combine_vitals(measured)
        note_skips(list(self._rl_optimizers.values()), vitals)
        return vitals

    def _descend_together(self, loss: Tensor, vitals: Vitals | None) -> None:
        """Take a step of each optimizer; each shortens its own gradients, so that neither loss drowns the other."""
        wanted = [parameter for optimizer in self._rl_optimizers.values() for parameter in optimizer.parameters]
        gradients = list(torch.autograd.grad(loss, wanted, materialize_grads=True))
        for name, optimizer in self._rl_optimizers.items():
            count = len(optimizer.parameters)
            self._descend(name, optimizer, gradients[:count], vitals)
            gradients = gradients[count:]

    @torch.no_grad()
    def _judge(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """Give normalised advantages, and the returns that values are to predict if there is a value function.

        Values are in units of the size that returns had at first, whatever the rewards' own.
        """
        if self.model.value is None:
            return normalize_advantages(compare_to_peers(rollout)), None
        assert self._return_size is not None
        rollout = replace(rollout, reward=rollout.reward / self._return_size)
        value, next_value = self.model.value(rollout.c.flatten(0, 1)), self.model.value(rollout.next_c.flatten(0, 1))
        shape = rollout.reward.shape
        advantages, returns = estimate_advantages(
            rollout, value.view(shape), next_value.view(shape), self.config.gae_lambda
        )
        return normalize_advantages(advantages), returns.flatten()

    def _find_loss(
        self, part: Tensor, flat: dict[str, Tensor], advantages: Tensor, returns: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Give the loss of some denoising steps of some decisions, and its named numbers."""
        config, model = self.config, self.model
        tuned = len(self._positions)
        decision, step = part // tuned, part % tuned
        position = step + self._positions[0]
        chain, c = flat["chain"], flat["c"][decision]
        log_prob = model.step_log_prob(chain[decision, position], chain[decision, position + 1], position, c)
        log_prob = log_prob / model.latent_size
        old = flat["log_prob"][decision, step]
        # Steps further from the clean latent decide less of it.
        advantage = advantages[decision] * config.denoising_discount ** (tuned - 1 - step)
        policy = policy_loss(log_prob, old, advantage, config.rl_clip_range)
        entropy = model.find_entropy(self._positions)
        loss = config.policy_gradient_weight * policy - config.entropy_weight * entropy
        metrics = {"policy_loss": policy, "train/entropy": entropy, "train/kl": estimate_kl(log_prob, old)}
        if returns is not None and model.value is not None:
            metrics["value_loss"] = functional.mse_loss(model.value(c), returns[decision])
            loss = loss + config.value_function_weight * metrics["value_loss"]
        if config.offline_loss_weight:
            batch = self.dataset.gather(self._sampler.draw(self._batch_size), self._device)
            regulariser, numbers = model.loss(batch, self._generator)
            loss = loss + config.offline_loss_weight * regulariser
            metrics |= {name: value for name, value in numbers.items() if name != "loss"}
        return loss, {name: value.detach() for name, value in (metrics | {"loss": loss}).items()}

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's."""
        super().treat(treatment)
        for optimizer in self._rl_optimizers.values():
            optimizer.scale_learning_rate(treatment.learning_rate_factor)
        self._rl_batch_size = max(1, self.config.rl_batch_size >> treatment.batch_halvings)

    def redraw(self, number: int) -> None:
        """Draw batches from streams of their own from here on, other ones for each number."""
        super().redraw(number)
        self._passes = spawn_generator(self.config.seed, f"passes/{number}")

    def state_dict(self) -> dict[str, Any]:
        """Give everything that resuming needs, what was collected and the environments among it."""
        snapshots = self._take_snapshots()
        worlds = [world.state_dict() | {"env": env} for world, env in zip(self._worlds, snapshots, strict=True)]
        return super().state_dict() | {
            "rl_optimizers": {name: optimizer.state_dict() for name, optimizer in self._rl_optimizers.items()},
            "return_size": self._return_size,
            "exploring": [generator.bit_generator.state for generator in self._exploring],
            "passes": self._passes.bit_generator.state,
            "rollout": None if self._rollout is None else self._rollout.state_dict(),
            "worlds": worlds,
            "acts": self._acts,
            "online_updates": self._online_updates,
        }

    def _take_snapshots(self) -> list[Snapshot | None]:
        if self.resume_mode == "exact":
            try:
                return [take_snapshot(world.env) for world in self._worlds]
            except SnapshotError as error:
                self.resume_mode, self.resume_reason = "episode", str(error)
                warnings.warn(f"from here on a resumed run begins a new episode: {error}", stacklevel=3)
        return [None] * len(self._worlds)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave, into fresh environments."""
        super().load_state_dict(state)
        for name, optimizer in self._rl_optimizers.items():
            optimizer.load_state_dict(state["rl_optimizers"][name])
        self._return_size = state["return_size"]
        for generator, saved in zip(self._exploring, state["exploring"], strict=True):
            generator.bit_generator.state = saved
        self._passes.bit_generator.state = state["passes"]
        rollout = state["rollout"]
        self._rollout = (
            None if rollout is None else Rollout(**{name: part.to(self._device) for name, part in rollout.items()})
        )
        for world, saved in zip(self._worlds, state["worlds"], strict=True):
            world.load_state_dict(saved, saved["env"])
        self._acts = state["acts"]
        self._online_updates = state["online_updates"]
        if self._acts:
            self.model.freeze_representation()
        if self.resume_mode == "exact" and state["worlds"][0]["env"] is None:
            self.resume_mode = "episode"
            self.resume_reason = "the environment's state was not in the checkpoint that the run went on from"

    def close(self) -> None:
        """Let go of the environments."""
        for world in self._worlds:
            world.env.close()


OfflineRLTrainer = OnlineOfflineTrainer
"""The name that the guide to these agents uses."""


def _stack_rows(rows: list[Rollout]) -> Rollout:
    """Give chunks one after the other, (chunks, environments, ...)."""
    columns = [row.state_dict() for row in rows]
    return Rollout(**{name: torch.stack([column[name] for column in columns]) for name in columns[0]})
