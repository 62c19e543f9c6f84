"""Exact snapshots of environments: take one at any moment, put it into a fresh environment, go on to the same bits.

An environment is a chain of layers: wrappers around a core. Each layer's attributes are read as they stand. What only
says how a layer was made, or is of a type that only draws pictures, is named below; whatever else isn't plain data
makes the snapshot fail rather than be almost right. An environment that knows its own state better (`KeepsState`) is
asked for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from envs.make import Env, HoldsEnvironments, make_env
from envs.mujoco_state import is_mujoco_data, read_mujoco, write_mujoco
from envs.plain_values import Decoder, Encoder, SnapshotError, describe_type
from envs.shared_state import find_changes, read_shared_state

CONSTRUCTION = frozenset({"fullpath", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"})
"""Attributes in which gymnasium notes how an environment was made: the fresh one was made in the same way."""
DRAWING_TYPES = frozenset(
    {
        "gymnasium.envs.mujoco.mujoco_rendering.MujocoRenderer",
        "gymnasium.envs.mujoco.mujoco_rendering.OffScreenViewer",
        "gymnasium.envs.mujoco.mujoco_rendering.WindowViewer",
        "pygame.Surface",
        "pygame.surface.Surface",
        "pygame.font.Font",
        "pygame.time.Clock",
    }
)
"""Types of attributes that only draw pictures. pygame's vectors and rectangles are none: positions are kept in them."""

GYMNASIUM_OWN = frozenset({"_np_random", "_np_random_seed", "action_space", "observation_space"})
"""Attributes of every environment that change; of one that says its own state only these are read here."""

PROBE_STEPS = 25
_PROBE_SEED = 20

Snapshot = dict[str, Any]


@runtime_checkable
class KeepsState(Protocol):
    """An environment that says itself what its state is, beside `GYMNASIUM_OWN`.

    For one that holds a simulation which isn't plain data, or whose state is small beside what it holds.
    """

    def snapshot_state(self) -> dict[str, Any]:
        """Give all that its next steps and resets depend on, as arrays and plain values."""
        ...

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over what `snapshot_state` gave, in an environment made with the same arguments, reset or not.

        Raises:
            ValueError: the state doesn't fit this environment; the message says why.
        """
        ...


@dataclass(frozen=True)
class ResumeProbe:
    """Whether an environment resumes to the bit (`exact`), or a resumed run begins a new episode, and why."""

    mode: Literal["exact", "episode"]
    reason: str | None = None


def take_snapshot(env: Env) -> Snapshot:
    """Give the state of an environment and of all its wrappers as arrays and plain values; shares no memory with it.

    Raises:
        SnapshotError: something in a layer isn't understood; layer and attribute are named.
    """
    layers = list(_walk_layers(env))
    encoder = Encoder()
    states = [_read_layer(index, layers, encoder) for index in range(len(layers))]
    _refuse_shared_memory(encoder.arrays)
    return {"layers": states}


def restore_snapshot(env: Env, snapshot: Snapshot) -> None:
    """Put a freshly made environment into the state of a snapshot; it need not have been reset.

    Raises:
        SnapshotError: the environment isn't built from the same layers, or its model differs.
    """
    layers = list(_walk_layers(env))
    found, wanted = [describe_type(layer) for layer in layers], [state["type"] for state in snapshot["layers"]]
    if found != wanted:
        raise SnapshotError(f"the snapshot was taken of {' of '.join(wanted)}, and this is {' of '.join(found)}")
    decoder = Decoder()
    for index, state in enumerate(snapshot["layers"]):
        _write_layer(index, layers, state, decoder)


def probe_resume_mode(env_name: str, env_kwargs: Mapping[str, Any]) -> ResumeProbe:
    """Try whether an environment can be resumed to the bit: two are made, one takes over the other's state midway.

    Both then take the same steps, with a reset among them. What steps change outside the environments, in attributes
    of their classes or modules, no snapshot holds: it is looked for too. Environments that are held by another are
    tried one by one, as its own few steps would be in one or two of them. All are made, stepped and closed here.
    """
    first, second = make_env(env_name, env_kwargs), make_env(env_name, env_kwargs)
    try:
        held, others = first.unwrapped, second.unwrapped
        if isinstance(held, HoldsEnvironments) and isinstance(others, HoldsEnvironments):
            for name, part in held.held_envs.items():
                if reason := _find_difference(part, others.held_envs[name], name):
                    return ResumeProbe("episode", f"in its {name}: {reason}")
        reason = _find_difference(first, second, env_name)
    finally:
        first.close()
        second.close()
    return ResumeProbe("exact") if reason is None else ResumeProbe("episode", reason)


def _find_difference(first: Env, second: Env, env_name: str) -> str | None:
    """Let the second of two like environments take over the first's state; say what keeps it from going on alike."""
    shared = read_shared_state(_walk_layers(first))
    actions = copy.deepcopy(first.action_space)
    actions.seed(_PROBE_SEED)
    first.reset(seed=_PROBE_SEED)
    for _ in range(5):
        *_, terminated, truncated, _ = first.step(actions.sample())
        if terminated or truncated:
            first.reset()
    try:
        restore_snapshot(second, take_snapshot(first))
    except SnapshotError as error:
        return str(error)
    for step in range(PROBE_STEPS):
        if difference := _compare_step(first, second, actions.sample(), reset=step == PROBE_STEPS // 2):
            return f"{difference} differs {step + 1} steps after restoring {env_name}"
    if changes := find_changes(shared, read_shared_state(_walk_layers(first))):
        return f"{' and '.join(changes)} changed in steps of {env_name}, outside what a snapshot can hold"
    return None


def _walk_layers(env: Env) -> Iterator[Env]:
    """Give an environment's wrappers from the outside in, then its core."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _name_attribute(index: int, layer: Env, name: str) -> str:
    """Give the path of an attribute; with the index, as two layers may be of one class."""
    return f"layer {index}: {type(layer).__name__}.{name}"


def _read_layer(index: int, layers: list[Env], encoder: Encoder) -> dict[str, Any]:
    layer = layers[index]
    for kind in type(layer).__mro__:
        if vars(kind).get("__slots__"):
            raise SnapshotError(f"layer {index}: {describe_type(layer)} has attributes in __slots__ of {kind.__name__}")
    attributes: dict[str, Any] = {}
    if isinstance(layer, KeepsState):
        attributes["own"] = {
            "kind": "own",
            "state": encoder.encode(layer.snapshot_state(), _name_attribute(index, layer, "own")),
        }
    for name, value in vars(layer).items():
        path = _name_attribute(index, layer, name)
        if not _is_state(layer, name, value, layers):
            continue
        if isinstance(value, EnvSpec) or describe_type(value) in DRAWING_TYPES:
            attributes[name] = {"kind": "kept"}
        elif isinstance(value, gym.Space):
            generators = [vars(space)["_np_random"] for space in _walk_spaces(value)]
            attributes[name] = {"kind": "space", "generators": encoder.encode(generators, f"{path}.generators")}
        elif is_mujoco_data(value):
            attributes[name] = {"kind": "mujoco", "state": read_mujoco(value)}
        else:
            attributes[name] = encoder.encode(value, path)
    return {"type": describe_type(layer), "attributes": attributes}


def _write_layer(index: int, layers: list[Env], state: dict[str, Any], decoder: Decoder) -> None:
    layer = layers[index]
    present = vars(layer)
    attributes = state["attributes"]
    for name in [name for name, value in present.items() if _is_state(layer, name, value, layers)]:
        if name not in attributes:
            delattr(layer, name)
    if isinstance(layer, KeepsState):
        _restore_own(layer, attributes, decoder, _name_attribute(index, layer, "own"))
    for name, data in attributes.items():  # in the order of reading: a later value may refer to an earlier one
        path = _name_attribute(index, layer, name)
        kind = data["kind"] if isinstance(data, dict) else None
        if kind in ("kept", "own"):
            continue  # whatever the fresh layer has, perhaps nothing yet, serves it as well
        if kind == "space":
            _write_space(present.get(name), decoder.decode(data["generators"], f"{path}.generators"), path)
        elif kind == "mujoco":
            if not is_mujoco_data(present.get(name)):
                raise SnapshotError(f"{path} was a MuJoCo simulation in the snapshot, and is none here")
            write_mujoco(present[name], data["state"], path)
        else:
            setattr(layer, name, decoder.decode(data, path))


def _restore_own(layer: KeepsState, attributes: dict[str, Any], decoder: Decoder, path: str) -> None:
    if "own" not in attributes:
        raise SnapshotError(f"{path}: the snapshot was taken when {describe_type(layer)} did not say its own state")
    try:
        layer.restore_state(decoder.decode(attributes["own"]["state"], path))
    except ValueError as error:
        raise SnapshotError(f"{path}: {error}") from error


def _is_state(layer: Env, name: str, value: object, layers: list[Env]) -> bool:
    """Tell whether an attribute belongs into a snapshot: it isn't part of the construction."""
    if name in CONSTRUCTION or any(value is other for other in layers):
        return False
    if isinstance(layer, KeepsState):
        return name in GYMNASIUM_OWN
    # A model is kept together with its simulation.
    return not any(is_mujoco_data(other) and other.model is value for other in vars(layer).values())


def _walk_spaces(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    """Give a space and all spaces inside it, always in the same order."""
    yield space
    for value in vars(space).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else [value]
        for part in parts:
            if isinstance(part, gym.Space):
                yield from _walk_spaces(part)


def _write_space(space: object, generators: list[Any], path: str) -> None:
    """Give a space, and those in it, the generators that they draw samples with."""
    if not isinstance(space, gym.Space):
        raise SnapshotError(f"{path} was a space in the snapshot, and is a {describe_type(space)} here")
    for part, generator in zip(_walk_spaces(space), generators, strict=True):
        vars(part)["_np_random"] = generator


def _refuse_shared_memory(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that are windows into others: once restored they would be apart.

    Raises:
        SnapshotError: naming the array, and the other one where it is an attribute too.
    """
    for path, array in arrays.items():
        if array.base is None:
            continue
        root: object = array
        while isinstance(root, np.ndarray) and root.base is not None:
            root = root.base
        if not isinstance(root, np.ndarray):
            raise SnapshotError(
                f"{path} is a window into memory of a {describe_type(root)}; a snapshot would cut it off"
            )
        for other, candidate in arrays.items():
            if other != path and np.may_share_memory(array, candidate):
                raise SnapshotError(f"{path} and {other} share memory; a snapshot would part them")


def _compare_step(first: Env, second: Env, action: Any, reset: bool) -> str | None:
    """Take the same step, or begin a new episode, in both; give the name of what came out differently."""
    results: list[tuple[Any, ...]] = []
    for env in (first, second):
        if reset:
            results.append((env.reset()[0],))
            continue
        obs, reward, terminated, truncated, _ = env.step(action)
        after = env.reset()[0] if terminated or truncated else None
        results.append((obs, reward, terminated, truncated, after))
    names = ("obs", "reward", "terminated", "truncated", "obs after the reset")
    pairs = zip(names, *results, strict=False)
    return next((name for name, one, other in pairs if not equal_bits(one, other)), None)


def equal_bits(one: Any, other: Any) -> bool:
    """Tell whether two observations or numbers are the same to the bit, in value and in type of number."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(equal_bits(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(equal_bits, one, other))
    left, right = np.asarray(one), np.asarray(other)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
