"""One run: settings -> config -> trainer -> fit. Holds the table of trainers; imports no torch until one is chosen.

python train.py -e FILE                      a run's config.yaml, or a spec with exactly one combination
python train.py --algorithm_name ddpg --env_name Pendulum-v1 --batch_size 256 ...
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.devices import DeviceError, choose_devices, count_cores, list_gpus
from experiment.engines.local import THREAD_VARIABLES, choose_threads, prepare_attempt
from experiment.files import dump_settings
from experiment.locks import acquire_lock
from experiment.problems import Fault, Problem, SettingsError, SpecError, suggest
from experiment.provenance import record_provenance
from experiment.run import Run, find_runs, safe_label
from experiment.single import read_single
from experiment.supervise import find_reason, write_ending
from training.config import TrainerConfig
from training.trainers import TrainerEntry

if TYPE_CHECKING:
    import torch

TRAINERS = {
    "ddpg": TrainerEntry("rl.ddpg_config:DDPGConfig", "rl.ddpg:build_trainer", "rl.ddpg:count_parameters"),
}

OK, ERROR, CONFIG, DEVICE, REQUEUE, OUT_OF_MEMORY, UNHEALTHY = 0, 1, 2, 3, 75, 86, 87


def find_trainer(settings: Mapping[str, Any]) -> TrainerEntry:
    """Give the trainer that settings name. A `diffusion` key alone means `vae_diffusion_rl`.

    Raises:
        SettingsError: none is named, or none has that name; the message lists those there are.
    """
    key = "algorithm_name" if "algorithm_name" in settings else "diffusion"
    name = settings.get("algorithm_name", "vae_diffusion_rl" if "diffusion" in settings else None)
    table = TRAINERS if name in TRAINERS else TRAINERS | _import_trainers(settings.get("imports", []))
    there = ", ".join(sorted(table))
    if name is None:
        raise SettingsError([Fault(("algorithm_name",), f"algorithm_name is missing; trainers here: {there}")])
    if name not in table:
        stands = (
            "the key 'diffusion' stands for a trainer that is not here: " if key == "diffusion" else "no trainer is "
        )
        raise SettingsError([Fault((key,), f"{stands}{name!r}{suggest(str(name), table)}; trainers here: {there}")])
    return table[name]


def _import_trainers(modules: Sequence[str]) -> dict[str, TrainerEntry]:
    """Give the trainers of a user's own modules: each may have a `TRAINERS` table like the one above."""
    table: dict[str, TrainerEntry] = {}
    for module in modules:
        table |= vars(importlib.import_module(module)).get("TRAINERS", {})
    return table


def build_config(settings: Mapping[str, Any]) -> TrainerConfig:
    """Give the frozen, checked config of one run.

    Raises:
        SettingsError: with every fault in the settings.
    """
    entry = find_trainer(settings)
    return entry.load_config_class().from_settings({"algorithm_name": "vae_diffusion_rl"} | dict(settings))


def train(config: TrainerConfig, run: Run, attempt: int, threads: int, code_version: str) -> int:
    """Train one run to its end, or until it is asked to stop, and give the exit code that says which."""
    from training.loop import Outcome, fit
    from training.seeding import seed_everything
    from training.session import Attempt

    stop_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stop_signals.append(got))
    for module in config.imports:
        importlib.import_module(module)
    device = choose_device(config.device)
    if device is None:
        print(f"device: {config.device} was asked for, and this process sees no such CUDA device", file=sys.stderr)
        return DEVICE
    seed_everything(config.seed)
    trainer = find_trainer(config.model_dump()).build_trainer(config, device)
    if trainer.resume_reason:
        print(f"note: a resumed run begins a new episode: {trainer.resume_reason}")
    start = Attempt(attempt, str(device), threads, code_version, trainer.resume_mode)
    try:
        outcome = fit(trainer, run, config, start, should_stop=lambda: bool(stop_signals), say=print)
    finally:
        trainer.close()
    return {Outcome.FINISHED: OK, Outcome.STOPPED: REQUEUE, Outcome.UNHEALTHY: UNHEALTHY}[outcome]


def choose_device(wanted: str) -> torch.device | None:
    """Give the device to train on; None where it was named and isn't there. `auto` takes a GPU if one is visible."""
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return None
    return device


def run_guarded(config: TrainerConfig, run: Run, attempt: int, threads: int, code_version: str) -> int:
    """Train, and turn whatever goes wrong into an exit code and a last line that says it."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    import torch

    from training.manifest import CheckpointError
    from training.metrics import MetricsError
    from training.session import RunFolderError

    if not config.continue_training and attempt > 1:
        run.archive(attempt - 1)
    torch.set_num_threads(threads)
    # The call that doesn't load torch's compiler, which takes 0.8 s.
    torch.set_deterministic_debug_mode("error")
    try:
        return train(config, run, attempt, threads, code_version)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return CONFIG
    except (torch.OutOfMemoryError, MemoryError):
        traceback.print_exc()
        return OUT_OF_MEMORY
    except (CheckpointError, MetricsError, RunFolderError) as error:
        print(error, file=sys.stderr)
        return ERROR
    except OSError as error:
        traceback.print_exc()
        print(f"{error.filename or run.folder}: {error.strerror or error}", file=sys.stderr)
        return ERROR
    except Exception:
        traceback.print_exc()
        return ERROR


def run_launched(config: TrainerConfig) -> int:
    """Train as a supervisor's child: the run is claimed and its folder prepared."""
    lock = int(os.environ.pop("GRIDPILOT_LOCK_FD"))
    # We keep the lock, so that the run can't be taken while we live; what we start must not keep it after us.
    os.set_inheritable(lock, False)
    run = Run.open(Path(os.environ["GRIDPILOT_RUN_DIR"]))
    attempt = int(os.environ["GRIDPILOT_ATTEMPT"])
    start = run.read_start(attempt)
    if config.run_id() != run.id:
        print(
            f"{run.config_path} was changed: its settings have the id {config.run_id()}, not {run.id}", file=sys.stderr
        )
        return CONFIG
    return run_guarded(config, run, attempt, int(start["threads"]), start["code_version"])


def run_alone(config: TrainerConfig, run: Run) -> int:
    """Claim the run, train it in this process, and write how it ended, as a supervisor would."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = acquire_lock(run.lock_path)
    if lock is None:
        print(f"{run.folder} is being trained by another process", file=sys.stderr)
        return ERROR
    if run.exit_path.exists() and config.continue_training:
        print(f"finished before: {run.summary_path}  (--continue_training false trains it again)")
        return OK
    version = record_provenance(run.experiment_dir, Path.cwd(), list_gpus())
    _add_to_plan(config, run)
    threads = choose_threads(run, int(os.environ.get("OMP_NUM_THREADS", count_cores())))
    command = [sys.executable, *sys.argv]
    attempt = prepare_attempt(run, dump_settings(config.resolved()), command, config.device, threads, version)
    started, cpu = time.monotonic(), time.process_time()
    returncode = run_guarded(config, run, attempt, threads, version)
    usage = {"wall_s": round(time.monotonic() - started, 3), "cpu_s": round(time.process_time() - cpu, 3)}
    write_ending(run.folder, attempt, returncode, find_reason(returncode, None), usage)
    return returncode


def _add_to_plan(config: TrainerConfig, run: Run) -> None:
    """Add the run to its experiment's plan, in one write, unless it is there."""
    plan = run.experiment_dir / "plan.jsonl"
    row = {"id": run.id, "label": run.label, "settings": config.model_dump(mode="json", exclude_unset=True)}
    if not plan.exists() or f'"id": "{run.id}"' not in plan.read_text():
        with plan.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_flags(words: Sequence[str]) -> list[str]:
    """Turn `--key value ...` flags into `key=value` overrides: several values are a list, none means true.

    Raises:
        SpecError: a value that no flag stands before.
    """
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            flags.append((key, [value] if has_value else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise SpecError([Problem(f"{word!r} belongs to no flag; settings are given as --key value")])
    return [f"{key}={_join_values(values)}" for key, values in flags]


def _join_values(values: Sequence[str]) -> str:
    if not values:
        return "true"
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def load_single_run(
    file: Path | None, flags: Sequence[str], log_root: Path, exp_name: str | None
) -> tuple[TrainerConfig, Run]:
    """Give the config and the run that a file and flags describe; flags win over the file.

    Raises:
        SpecError: the file or a flag is wrong, or the file is a spec with several combinations.
    """
    single = read_single(file, flags)
    try:
        config = build_config(single.settings)
    except SettingsError as error:
        raise SpecError([single.locate(fault) for fault in error.faults]) from None
    run_id = config.run_id()
    if exp_name is None and single.home is not None:
        experiment_dir = single.home.experiment_dir
    else:
        default = f"{config.algorithm_name}_{config.env_name}".replace("/", "-")
        experiment_dir = log_root / safe_label(exp_name or single.exp_name or default)
    there = next((run for run in find_runs(experiment_dir) if run.id == run_id), None)
    return config, there or Run.create_path(experiment_dir, single.label or config.algorithm_name, run_id)


def answer_preflight(kind: str) -> int:
    """Check settings against their environments, or count parameters: JSON lines in, JSON lines out."""
    for line in sys.stdin:
        config = build_config(json.loads(line))
        for module in config.imports:
            importlib.import_module(module)
        faults = config.find_environment_faults()
        answer: dict[str, Any] = {"faults": [[fault.keys[0], fault.message] for fault in faults]}
        if kind == "count" and not faults:
            answer["parameters"] = find_trainer(config.model_dump()).count_parameters(config)
        print(json.dumps(answer), flush=True)
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "Any setting can be given as a flag: --key value, lists as several values."
    parser.add_argument(
        "-e", "--config", dest="file", type=Path, help="a run's config.yaml, or a spec with one combination"
    )
    parser.add_argument("-g", dest="gpu", help="a GPU's index, or cpu")
    parser.add_argument("--log-root", default="logs", help="where experiments live (default: logs)")
    parser.add_argument("--exp-name", help="the experiment's folder below it")
    parser.add_argument("--preflight", choices=("check", "count"), help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    if args.preflight:
        return answer_preflight(args.preflight)
    try:
        config, run = load_single_run(args.file, read_flags(rest), Path(args.log_root), args.exp_name)
    except SpecError as error:
        print(error, file=sys.stderr)
        return CONFIG
    if "GRIDPILOT_LOCK_FD" in os.environ:
        return run_launched(config)
    if args.gpu is not None:
        try:
            devices, remark = choose_devices(args.gpu, list_gpus())
        except DeviceError as error:
            print(error, file=sys.stderr)
            return DEVICE
        except ValueError as error:
            parser.error(str(error))
        os.environ.update(devices[0].environment())
        print(remark or f"on {devices[0].name}")
    return run_alone(config, run)


if __name__ == "__main__":
    sys.exit(main())
