"""Who acts: the policy of a run at a checkpoint, or one that was never trained."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.problems import Fault, Problem, SettingsError, SpecError, suggest
from playing.endings import DeviceMissingError, RunError
from train import find_trainer, import_trainers, load_single_run
from training.placing import choose_device

if TYPE_CHECKING:
    from envs.record import Policy
    from experiment.run import Run
    from training.checkpoint import Checkpoint
    from training.config import TrainerConfig
    from training.protocol import Trainer


@dataclass(frozen=True)
class Restored:
    """A run's trainer as it was at a checkpoint."""

    run: Run
    config: TrainerConfig
    trainer: Trainer
    checkpoint: Checkpoint


def restore_run(
    folder: Path, which: str, device_name: str, stack: ExitStack, changes: Mapping[str, Any] | None = None
) -> Restored:
    """Build the trainer of a run folder and give it a checkpoint's state; the stack closes it.

    Args:
        folder: of the run.
        which: as for `training.restore.read_checkpoint`.
        device_name: where it computes.
        stack: closes the trainer.
        changes: of the arguments that the environment has in evaluations, over the run's own.

    Raises:
        SpecError: it isn't a run folder, or its settings are no good any more.
        SettingsError: its modules or its environment aren't there, or can't be changed so.
        DeviceMissingError: the device isn't there.
        RunError: there is no such checkpoint, or it can't be used.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise SpecError([Problem(f"{folder} is not a run folder: it has no config.yaml")])
    config, run = load_single_run(path, [], folder.absolute().parent, None)
    import_trainers(config.imports)
    if faults := config.find_environment_faults():
        raise SettingsError(faults)
    if changes:
        config = change_evaluations(config, changes)
    device = choose_device(device_name, "auto")
    if device is None:
        raise DeviceMissingError(f"--device {device_name}: torch sees no such device")
    from training.manifest import CheckpointError
    from training.restore import restore_trainer

    build = find_trainer(config.model_dump()).build_trainer
    try:
        trainer, checkpoint = restore_trainer(run, which, lambda: build(config, device))
    except CheckpointError as error:
        raise RunError(str(error)) from error
    stack.enter_context(closing(trainer))
    return Restored(run, config, trainer, checkpoint)


def change_evaluations(config: TrainerConfig, changes: Mapping[str, Any]) -> TrainerConfig:
    """Give a config that is evaluated in an environment with other arguments.

    Raises:
        SettingsError: the environment can't be made so, or would have other spaces.
    """
    from envs.make import find_evaluation_faults, take_anything

    changed = {**config.eval_env_kwargs, **changes}
    # Whether the trainer can do with the observations was judged by its config; these are the same.
    if faults := find_evaluation_faults(config.env_name, config.env_kwargs, changed, "--env-kwargs", take_anything):
        raise SettingsError(faults)
    return config.model_copy(update={"eval_env_kwargs": changed})


def describe_policy(restored: Restored) -> dict[str, Any]:
    """Say which policy a restored run's is, as plain JSON."""
    from training.resources import hash_state

    run, config, trainer, checkpoint = restored.run, restored.config, restored.trainer, restored.checkpoint
    return {
        "kind": "trained",
        "run": run.id,
        "folder": run.folder.name,
        "algorithm_name": config.algorithm_name,
        "config_sha256": hashlib.sha256(run.config_path.read_bytes()).hexdigest(),
        "checkpoint": checkpoint.path.stem,
        "step": checkpoint.step,
        # Of the networks alone: a checkpoint also holds how long training took.
        "weights_sha256": hash_state({name: dict(net.state_dict()) for name, net in trainer.components().items()}),
    }


def build_trained_policy(restored: Restored) -> Policy:
    """Give the policy of a restored run, without noise.

    Raises:
        SettingsError: its trainer has none that can act on its own.
    """
    from envs.record import Policy
    from training.protocol import ActsInEnvironment

    config, trainer = restored.config, restored.trainer
    if not isinstance(trainer, ActsInEnvironment):
        message = f"the trainer {config.algorithm_name!r} has no policy that acts on its own (no begin_acting)"
        raise SettingsError([Fault(("policy",), message)])
    facts = describe_policy(restored)
    return Policy(config.env_name, config.env_kwargs, facts, lambda env, generator: trainer.begin_acting())


def check_actor(args: Namespace, parser: ArgumentParser) -> None:
    """End a command that takes a run or an untrained policy, and got neither, both, or what belongs to the other."""
    if (args.run is None) == (args.policy is None):
        parser.error("give either the folder of a run or --policy random or scripted:<name>")
    for name in ("env", "imports"):
        if args.run is not None and getattr(args, name):
            parser.error(f"--{name}: a run brings its own; --env-kwargs changes arguments of its environment")


def open_untrained(text: str, env_name: str | None, env_kwargs: Mapping[str, Any], imports: Sequence[str]) -> Policy:
    """Give the policy `random` or `scripted:<name>`, in an environment that it can act in.

    Raises:
        SettingsError: the modules aren't there, there is no such policy, or it doesn't go with the environment.
    """
    from envs.make import find_environment_faults, take_anything
    from envs.record import build_untrained_policy

    import_trainers(imports)
    policy = build_untrained_policy(text, env_name, env_kwargs)
    if policy is None:
        known = suggest(text, ["random", "scripted:pendulum_energy"])
        raise SettingsError([Fault(("policy",), f"--policy {text!r} is neither 'random' nor 'scripted:<name>'{known}")])
    if faults := find_environment_faults(policy.env_name, policy.env_kwargs, True, take_anything):
        raise SettingsError(faults)
    return policy


def open_policy(args: Namespace, stack: ExitStack) -> Policy:
    """Give the policy that `--policy` names, in the environment that it or `--env` names.

    Raises:
        SettingsError: there is no such policy, or it doesn't go with the environment.
    """
    from envs.record import build_untrained_policy, read_env_kwargs

    kwargs = read_env_kwargs(args.env_kwargs)
    if (policy := build_untrained_policy(args.policy, args.env, kwargs)) is not None:
        return policy
    folder = Path(args.policy)
    if not folder.is_dir():
        known = suggest(args.policy, ["random", "scripted:pendulum_energy"])
        message = f"--policy {args.policy!r} is neither 'random', 'scripted:<name>' nor the folder of a run{known}"
        raise SettingsError([Fault(("policy",), message)])
    restored = restore_run(folder, args.checkpoint, args.device, stack)
    if kwargs or args.env not in (None, restored.config.env_name):
        message = f"{folder} was trained in {restored.config.env_name}, and brings its environment with its arguments"
        raise SettingsError([Fault(("env",), f"{message}; leave out --env and --env-kwargs")])
    from training.seeding import seed_everything

    seed_everything(args.seed)
    return build_trained_policy(restored)
