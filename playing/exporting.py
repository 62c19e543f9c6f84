"""`play.py export`: a run's policy as a file that acts without this project, checked against the policy itself."""

from __future__ import annotations

import importlib.util
import inspect
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import now_text, to_json_number, write_atomically, write_json
from experiment.problems import Fault, SettingsError
from experiment.provenance import hash_code
from playing.endings import OK, ExportError
from playing.policies import Restored, build_trained_policy, restore_run

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from envs.make import Env
    from envs.record import Policy
    from playing.formats import Observed

NEEDED: Mapping[str, tuple[str, ...]] = {"torchscript": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Formats, with the packages that each needs beside ours."""
CHECKED = 512
"""Observations that the file and the policy are compared on, from episodes in the environment."""
TOLERANCE = 1e-5
"""The largest difference between both, with each action's range as -1 to 1."""
WINDOW_TOLERANCE = 1e-4
"""The same for policies of windows: a file sums their scans, over tens of layers, in another order."""
AT_A_TIME = 16
"""Observations that a file gets at a time while it is checked: windows of large frames take much memory."""
OBS = "obs"
"""What the input of a module is called where observations are one array."""


def export(args: Namespace, parser: ArgumentParser) -> int:
    """Write the policy of a run into a file, and what it is beside it."""
    if args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} is there already; give another -o, or --overwrite")
    missing = [package for package in NEEDED[args.format] if importlib.util.find_spec(package) is None]
    if missing:
        parser.error(f"--format {args.format} needs {', '.join(missing)}; install gridpilot[{args.format}]")
    with ExitStack() as stack:
        restored = restore_run(args.run, args.checkpoint, args.device, stack)
        module = build_module(restored)
        inputs = list_inputs(module)
        observed, acted, bounds = record_acting(restored, inputs)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tolerance = find_tolerance(inputs)
        difference = write_checked(module, args.format, args.out, observed, acted, bounds, tolerance)
        facts = describe_export(restored, args.format, difference, inputs)
    write_json(find_facts_path(args.out), facts)
    print(
        f"{restored.run.folder.name}, {restored.checkpoint.path.stem}: {args.out} ({args.out.stat().st_size:,} bytes)"
    )
    print(f"largest difference on {len(acted)} observations: {difference:.1e} of half an action's range")
    print(f"what it is: {find_facts_path(args.out)}")
    return OK


def find_facts_path(path: Path) -> Path:
    """Give the file beside an exported one that says what it is."""
    return path.with_name(f"{path.name}.json")


def build_module(restored: Restored) -> nn.Module:
    """Give the policy of a restored run as one module.

    Raises:
        SettingsError: it can't be written as one, and why.
    """
    from training.protocol import HasPolicyModule, NotOneModuleError

    name, trainer = restored.config.algorithm_name, restored.trainer
    why = "it is more than a module from one observation to one action (its trainer has no build_policy_module)"
    if isinstance(trainer, HasPolicyModule):
        try:
            return trainer.build_policy_module()
        except NotOneModuleError as error:
            why = str(error)
    raise SettingsError([Fault(("run",), f"the policy of {name} can't be exported: {why}")])


def list_inputs(module: nn.Module) -> list[str]:
    """Give the names of what a module takes, in their order: parts of an observation, where it has such."""
    return list(inspect.signature(module.forward).parameters)


def find_tolerance(inputs: Sequence[str]) -> float:
    """Give how far a file may be from the policy, with each action's range as -1 to 1."""
    return TOLERANCE if list(inputs) == [OBS] else WINDOW_TOLERANCE


def record_acting(
    restored: Restored, inputs: Sequence[str]
) -> tuple[Observed, NDArray[np.float32], NDArray[np.float32]]:
    """Let the policy act in its environment.

    Gives observations by their names, (n, ...) each, its actions at them, (n, action_dim), and the actions' bounds,
    (2, action_dim).
    """
    import gymnasium as gym
    import numpy as np

    from envs.make import make_env

    env = make_env(restored.config.env_name, restored.config.evaluation_kwargs)
    try:
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        observed, acted = act_in(env, build_trained_policy(restored), inputs)
    finally:
        env.close()
    return observed, acted, np.stack([space.low, space.high]).astype(np.float32)


def act_in(env: Env, policy: Policy, inputs: Sequence[str]) -> tuple[Observed, NDArray[np.float32]]:
    """Let a policy act for `CHECKED` steps, episode after episode; give what it saw, by name, and did."""
    import numpy as np

    generator = np.random.default_rng(0)
    seen: list[dict[str, NDArray[np.float32]]] = []
    acted: list[NDArray[np.float32]] = []
    seed: int | None = 0  # one seed for an environment's life, as in training
    while len(acted) < CHECKED:
        obs, _ = env.reset(seed=seed)
        seed, over, act = None, False, policy.begin(env, generator)
        while not over and len(acted) < CHECKED:
            parts = {name: obs[name] for name in inputs} if isinstance(obs, Mapping) else {OBS: obs}
            seen.append({name: np.array(part, dtype=np.float32) for name, part in parts.items()})
            action = act(obs)
            acted.append(np.array(action, dtype=np.float32))
            obs, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
    return {name: np.stack([row[name] for row in seen]) for name in seen[0]}, np.stack(acted)


def write_checked(
    module: nn.Module,
    format_name: str,
    path: Path,
    observed: Observed,
    acted: NDArray[np.float32],
    bounds: NDArray[np.float32],
    tolerance: float = TOLERANCE,
) -> float:
    """Write a module's file, read it again, and give the largest difference between what it does and what was done.

    Differences count with each action's range as -1 to 1. The file gets its name when it has passed.

    Raises:
        ExportError: the difference is too large; nothing is left behind, and an older file stays.
    """
    import numpy as np

    from playing.formats import FORMATS

    chosen = FORMATS[format_name]
    unchecked = path.with_name(f".{path.name}.unchecked")
    try:
        shapes = {name: part.shape[1:] for name, part in observed.items()}
        write_atomically(unchecked, [chosen.write(module, shapes)])
        low, high = bounds
        act, starts = chosen.load(unchecked), range(0, len(acted), AT_A_TIME)
        rows = [{name: part[start : start + AT_A_TIME] for name, part in observed.items()} for start in starts]
        action = np.concatenate([act(row) for row in rows]).astype(np.float64)
        difference = float(np.max(np.abs(action - acted) / ((high - low) / 2)))
        if not difference <= tolerance:
            message = (
                f"the {format_name} file acts differently from the policy, by {difference:.1e} of half an action's"
            )
            raise ExportError(f"{message} range (at most {tolerance:.0e} is allowed): it was not kept")
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference


def describe_export(restored: Restored, format_name: str, difference: float, inputs: Sequence[str]) -> dict[str, Any]:
    """Say what an exported file is: whose policy, from what to what, and how it was checked, as plain JSON."""
    import gymnasium as gym
    import torch

    from envs.make import make_env

    config = restored.config
    env = make_env(config.env_name, config.evaluation_kwargs)
    env.close()
    assert isinstance(env.action_space, gym.spaces.Box)
    return {
        "format": format_name,
        "policy": dict(build_trained_policy(restored).facts),
        "env_name": config.env_name,
        "env_kwargs": config.env_kwargs,
        "obs": describe_inputs(env.observation_space, inputs),
        "action": describe_space(env.action_space) | {"name": "action"},
        "checked": {
            "observations": CHECKED,
            "largest_difference": difference,
            "tolerance": find_tolerance(inputs),
            "of": "half an action's range",
        },
        "torch": str(torch.__version__),
        "code_version": hash_code([Path(__file__).resolve().parents[1]]),
        "made": now_text(),
    }


def describe_inputs(space: gym.Space[Any], inputs: Sequence[str]) -> dict[str, Any]:
    """Give what a module takes as plain JSON: one input, or one for each part of an observation, by name."""
    import gymnasium as gym

    if isinstance(space, gym.spaces.Box):
        return describe_space(space) | {"name": OBS, "takes": "float32, (batch, obs_dim)"}
    parts: dict[str, Any] = {}
    assert isinstance(space, gym.spaces.Dict)
    for name in inputs:
        part = space[name]
        assert isinstance(part, gym.spaces.Box)
        low, high = (to_json_number(float(bound)) for bound in (part.low.min(), part.high.max()))
        takes = f"float32, (batch, {', '.join(str(size) for size in part.shape)})"
        known = {"shape": list(part.shape), "dtype": str(part.dtype), "low": low, "high": high}
        parts[name] = known | {"name": name, "takes": takes}
    return parts


def describe_space(space: gym.spaces.Box) -> dict[str, Any]:
    """Give a space's shape, number type and bounds as plain JSON."""
    low, high = ([to_json_number(float(bound)) for bound in bounds] for bounds in (space.low, space.high))
    return {"shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}
