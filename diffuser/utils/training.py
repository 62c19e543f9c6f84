"""Learning a diffusion policy from recorded episodes alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffuser.config import DiffusionRLConfig
from diffuser.datasets.batch import SequenceBatch
from diffuser.datasets.sequence import VAESequenceDataset, WindowSampler, check_fit
from diffuser.models.critic import ChunkCritic, critic_loss
from diffuser.models.diffusion_rl import DiffusionRL, ModelSizes
from diffuser.utils.evaluator import MADEvaluator
from diffuser.worlds import ChunkPolicy
from envs.datasets import load_dataset
from envs.episodes import EpisodeError
from envs.make import Env, make_env
from experiment.problems import Fault, SettingsError
from training.adam import Adam, clip_gradients, measure_length
from training.gate import GradientGate
from training.protocol import Evaluation, References, StepResult, Treatment
from training.seeding import derive_seed
from training.vitals import Metrics, Vitals, is_measured, note_skips, note_weights
from training.weights import copy_weights


def say(line: str) -> None:
    """Print a line for people."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Trainer:
    """The VAE's and the diffusion's losses over windows of a data set, with a slow average of the networks that acts.

    No environment is made but for evaluations.

    Args:
        config: of the run.
        device: for the networks; data stay where they are and come in batches.
        make_environment: gives a fresh environment, for evaluations too; by default those of the config.

    Raises:
        SettingsError: the data set can't be learnt from.

    Attributes:
        model: the networks that learn.
        average: their slow copy, `ema_decay * average + (1 - ema_decay) * model` after each step.
        references: of the data set, for normalised scores.
    """

    TRANSIENT: ClassVar[tuple[str, ...]] = (
        "config",
        "resume_mode",
        "resume_reason",
        "references",
        "dataset",
        "evaluator",
        "_device",
        "_make_env",
        "_batch_size",
        "_online_parameters",
        "_average_parameters",
        "_return_unit",
    )

    resume_mode: Literal["exact", "episode"]
    resume_reason: str | None

    def __init__(
        self, config: DiffusionRLConfig, device: torch.device, make_environment: Callable[[], Env] | None = None
    ) -> None:
        self.config = config
        self.resume_mode = "exact"
        self.resume_reason = None
        self._device = device
        self._make_env = make_environment or self._make_environment
        self.dataset = open_dataset(config)
        pair = self.dataset.episodes.header.find_references(config.evaluation_kwargs)
        self.references = None if pair is None else References(*pair)
        self.evaluator = MADEvaluator(
            make_environment or self._make_evaluation_environment,
            self._check_environment,
            self.dataset.normalizer,
            self.dataset.action_scale,
            config.history_horizon,
        )
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "networks"))
        self.model = build_model(config, self.dataset, generator).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self._online_parameters = [parameter.detach() for parameter in self.model.parameters()]
        self._average_parameters: list[Tensor] = list(self.average.parameters())
        self._optimizers = {"model": self._build_optimizer(self._list_policy_parameters(), config.learning_rate)}
        if self.model.critic is not None:
            critic = list(self.model.critic.parameters())
            self._optimizers["critic"] = self._build_optimizer(critic, config.learning_rate)
        self._return_unit = self.dataset.measure_return_size()
        self._sampler = WindowSampler(len(self.dataset), derive_seed(config.seed, "windows"))
        self._generator = torch.Generator().manual_seed(derive_seed(config.seed, "diffusion"))
        self._batch_size = config.batch_size
        self._steps = 0

    def _list_policy_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.model.named_parameters() if not name.startswith("critic.")]

    def _build_optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Adam:
        optimizer = Adam(parameters, learning_rate)
        if self.config.guard == "repair":
            optimizer.gate = GradientGate(self._device)
        return optimizer

    def _make_environment(self) -> Env:
        return make_env(self.config.env_name, self.config.env_kwargs)

    def _make_evaluation_environment(self) -> Env:
        return make_env(self.config.env_name, self.config.evaluation_kwargs)

    def _check_environment(self, env: Env) -> None:
        """Hold the data set against the environment.

        Raises:
            EpisodeError: they don't fit.
        """
        observations, actions = env.observation_space, env.action_space
        assert isinstance(observations, gym.spaces.Box)
        assert isinstance(actions, gym.spaces.Box)
        check_fit(
            self.dataset.episodes,
            env_name=self.config.env_name,
            num_agents=1,
            obs_dim=observations.shape[0],
            action_low=actions.low[None].astype(np.float32),
            action_high=actions.high[None].astype(np.float32),
        )

    def train_step(self) -> StepResult:
        """Take one optimizer step on the losses of `gradient_accumulation` batches."""
        vitals: Vitals = {}
        measured = vitals if is_measured(self._steps) else None
        self._steps += 1
        metrics = self._learn_from_data(measured)
        note_skips(list(self._optimizers.values()), measured)
        return StepResult(metrics, updates=1, vitals=vitals)

    def _learn_from_data(self, vitals: Vitals | None) -> Metrics:
        count = self.config.gradient_accumulation
        sums = {
            name: [torch.zeros_like(p) for p in optimizer.parameters] for name, optimizer in self._optimizers.items()
        }
        metrics: Metrics = {}
        for _ in range(count):
            windows = self._sampler.draw(self._batch_size)
            batch = self.dataset.gather(windows, self._device)
            model_loss, numbers = self.model.loss(batch, self._generator)
            losses = {"model": model_loss}
            if self.model.critic is not None:
                losses["critic"], critic_numbers = self._find_critic_loss(self.model.critic, windows, batch)
                numbers |= critic_numbers
            for name, loss in losses.items():
                self._add_gradients(sums[name], loss / count, self._optimizers[name].parameters)
            for name, value in numbers.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + value / count
        for name, optimizer in self._optimizers.items():
            self._descend(name, optimizer, sums[name], vitals)
        self._move_average()
        return metrics

    def _find_critic_loss(
        self, critic: ChunkCritic, windows: NDArray[np.int64], batch: SequenceBatch
    ) -> tuple[Tensor, Metrics]:
        """Give the loss of the critic that chooses among candidates; its slow copy is the average's."""
        outcome = self.dataset.gather_outcomes(windows, batch, self._return_unit)
        assert self.average.critic is not None
        return critic_loss(critic, self.average.critic, batch.history, outcome, self.config.expectile)

    def _add_gradients(self, sums: list[Tensor], loss: Tensor, parameters: list[Tensor]) -> None:
        # What a weight of 0 cuts off has no gradient at all.
        for total, part in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                total += part

    def _descend(self, name: str, optimizer: Adam, gradients: list[Tensor], vitals: Vitals | None) -> None:
        """Take an optimizer step, and note `weights/<name>` and `gradient/<name>` where vitals are measured."""
        note_weights(name, optimizer, vitals)
        if self.config.max_grad_norm > 0:
            length = clip_gradients(gradients, self.config.max_grad_norm)
        else:
            length = measure_length(gradients)
        optimizer.step(gradients, length)
        if vitals is not None:
            vitals[f"gradient/{name}"] = length

    @torch.no_grad()
    def _move_average(self) -> None:
        torch._foreach_lerp_(self._average_parameters, self._online_parameters, 1 - self.config.ema_decay)

    def evaluate(self, seeds: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Run one episode per seed with the averaged networks.

        Raises:
            EvaluationStopped: `should_stop` said so.
        """
        return self.evaluator.evaluate(self.average, seeds, should_stop)

    def begin_acting(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Give the averaged policy for one episode that begins now; see `training.protocol.ActsInEnvironment`."""
        dataset = self.dataset
        return ChunkPolicy(self.average, dataset.normalizer, dataset.action_scale, self.config.history_horizon)

    def components(self) -> dict[str, nn.Module]:
        """Give the learnable networks by name, the slow copy left out."""
        return self.model.components()

    def take_weights(self, state: dict[str, Any]) -> None:
        """Take the networks alone out of another run's state; see `training.protocol.TakesWeights`."""
        copy_weights({"model": self.model, "average": self.average}, state)

    def treat(self, treatment: Treatment) -> None:
        """Go on with other learning rates and batches than the config's."""
        for optimizer in self._optimizers.values():
            optimizer.scale_learning_rate(treatment.learning_rate_factor)
        self._batch_size = max(1, self.config.batch_size >> treatment.batch_halvings)

    def redraw(self, number: int) -> None:
        """Draw batches from a stream of their own from here on, another one for each number."""
        self._sampler.reseed(derive_seed(self.config.seed, f"windows/{number}"))

    def state_dict(self) -> dict[str, Any]:
        """Give networks, optimizer, generators, and where in the data set it is."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "sampler": self._sampler.state_dict(),
            "generator": self._generator.get_state(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._sampler.load_state_dict(state["sampler"])
        self._generator.set_state(state["generator"].cpu())
        self._steps = state["steps"]

    def close(self) -> None:
        """Let go of environments; there are none between evaluations."""


def open_dataset(config: DiffusionRLConfig) -> VAESequenceDataset:
    """Open the data set that a config names, as windows.

    Raises:
        SettingsError: it isn't there, is broken, or can't be learnt from with these settings.
    """
    try:
        episodes = load_dataset(config.dataset, say)
        if episodes.num_agents != 1:
            raise EpisodeError(f"{config.dataset}: {episodes.num_agents} agents; this trainer takes one")
        recorded = episodes.header.env_name
        if recorded and recorded != config.env_name:
            raise EpisodeError(
                f"{config.dataset}: recorded in {recorded}, and env_name is {config.env_name}; choose a data set of "
                f"this environment, or set env_name: {recorded}"
            )
        return VAESequenceDataset(
            episodes,
            horizon=config.horizon,
            history_horizon=config.history_horizon,
            discount=config.discount,
            obs_normalizer=config.obs_normalizer,
        )
    except EpisodeError as error:
        raise SettingsError([Fault(("dataset",), f"dataset: {error}")]) from error


def describe_sizes(config: DiffusionRLConfig, obs_dim: int, action_dim: int) -> ModelSizes:
    """Give what decides the shapes of the networks."""
    return ModelSizes(
        obs_dim=obs_dim,
        action_dim=action_dim,
        num_agents=1,
        horizon=config.horizon,
        history_horizon=config.history_horizon,
        vae_latent_dim=config.vae_latent_dim,
        trajectory_latent_dim=config.trajectory_latent_dim,
        denoiser=config.denoiser,
        hidden_dims=config.hidden_dims,
        denoiser_hidden_dims=config.denoiser_hidden_dims,
        unet_channels=config.unet_channels,
        use_value_function=config.online_training and config.use_value_function,
        use_critic=config.uses_critic,
    )


def build_model(config: DiffusionRLConfig, dataset: VAESequenceDataset, generator: torch.Generator) -> DiffusionRL:
    """Give the networks with their first weights, on the CPU, so that a seed gives the same ones on every device."""
    sizes = describe_sizes(config, dataset.episodes.obs_dim, dataset.episodes.action_dim)
    return DiffusionRL(
        sizes,
        config.schedule,
        vae_weight=config.vae_weight,
        kl_weight=config.vae_kl_weight,
        generator=generator,
        q_weight=config.q_weight,
        num_candidates=config.num_candidates,
        temperature=config.sampling_temperature,
    )
