"""How fast the diffusion agent acts: one chunk of actions for one history, ten denoising steps, one CPU thread; what
evaluating ten environments side by side saves; and what layers of our own save in learning.

Three ways, in turn and in one process, from the same model and with the same schedule: a plain loop over HuggingFace's
`scheduler.step`, the tables through torch, and the tables through NumPy. Numbers are medians of CPU time.

    OMP_NUM_THREADS=1 python -m benchmarks.diffusion
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.tables import print_row
from diffuser.datasets.batch import History, SequenceBatch
from diffuser.datasets.normalization import ActionScale, ObsNormalizer
from diffuser.models import layers
from diffuser.models.diffusion_rl import DiffusionRL, ModelSizes
from diffuser.models.fast_policy import FastPolicy
from diffuser.models.schedule_rules import Sampler, ScheduleSettings
from diffuser.models.scheduling import build_scheduler
from diffuser.utils.evaluator import MADEvaluator
from envs.make import describe_spaces, make_env
from experiment.provenance import describe_machine
from training.products import Linear

LEAST_HZ = 500.0
LEAST_RATIO = 2.0
SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm", "dpm_solver")
EPISODES = 10
EVALUATED: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("Pendulum-v1", {}, 4.0),
    ("Hopper-v5", {"terminate_when_unhealthy": False, "max_episode_steps": 500}, 2.0),
)
"""Environments, their arguments, and how many times as fast ten together have to be."""
SIZES = ModelSizes(
    obs_dim=17,
    action_dim=6,
    num_agents=1,
    horizon=4,
    history_horizon=2,
    vae_latent_dim=64,
    trajectory_latent_dim=128,
    denoiser="mlp",
    hidden_dims=(256, 256),
    denoiser_hidden_dims=(256, 256, 256),
    unet_channels=64,
    use_value_function=False,
    use_critic=False,
)


def build_model(sampler: Sampler) -> DiffusionRL:
    """Give a model of HalfCheetah's dimensions with weights as they are drawn: they don't change what it costs."""
    schedule = ScheduleSettings(100, 10, sampler, "squaredcos_cap_v2", "sample", 1.0, None)
    generator = torch.Generator().manual_seed(0)
    return DiffusionRL(SIZES, schedule, vae_weight=1.0, kl_weight=1e-3, generator=generator).eval()


def build_ways(model: DiffusionRL, history: History) -> dict[str, Callable[[], object]]:
    """Give what acts once, by name."""
    scheduler = build_scheduler(model.schedule.settings)
    generator = torch.Generator().manual_seed(1)
    numbers = np.random.default_rng(1)
    policy = FastPolicy(model)
    obs, action, mask = (array[0].numpy() for array in (history.obs, history.action, history.mask))
    sampler = model.schedule.settings.sampler
    choices: dict[str, dict[str, object]] = {
        "ddim": {"eta": 1.0, "generator": generator},
        "ddpm": {"generator": generator},
    }
    options = choices.get(sampler, {})

    @torch.no_grad()
    def act_by_scheduler() -> Tensor:
        if sampler == "dpm_solver":
            scheduler.set_timesteps(model.num_steps)  # it counts its steps and must be rewound
        c = model.encode_history(history.obs, history.action, history.mask)
        latent = torch.randn((1, *model.latent_shape), generator=generator)
        for level in scheduler.timesteps:
            output = model.denoiser(latent, level[None], c)
            latent = scheduler.step(output, level, latent, **options).prev_sample
        return model.decode(latent)

    def act_by_numpy() -> object:
        return policy.act(obs, action, mask, numbers.standard_normal(policy.noise_shape, dtype=np.float32))

    return {
        "scheduler.step": act_by_scheduler,
        "torch": lambda: model.act(history, generator=generator),
        "NumPy": act_by_numpy,
    }


def measure_rates(ways: Mapping[str, Callable[[], object]], repetitions: int, times: int) -> dict[str, float]:
    """Give chunks per CPU second: the median over repetitions in turn, after one that isn't counted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for repetition in range(repetitions + 1):
        for name, act in ways.items():
            started = time.process_time()
            for _ in range(times):
                act()
            if repetition:
                seconds[name].append((time.process_time() - started) / times)
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def build_evaluation(env_name: str, env_kwargs: dict[str, Any]) -> tuple[DiffusionRL, dict[str, MADEvaluator]]:
    """Give a model of an environment's sizes, and who evaluates it one by one and ten together."""
    spaces = describe_spaces(env_name, env_kwargs)
    schedule = ScheduleSettings(100, 10, "ddim", "squaredcos_cap_v2", "sample", 1.0, None)
    sizes = replace(SIZES, obs_dim=spaces.obs_dim, action_dim=spaces.action_dim)
    generator = torch.Generator().manual_seed(0)
    model = DiffusionRL(sizes, schedule, vae_weight=1.0, kl_weight=1e-3, generator=generator).eval()
    normalizer = ObsNormalizer(np.zeros((1, spaces.obs_dim)), np.ones((1, spaces.obs_dim)))
    bound = np.ones((1, spaces.action_dim), dtype=np.float32)
    widths = {"one by one": 1, "together": EPISODES}
    return model, {
        name: MADEvaluator(
            lambda: make_env(env_name, env_kwargs),
            lambda env: None,
            normalizer,
            ActionScale(-bound, bound),
            SIZES.history_horizon,
            width=width,
        )
        for name, width in widths.items()
    }


def measure_evaluations(repetitions: int) -> bool:
    """Measure evaluations of ten episodes, print, and tell whether both goals are reached."""
    print(f"\n{EPISODES} episodes (200 steps of Pendulum-v1, 500 of Hopper-v5), environments made anew: CPU seconds\n")
    print_row("environment", "one by one", "together", "one by one / together")
    print_row(*["---"] * 4)
    met = True
    for env_name, env_kwargs, goal in EVALUATED:
        model, evaluators = build_evaluation(env_name, env_kwargs)
        ways = {
            name: partial(evaluator.evaluate, model, range(EPISODES), lambda: False)
            for name, evaluator in evaluators.items()
        }
        rates = measure_rates(ways, repetitions, 1)
        ratio = rates["together"] / rates["one by one"]
        met &= ratio >= goal
        shown = f"{ratio:.2f} (goal {goal:.1f}: {'met' if ratio >= goal else 'MISSED'})"
        print_row(env_name, *(f"{1 / rates[name]:.2f}" for name in ("one by one", "together")), shown)
    return met


def measure_learning(repetitions: int) -> None:
    """Measure loss and gradients of a batch of 256, with torch's linear layers and Mish and with ours, and print."""
    model = build_model("ddim").train()
    numbers = torch.Generator().manual_seed(3)
    obs, action = (torch.randn((256, 2, 1, dim), generator=numbers) for dim in (SIZES.obs_dim, SIZES.action_dim))
    history = History(obs, action.tanh(), torch.ones(256, 2, dtype=torch.bool))
    chunk = torch.randn((256, SIZES.horizon, 1, SIZES.action_dim), generator=numbers).tanh()
    batch = SequenceBatch(history, chunk, torch.ones(256, SIZES.horizon, dtype=torch.bool), torch.zeros(256, 1))
    parameters = list(model.parameters())

    def learn() -> None:
        loss, _ = model.loss(batch, numbers)
        torch.autograd.grad(loss, parameters, allow_unused=True)

    def learn_by_torch() -> None:
        plain = mock.patch.object(Linear, "forward", nn.Linear.forward)
        with plain, mock.patch.object(layers, "mish", functional.mish):
            learn()

    rates = measure_rates({"plain": learn_by_torch, "ours": learn}, repetitions, 10)
    print("\nLoss and gradients of a batch of 256, HalfCheetah's sizes: CPU milliseconds\n")
    print_row("torch's layers", "ours", "torch's / ours")
    print_row(*["---"] * 3)
    print_row(*(f"{1e3 / rate:.2f}" for rate in rates.values()), f"{rates['ours'] / rates['plain']:.2f}")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and give 0 if DDIM, the default, and evaluations reach their goals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diffusion", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repetitions", type=int, default=15, help="of each measurement (default: 15)")
    parser.add_argument("--times", type=int, default=50, help="chunks in a repetition (default: 50)")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "diffusers"))
    cpu = describe_machine([])["cpu"]
    print(f"{cpu}, {versions}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("\nOne chunk for one history, 10 steps, 64-d latent, 3x256 MLP: chunks per CPU second\n")
    print_row("sampler", "scheduler.step", "torch", "NumPy", "NumPy / scheduler.step")
    print_row(*["---"] * 5)
    met = True
    generator = torch.Generator().manual_seed(2)
    obs, action = (torch.randn((1, 2, 1, dim), generator=generator) for dim in (SIZES.obs_dim, SIZES.action_dim))
    history = History(obs, action.tanh(), torch.ones(1, 2, dtype=torch.bool))
    for sampler in SAMPLERS:
        rates = measure_rates(build_ways(build_model(sampler), history), args.repetitions, args.times)
        ratio = rates["NumPy"] / rates["scheduler.step"]
        reached = rates["NumPy"] >= LEAST_HZ and ratio >= LEAST_RATIO
        met &= reached or sampler != "ddim"
        goal = f"{ratio:.2f} (goal {LEAST_RATIO:.1f} and {LEAST_HZ:.0f} Hz: {'met' if reached else 'MISSED'})"
        print_row(sampler, *(f"{rates[name]:.0f}" for name in ("scheduler.step", "torch", "NumPy")), goal)
    met &= measure_evaluations(3)
    measure_learning(args.repetitions)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
