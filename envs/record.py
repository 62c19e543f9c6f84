"""Recording episodes: a policy acts in an environment, with or without noise, and each frame is kept once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.actions import ActionScale
from envs.controllers import CONTROLLERS
from envs.episodes import EpisodeError, Episodes, Header, RecordedEpisode, gather_episodes
from envs.make import Env, find_environment_faults, make_env
from envs.pilots import PILOTS, BeginSteering
from envs.recipes import Amount
from experiment.assignments import parse_assignments
from experiment.plan import nest_settings
from experiment.problems import Fault, Problem, SettingsError, SpecError, suggest

Act: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""From an observation, as the environment gave it, to an action in the environment's units."""

TOLD_PARTS = 10
"""Recording tells so often how far it is."""


@dataclass(frozen=True)
class Policy:
    """Who acts, and where.

    Attributes:
        env_name: where it acts.
        env_kwargs: arguments of the environment.
        facts: what a file of episodes says of it, as plain JSON.
        begin: gives what acts in one episode, for its environment, which was just reset, and a generator to draw from.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    facts: Mapping[str, Any]
    begin: Callable[[Env, np.random.Generator], Act]


def build_random_policy(env_name: str, env_kwargs: Mapping[str, Any]) -> Policy:
    """Give the policy that draws uniformly from the bounds of the actions."""

    def begin(env: Env, generator: np.random.Generator) -> Act:
        assert isinstance(env.action_space, gym.spaces.Box)
        shape, scale = env.action_space.shape, ActionScale(env.action_space)
        return lambda obs: scale.to_env(generator.uniform(-1, 1, shape))

    return Policy(env_name, env_kwargs, {"kind": "random"}, begin)


def build_scripted_policy(name: str, env_name: str | None, env_kwargs: Mapping[str, Any]) -> Policy:
    """Give the policy of a controller or a pilot.

    Args:
        name: of `envs.controllers.CONTROLLERS` or `envs.pilots.PILOTS`.
        env_name: None stands for the environment that it controls, if that is one.
        env_kwargs: arguments of the environment.

    Raises:
        SettingsError: there is none of that name, or it doesn't say in which environment, or it controls others.
    """
    controlled, begin_steering = _find_scripted(name)
    if env_name is None and len(controlled) > 1:
        message = f"{name} controls {', '.join(controlled)}; say which with --env"
        raise SettingsError([Fault(("env",), message)])
    if env_name not in (None, *controlled):
        message = f"{name} controls {', '.join(controlled)}, and the environment is {env_name}"
        raise SettingsError([Fault(("env",), message)])

    def begin(env: Env, generator: np.random.Generator) -> Act:
        assert isinstance(env.action_space, gym.spaces.Box)
        scale, steer = ActionScale(env.action_space), begin_steering(env, generator)
        return lambda obs: scale.to_env(steer(obs))

    return Policy(env_name or controlled[0], env_kwargs, {"kind": "scripted", "name": name}, begin)


def _find_scripted(name: str) -> tuple[tuple[str, ...], BeginSteering]:
    """Give the environments that a controller or a pilot is for, and what begins an episode of it."""
    if name in PILOTS:
        return PILOTS[name]
    if name in CONTROLLERS:
        controlled, controller = CONTROLLERS[name]
        return controlled, lambda env, generator: controller
    known = sorted(CONTROLLERS | PILOTS)
    message = f"no controller or pilot is called {name!r}{suggest(name, known)}; there are: {', '.join(known)}"
    raise SettingsError([Fault(("policy",), message)])


def build_untrained_policy(text: str, env_name: str | None, env_kwargs: Mapping[str, Any]) -> Policy | None:
    """Give the policy `random` or `scripted:<name>`; None where the text names neither.

    Raises:
        SettingsError: no environment is named, or the controller isn't there or is another one's.
    """
    kind, colon, name = text.partition(":")
    if text == "random":
        if env_name is None:
            raise SettingsError([Fault(("env",), "--policy random: say where, with --env Pendulum-v1 or the like")])
        return build_random_policy(env_name, env_kwargs)
    if kind == "scripted" and colon:
        return build_scripted_policy(name, env_name, env_kwargs)
    return None


def read_env_kwargs(texts: Sequence[str]) -> dict[str, Any]:
    """Give the arguments of an environment that `key=value` texts make.

    Raises:
        SpecError: one of them isn't such a text.
    """
    problems: list[Problem] = []
    given = parse_assignments("--env-kwargs", texts, problems)
    if problems:
        raise SpecError(problems)
    return nest_settings({key: setting.value for key, setting in given.items()})


def record_policy(policy: Policy, amount: Amount, noise: float, seed: int, say: Callable[[str], None]) -> Episodes:
    """Record one policy and give its episodes, with it in their header.

    Raises:
        SettingsError: the environment isn't there, or isn't one for flat observations and bounded actions.
        EpisodeError: the environment gave a number that isn't finite.
    """
    recorded = list(record_episodes(policy, amount, noise, seed, say))
    return gather_episodes(make_header(policy, describe_acting(policy, noise, seed)), recorded)


def describe_acting(policy: Policy, noise: float, seed: int) -> dict[str, Any]:
    """Say who acted, with how much noise and from which seed, as plain JSON."""
    return dict(policy.facts) | {"noise": noise, "seed": seed}


def make_header(policy: Policy, facts: Mapping[str, Any]) -> Header:
    """Give the header of episodes in a policy's environment, bounds from its action space.

    Raises:
        SettingsError: as `record_policy`.
    """
    space = read_action_space(policy)
    low, high = (bound.astype(np.float32)[None] for bound in (space.low, space.high))
    return Header(policy.env_name, dict(policy.env_kwargs), low, high, facts)


def read_action_space(policy: Policy) -> gym.spaces.Box:
    """Give the actions of a policy's environment.

    Raises:
        SettingsError: as `record_policy`.
    """
    env = _make_checked_env(policy)
    space = env.action_space
    env.close()
    assert isinstance(space, gym.spaces.Box)
    return space


def record_episodes(
    policy: Policy, amount: Amount, noise: float, seed: int, say: Callable[[str], None]
) -> Iterator[RecordedEpisode]:
    """Let a policy act, and give its episodes one by one.

    Starts, what the policy draws, and noise come from three streams of one seed, so that policies meet equal starts.

    Args:
        policy: acts in an environment made for this.
        amount: at least one of its limits is set.
        noise: deviation of normal noise on each action, in normalised units; what leaves [-1, 1] is clipped.
        seed: of all that is drawn.
        say: told how far it is, in a few lines.

    Raises:
        SettingsError: as `record_policy`.
    """
    assert amount.episodes is not None or amount.steps is not None
    env = _make_checked_env(policy)
    starts, draws, noises = (np.random.default_rng([seed, stream]) for stream in range(3))
    reset_seed: int | None = int(starts.integers(2**31))
    progress = _Progress(amount, say)
    try:
        while not progress.is_over():
            obs, _ = env.reset(seed=reset_seed)
            act = _add_noise(policy.begin(env, draws), env, noise, noises)
            episode = _record_one(env, act, obs, progress.steps_left())
            reset_seed = None  # one seed for an environment's life, as in training
            progress.count(episode)
            yield episode
    finally:
        env.close()


def _make_checked_env(policy: Policy) -> Env:
    if faults := find_environment_faults(policy.env_name, policy.env_kwargs, continuous_actions=True):
        raise SettingsError(faults)
    return make_env(policy.env_name, policy.env_kwargs)


def _add_noise(act: Act, env: Env, noise: float, generator: np.random.Generator) -> Act:
    if noise == 0:
        return act
    assert isinstance(env.action_space, gym.spaces.Box)
    shape, scale = env.action_space.shape, ActionScale(env.action_space)

    def act_noisily(obs: NDArray[Any]) -> NDArray[Any]:
        action = scale.to_normal(act(obs)) + noise * generator.standard_normal(shape)
        return scale.to_env(np.clip(action, -1, 1))

    return act_noisily


def _record_one(env: Env, act: Act, obs: NDArray[Any], most: float) -> RecordedEpisode:
    """Record one episode, of at most so many steps, from its first observation on."""
    frames = [np.array(obs, dtype=np.float32)]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    over = terminated = False
    while not over and len(actions) < most:
        action = act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        frames.append(np.array(obs, dtype=np.float32))
        actions.append(np.array(action, dtype=np.float32))
        rewards.append(float(reward))
        over = terminated or truncated
    return RecordedEpisode(
        np.stack(frames)[:, None], np.stack(actions)[:, None], np.array(rewards, dtype=np.float32)[:, None], terminated
    )


class _Progress:
    """Counts what was recorded, and tells it at every tenth."""

    def __init__(self, amount: Amount, say: Callable[[str], None]) -> None:
        self._amount, self._say = amount, say
        self._episodes, self._steps, self._told, self._returns = 0, 0, 0, 0.0

    def is_over(self) -> bool:
        return self._amount.part_done(self._episodes, self._steps) >= 1

    def steps_left(self) -> float:
        return math.inf if self._amount.steps is None else self._amount.steps - self._steps

    def count(self, episode: RecordedEpisode) -> None:
        episode_return = float(episode.rewards.sum(dtype=np.float64))
        if not math.isfinite(episode_return) or not np.isfinite(episode.observations).all():
            raise EpisodeError(f"episode {self._episodes}: the environment gave a number that isn't finite")
        self._episodes += 1
        self._steps += len(episode.actions)
        self._returns += episode_return
        part = int(TOLD_PARTS * self._amount.part_done(self._episodes, self._steps))
        if part > self._told:
            self._told = part
            self._say(
                f"{self._episodes:,} episodes, {self._steps:,} steps, mean return {self._returns / self._episodes:.1f}"
            )
