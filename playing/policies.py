"""Who acts: the policy of a run at a checkpoint, or one that was never trained."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.problems import Fault, Problem, SettingsError, SpecError, suggest
from playing.endings import DeviceMissingError, RunError
from train import choose_device, find_trainer, import_trainers, load_single_run

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


def restore_run(folder: Path, which: str, device_name: str, stack: ExitStack) -> Restored:
    """Build the trainer of a run folder and give it a checkpoint's state; the stack closes it.

    Raises:
        SpecError: it isn't a run folder, or its settings are no good any more.
        SettingsError: its modules or its environment aren't there.
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


def build_trained_policy(restored: Restored) -> Policy:
    """Give the policy of a restored run, without noise.

    Raises:
        SettingsError: its trainer has none that can act on its own.
    """
    from envs.record import Policy
    from training.protocol import ActsInEnvironment
    from training.resources import hash_state

    run, config, trainer, checkpoint = restored.run, restored.config, restored.trainer, restored.checkpoint
    if not isinstance(trainer, ActsInEnvironment):
        message = f"the trainer {config.algorithm_name!r} has no policy that acts on its own (no begin_acting)"
        raise SettingsError([Fault(("policy",), message)])
    facts = {
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
    return Policy(config.env_name, config.env_kwargs, facts, lambda env, generator: trainer.begin_acting())


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
