"""Environments by name: made without noise, measured, and checked before a run starts."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from envs.registration import register_environments
from experiment.problems import Fault, SettingsError, suggest

Env: TypeAlias = gym.Env[Any, Any]
JudgeObservations: TypeAlias = Callable[[gym.Space[Any]], str | None]
"""Says what is wrong with an environment's observations, for a trainer; None where nothing is."""

_VERSION = re.compile(r"(?P<name>.+)-v(?P<version>\d+)")
_MAKE_KEYS = {"max_episode_steps", "render_mode"}
"""What `gymnasium.make` itself takes beside the arguments of the environment."""
_LARGEST_SEED = 2**31 - 1
"""The largest seed that an environment is ever reset with: generators of the old kind and C simulators take no more."""


@runtime_checkable
class HoldsEnvironments(Protocol):
    """An environment each of whose episodes is one of another, which it holds, and ends by that one's clock."""

    @property
    def held_envs(self) -> Mapping[str, Env]:
        """Those that it may act in, with their wrappers, by names that users know."""
        ...


@dataclass(frozen=True)
class SpaceSizes:
    """The lengths of an environment's observation and action vectors."""

    obs_dim: int
    action_dim: int


def make_env(env_name: str, env_kwargs: Mapping[str, Any]) -> Env:
    """Make a fresh environment with its registered time limit, and without warnings about its age.

    Args:
        env_name: an id of gymnasium's registry, version included.
        env_kwargs: arguments of the environment; `max_episode_steps` replaces the registered limit.

    Raises:
        Exception: whatever gymnasium or the environment raises; `find_environment_faults` says it in words.
    """
    register_environments()
    with _quiet_making(env_name):
        return gym.make(env_name, disable_env_checker=True, **copy.deepcopy(dict(env_kwargs)))


def describe_spaces(env_name: str, env_kwargs: Mapping[str, Any]) -> SpaceSizes:
    """Give the sizes of flat observations and continuous actions, from an environment made for this and closed.

    Raises:
        SettingsError: the environment can't be made, or has other spaces.
    """
    env = make_env_or_fail(env_name, env_kwargs)
    try:
        if faults := list(_find_space_faults(env_name, env, True, need_vector)):
            raise SettingsError(faults)
        observations, actions = env.observation_space, env.action_space
        assert isinstance(observations, gym.spaces.Box)
        assert isinstance(actions, gym.spaces.Box)
        return SpaceSizes(observations.shape[0], actions.shape[0])
    finally:
        env.close()


def make_env_or_fail(env_name: str, env_kwargs: Mapping[str, Any]) -> Env:
    """Make an environment, or say what to change in the settings.

    Raises:
        SettingsError: the name is unknown, a package is missing, or the environment refuses its arguments.
    """
    if fault := _find_name_fault(env_name):
        raise SettingsError([fault])
    try:
        return make_env(env_name, env_kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise SettingsError(
            [Fault(("env_name",), f"env_name: {env_name} needs a package that is not installed: {error}")]
        ) from None
    except Exception as error:  # the environment is anybody's code, and its arguments are the user's
        raise SettingsError(_explain_refusal(env_name, env_kwargs, error)) from error


def need_vector(space: gym.Space[Any]) -> str | None:
    """Say what is wrong with observations where a flat vector is needed."""
    flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    return None if flat else "this trainer needs a flat vector (a 1-D Box)"


def take_anything(space: gym.Space[Any]) -> str | None:
    """Find nothing wrong with any observations."""
    return None


def find_environment_faults(
    env_name: str, env_kwargs: Mapping[str, Any], continuous_actions: bool, judge: JudgeObservations = need_vector
) -> list[Fault]:
    """Name what keeps a run from working in this environment; it is made, reset and stepped once to find out.

    Args:
        env_name: as for `make_env`; a module prefix (`module:Env-v0`) or a missing version is a fault.
        env_kwargs: as for `make_env`.
        continuous_actions: whether the trainer needs a bounded box of actions.
        judge: says what is wrong with the observations.
    """
    try:
        env = make_env_or_fail(env_name, env_kwargs)
    except SettingsError as error:
        return list(error.faults)
    try:
        faults = list(_find_space_faults(env_name, env, continuous_actions, judge))
        faults += _find_limit_faults(env_name, env_kwargs, env)
        return faults or _find_step_faults(env_name, env_kwargs, env)
    finally:
        env.close()


def find_evaluation_faults(
    env_name: str,
    env_kwargs: Mapping[str, Any],
    changes: Mapping[str, Any],
    key: str = "eval_env_kwargs",
    judge: JudgeObservations = need_vector,
    continuous_actions: bool = True,
) -> list[Fault]:
    """Name what keeps a policy from being evaluated with other arguments of the environment that it acts in.

    Args:
        env_name: as for `make_env`.
        env_kwargs: with which nothing is at fault.
        changes: what evaluations put in their place. The spaces must stay as they are.
        key: what the changes are called in messages.
        judge: as for `find_environment_faults`, and so is `continuous_actions`.
    """
    if not changes:
        return []
    changed = dict(env_kwargs) | dict(changes)
    if faults := find_environment_faults(env_name, changed, continuous_actions, judge):
        return [_blame_changes(fault, key) for fault in faults]
    spaces = []
    for kwargs in (env_kwargs, changed):
        env = make_env(env_name, kwargs)
        env.close()
        spaces.append((env.observation_space, env.action_space))
    for what, before, after in zip(("observes", "takes actions in"), *spaces, strict=True):
        if before != after:
            message = (
                f"{key}: with {dict(changes)} {env_name} {what} {after}, and {before} without; both must be the same"
            )
            return [Fault((key,), message)]
    return []


def _blame_changes(fault: Fault, key: str) -> Fault:
    """Point at the changed arguments where a fault is said of all of them."""
    own = "env_kwargs"
    keys = tuple(key + name.removeprefix(own) for name in fault.keys if name.startswith(own)) or (key,)
    said = fault.message
    return Fault(keys, key + said.removeprefix(own) if said.startswith(own) else f"{key}: {said}")


def find_time_limit(env: Env) -> int | None:
    """Give the most steps that clocks allow an episode, the longest where an environment holds several.

    They are steps of what is inside the time limit's wrapper. None where an episode might never end.
    """
    limits = []
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            limits.append(int(layer.get_wrapper_attr("_max_episode_steps")))
        layer = layer.env
    if isinstance(layer, HoldsEnvironments):
        inner = [limit for part in layer.held_envs.values() if (limit := find_time_limit(part)) is not None]
        limits += [max(inner)] if len(inner) == len(layer.held_envs) else []
    return min(limits, default=None)


@contextmanager
def mute_mujoco() -> Iterator[None]:
    """Keep what MuJoCo says about a model that is being loaded to itself; warnings of later steps are kept."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


@contextmanager
def _quiet_making(env_name: str) -> Iterator[None]:
    """Keep gymnasium's hints about versions, and MuJoCo's about the model files shipped with it, to themselves.

    MuJoCo would also append them to a MUJOCO_LOG.TXT in the working directory. Warnings of later steps are kept.
    """
    spec = gym.registry.get(env_name)
    entry = spec.entry_point if spec is not None else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"gymnasium\.")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"gymnasium\.")
        if not (isinstance(entry, str) and entry.startswith("gymnasium.envs.mujoco")):
            yield
            return
        with mute_mujoco():
            yield


def _find_name_fault(env_name: str) -> Fault | None:
    register_environments()
    if ":" in env_name:
        module, _, name = env_name.partition(":")
        return Fault(
            ("env_name",), f"env_name: {env_name!r} names a module; write `imports: [{module}]` and `env_name: {name}`"
        )
    if env_name in gym.registry:
        return None
    return Fault(("env_name",), f"env_name: no environment is called {env_name!r}{_suggest_env(env_name)}")


def _suggest_env(env_name: str) -> str:
    """Give the newest version of the environment that was meant, or the id that reads most like it."""
    match = _VERSION.fullmatch(env_name)
    stem = match["name"] if match else env_name
    versions = [
        (int(known["version"]), name)
        for name in gym.registry
        if (known := _VERSION.fullmatch(name)) and known["name"].lower() == stem.lower()
    ]
    return f"; did you mean {max(versions)[1]!r}?" if versions else suggest(env_name, gym.registry)


def _explain_refusal(env_name: str, env_kwargs: Mapping[str, Any], error: Exception) -> list[Fault]:
    """Point at the arguments that the environment doesn't have; else repeat what it said."""
    known = _list_arguments(env_name)
    unknown = [key for key in env_kwargs if known is not None and key not in known | _MAKE_KEYS]
    if unknown and known is not None:
        return [
            Fault(
                (f"env_kwargs.{key}", "env_kwargs"),
                f"env_kwargs.{key}: {env_name} has no argument {key!r}{suggest(key, known)}",
            )
            for key in unknown
        ]
    key = "env_kwargs" if env_kwargs else "env_name"
    return [Fault((key,), f"{key}: {env_name} can't be made with {dict(env_kwargs)}: {_describe_error(error)}")]


def _list_arguments(env_name: str) -> set[str] | None:
    """Give the names that an environment's constructor and its base classes' know; None where it doesn't tell."""
    entry = gym.registry[env_name].entry_point
    creator: Callable[..., Any] | None = load_env_creator(entry) if isinstance(entry, str) else entry
    if not inspect.isclass(creator):
        return None
    # What `**kwargs` passes on reaches the base classes.
    constructors = [vars(base)["__init__"] for base in creator.__mro__[:-1] if "__init__" in vars(base)]
    parameters = [each for one in constructors for each in inspect.signature(one).parameters.values()]
    names = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)} - {"self"}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return None if takes_any and not names else names


def _find_space_faults(env_name: str, env: Env, continuous_actions: bool, judge: JudgeObservations) -> Iterator[Fault]:
    observations, actions = env.observation_space, env.action_space
    if complaint := judge(observations):
        yield Fault(("env_name",), f"env_name: {env_name} observes {observations}; {complaint}")
    if not continuous_actions:
        return
    if isinstance(actions, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        yield Fault(
            ("env_name",),
            f"env_name: {env_name} has discrete actions, {actions}; this trainer needs continuous ones, "
            "as 'Pendulum-v1' has",
        )
    elif not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        yield Fault(
            ("env_name",), f"env_name: {env_name} takes actions in {actions}; this trainer needs a 1-D Box of them"
        )
    elif not actions.is_bounded("both"):
        yield Fault(
            ("env_name",),
            f"env_name: {env_name} has actions without bounds, {actions}; wrap it with "
            "gymnasium.wrappers.RescaleAction or register it with finite ones",
        )


def _find_limit_faults(env_name: str, env_kwargs: Mapping[str, Any], env: Env) -> Iterator[Fault]:
    """Refuse an environment without a time limit: an episode of an untrained policy might never end."""
    if find_time_limit(env) is not None:
        return
    key = "env_kwargs.max_episode_steps"
    repair = f"episodes might never end, and an evaluation with them; set one, as in `{key}: 1000`"
    if "max_episode_steps" in env_kwargs:
        value = env_kwargs["max_episode_steps"]
        yield Fault((key, "env_kwargs"), f"{key}: {value} leaves {env_name} without a time limit: {repair}")
    else:
        yield Fault(("env_name",), f"env_name: {env_name} is registered without a time limit: {repair}")


def _find_step_faults(env_name: str, env_kwargs: Mapping[str, Any], env: Env) -> list[Fault]:
    """Try the largest seed and one step: some seeds and arguments are refused only there.

    Of an environment that holds others each of these is tried, since its own episode would be in one of them.
    """
    key = "env_kwargs" if env_kwargs else "env_name"
    core = env.unwrapped
    if isinstance(core, HoldsEnvironments):
        tried = {f"{name} in {env_name}": part for name, part in core.held_envs.items()}
    else:
        tried = {f"{env_name} made with {dict(env_kwargs)}" if env_kwargs else env_name: env}
    failures = {name: failure for name, each in tried.items() if (failure := _try_step(each))}
    return [Fault((key,), f"{key}: {name} fails on {failure}") for name, failure in failures.items()]


def _try_step(env: Env) -> str | None:
    """Begin an episode with the largest seed and act once; say when that fails, and how."""
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    moment = f"reset(seed={_LARGEST_SEED})"
    try:
        env.reset(seed=_LARGEST_SEED)
        moment = "its first step"
        env.step(space.sample())
    except Exception as error:  # anybody's code, as above
        return f"{moment}: {_describe_error(error)}"
    return None


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
