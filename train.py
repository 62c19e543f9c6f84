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
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment.devices import DeviceError, choose_devices, count_cores, list_gpus
from experiment.engines.environment import THREAD_VARIABLES
from experiment.engines.local import choose_threads, prepare_attempt
from experiment.files import CONFIG_HEADING, dump_settings
from experiment.lineage import Lineage
from experiment.loader import parse_yaml
from experiment.lock_check import LocklessFolderError, check_locks
from experiment.memory import read_whole_memory
from experiment.outcomes import find_checkpoint_step
from experiment.parents import open_parent
from experiment.plan import find_folders
from experiment.problems import Fault, SettingsError, SpecError, suggest
from experiment.provenance import CodeHasher, record_provenance
from experiment.run import Run, claim_run, find_folder, safe_label
from experiment.single import read_flags, read_single
from experiment.supervise import find_reason, write_ending
from training.answers import answer_preflight
from training.config import TrainerConfig
from training.placing import choose_device, find_room
from training.trainers import TrainerEntry

TRAINERS = {
    "bc": TrainerEntry(
        "rl.offline.bc_config:BCConfig", "rl.offline.bc:build_trainer", "rl.offline.bc:count_parameters"
    ),
    "ddpg": TrainerEntry("rl.ddpg_config:DDPGConfig", "rl.ddpg:build_trainer", "rl.ddpg:count_parameters"),
    "iql": TrainerEntry(
        "rl.offline.iql_config:IQLConfig", "rl.offline.iql:build_trainer", "rl.offline.iql:count_parameters"
    ),
    "sac": TrainerEntry("rl.sac_config:SACConfig", "rl.sac:build_trainer", "rl.sac:count_parameters"),
    "tdmpc2": TrainerEntry(
        "rl.tdmpc2.config:TDMPC2Config", "rl.tdmpc2.trainer:build_trainer", "rl.tdmpc2.trainer:count_parameters"
    ),
    "td3": TrainerEntry("rl.td3_config:TD3Config", "rl.td3:build_trainer", "rl.td3:count_parameters"),
    "td3_bc": TrainerEntry(
        "rl.offline.td3_bc_config:TD3BCConfig",
        "rl.offline.td3_bc:build_trainer",
        "rl.offline.td3_bc:count_parameters",
    ),
    "vae_diffusion_rl": TrainerEntry(
        "diffuser.config:DiffusionRLConfig", "diffuser.components:build_trainer", "diffuser.components:count_parameters"
    ),
    "vmamba_td3": TrainerEntry(
        "rl.vmamba_td3.config:VMambaTD3Config",
        "rl.vmamba_td3.trainer:build_trainer",
        "rl.vmamba_td3.trainer:count_parameters",
    ),
}

OK, ERROR, CONFIG, DEVICE, REQUEUE, OUT_OF_MEMORY, UNHEALTHY = 0, 1, 2, 3, 75, 86, 87


def find_trainer(settings: Mapping[str, Any]) -> TrainerEntry:
    """Give the trainer that settings name. A `diffusion` key alone means `vae_diffusion_rl`.

    Raises:
        SettingsError: none is named, or none has that name; the message lists those there are.
    """
    key = "algorithm_name" if "algorithm_name" in settings else "diffusion"
    name = settings.get("algorithm_name", "vae_diffusion_rl" if "diffusion" in settings else None)
    if name is not None and not isinstance(name, str):
        raise SettingsError([Fault((key,), f"{key} must be text, got {name!r}")])
    table = TRAINERS if name in TRAINERS else TRAINERS | import_trainers(settings.get("imports", []))
    there = ", ".join(sorted(table))
    if name is None:
        raise SettingsError([Fault(("algorithm_name",), f"algorithm_name is missing; trainers here: {there}")])
    if name not in table:
        stands = (
            "the key 'diffusion' stands for a trainer that is not here: " if key == "diffusion" else "no trainer is "
        )
        raise SettingsError([Fault((key,), f"{stands}{name!r}{suggest(str(name), table)}; trainers here: {there}")])
    return table[name]


def import_trainers(modules: Sequence[str]) -> dict[str, TrainerEntry]:
    """Import a user's own modules and give their trainers: each may have a `TRAINERS` table like the one above.

    Raises:
        SettingsError: `modules` is not a list of names, or one of them can't be imported.
    """
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise SettingsError([Fault(("imports",), f"imports must be a list of modules, got {modules!r}")])
    table: dict[str, TrainerEntry] = {}
    for module in modules:
        try:
            table |= vars(importlib.import_module(module)).get("TRAINERS", {})
        except Exception as error:
            message = f"imports: {module!r} can't be imported: {type(error).__name__}: {error}"
            raise SettingsError([Fault(("imports",), message)]) from error
    return table


def build_config(settings: Mapping[str, Any]) -> TrainerConfig:
    """Give the frozen, checked config of one run.

    Raises:
        SettingsError: with every fault in the settings.
    """
    entry = find_trainer(settings)
    return entry.load_config_class().from_settings({"algorithm_name": "vae_diffusion_rl"} | dict(settings))


def train(
    config: TrainerConfig, run: Run, attempt: int, threads: int, code_version: str, *, stop_after_save: bool = False
) -> int:
    """Train one run to its end, or until it is asked to stop, and give the exit code that says which.

    With `stop_after_save`, its first checkpoint is such a stop.
    """
    import torch

    from training.loop import Outcome, fit
    from training.seeding import seed_everything
    from training.session import Attempt

    stop_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stop_signals.append(got))
    import_trainers(config.imports)
    placed = run.read_start(attempt)["device"]
    device = choose_device(config.device, placed)
    if device is None:
        asked = f"GPU {placed}" if config.device == "auto" else f"device: {config.device}"
        print(f"{asked} was asked for, and torch {torch.__version__} sees no such CUDA device", file=sys.stderr)
        return DEVICE
    entry = find_trainer(config.model_dump())
    room, parameters = find_room(device), entry.count_parameters(config)
    if faults := config.find_memory_faults(room, parameters):
        if config.find_memory_faults(replace(room, host_bytes=read_whole_memory()), parameters):
            raise SettingsError(faults)
        # Others have it now, which says nothing against the settings.
        print(SettingsError(faults), file=sys.stderr)
        return OUT_OF_MEMORY
    seed_everything(config.seed)
    trainer = entry.build_trainer(config, device)
    if trainer.resume_reason:
        print(f"note: a resumed run begins a new episode: {trainer.resume_reason}")
    start = Attempt(attempt, str(device), threads, code_version)

    def should_stop() -> bool:
        return bool(stop_signals) or (stop_after_save and find_checkpoint_step(run) > 0)

    try:
        outcome = fit(trainer, run, config, start, should_stop=should_stop, say=print)
    finally:
        trainer.close()
    return {Outcome.FINISHED: OK, Outcome.STOPPED: REQUEUE, Outcome.UNHEALTHY: UNHEALTHY}[outcome]


def run_guarded(
    config: TrainerConfig, run: Run, attempt: int, threads: int, code_version: str, *, stop_after_save: bool = False
) -> int:
    """Train, and turn whatever goes wrong into an exit code and a last line that says it."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from training.manifest import CheckpointError
    from training.measures import MeasureError
    from training.metrics import MetricsError
    from training.resources import is_out_of_memory
    from training.session import RunFolderError

    torch.set_num_threads(threads)
    # The call that doesn't load torch's compiler, which takes 0.8 s.
    torch.set_deterministic_debug_mode("error")
    try:
        if not config.continue_training and attempt > 1:
            run.archive(attempt - 1)
        return train(config, run, attempt, threads, code_version, stop_after_save=stop_after_save)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return CONFIG
    except (CheckpointError, MeasureError, MetricsError, RunFolderError) as error:
        print(error, file=sys.stderr)
        return ERROR
    except OSError as error:
        traceback.print_exc()
        print(f"{error.filename or run.folder}: {error.strerror or error}", file=sys.stderr)
        return OUT_OF_MEMORY if is_out_of_memory(error) else ERROR
    except Exception as error:
        traceback.print_exc()
        return OUT_OF_MEMORY if is_out_of_memory(error) else ERROR


def take_over_lock(run: Run) -> bool:
    """Take over the run's lock from the supervisor that started us; False where we were started in any other way.

    We keep it, so that the run can't be taken while we live; what we start must not keep it after us.
    """
    lock = int(os.environ.pop("GRIDPILOT_LOCK_FD", -1))
    try:
        is_lock = os.path.samestat(os.fstat(lock), run.lock_path.stat())
    except OSError:
        return False
    if is_lock:
        os.set_inheritable(lock, False)
    return is_lock


def run_launched(config: TrainerConfig, run: Run, *, stop_after_save: bool) -> int:
    """Train as a supervisor's child: the run is claimed and its folder prepared."""
    attempt = int(os.environ["GRIDPILOT_ATTEMPT"])
    start = run.read_start(attempt)
    threads, version = int(start["threads"]), start["code_version"]
    return run_guarded(config, run, attempt, threads, version, stop_after_save=stop_after_save)


def run_alone(config: TrainerConfig, run: Run, placed: str) -> int:
    """Claim the run, train it in this process, and write how it ended, as a supervisor would.

    `placed` is the index of the GPU that this process was given, `cpu`, or `auto` for whatever there is.
    """
    run.experiment_dir.mkdir(parents=True, exist_ok=True)
    check_locks(run.experiment_dir)
    run, lock = claim_run(run)
    if lock is None:
        print(f"{run.folder} is being trained by another process", file=sys.stderr)
        return ERROR
    if run.is_done() and config.continue_training:
        print(f"finished before: {run.summary_path}  (--continue_training false trains it again)")
        return OK
    version = record_provenance(run.experiment_dir, CodeHasher([Path.cwd()]), list_gpus())
    _add_to_plan(config, run)
    parent = open_parent(run, config.resolved())
    threads = choose_threads(run, int(os.environ.get("OMP_NUM_THREADS", count_cores())), parent)
    command, text = [sys.executable, *sys.argv], dump_settings(config.resolved(), CONFIG_HEADING)
    attempt = prepare_attempt(run, text, command, placed, threads, version, parent)
    started, cpu = time.monotonic(), time.process_time()
    returncode = run_guarded(config, run, attempt, threads, version)
    usage = {"wall_s": round(time.monotonic() - started, 3), "cpu_s": round(time.process_time() - cpu, 3)}
    try:
        write_ending(run.folder, attempt, returncode, find_reason(returncode, None), usage)
    except OSError as error:
        message = f"how the run ended can't be written down ({error.strerror}); the same command goes on with it"
        print(f"{run.folder}: {message}", file=sys.stderr)
    return returncode


def _add_to_plan(config: TrainerConfig, run: Run) -> None:
    """Add the run to its experiment's plan, in one write, unless it is there."""
    plan = run.experiment_dir / "plan.jsonl"
    row = {"id": run.id, "label": run.label, "settings": config.model_dump(mode="json", exclude_unset=True)}
    if not plan.exists() or f'"id": "{run.id}"' not in plan.read_text():
        with plan.open("a") as file:
            file.write(json.dumps(row) + "\n")


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
        if exp_name is None and single.home is not None:
            experiment_dir = single.home.experiment_dir
        else:
            default = f"{config.algorithm_name}_{config.env_name}".replace("/", "-")
            experiment_dir = log_root / safe_label(exp_name or single.exp_name or default)
        if parent := open_lineage(experiment_dir, single.extend).settle(single.settings):
            config = build_config(single.settings | parent)
    except SettingsError as error:
        raise SpecError([single.locate(fault) for fault in error.faults]) from None
    return config, find_folder(Run.create_path(experiment_dir, single.label or config.algorithm_name, config.run_id()))


def open_lineage(experiment_dir: Path, extend: bool = False) -> Lineage:
    """Give what finds and checks the runs that others of an experiment begin from."""
    return Lineage(experiment_dir, find_folders(experiment_dir), build_config, extend)


def serve_forks(wishes: str) -> int:
    """Import what the trainers and environments of a sweep need, and fork runs for the runner until it is gone."""
    from experiment.engines.fork_server import Parts, serve
    from experiment.engines.standby import Play

    asked = json.loads(wishes)

    def import_all() -> None:
        from envs.preload import import_environment
        from training.preload import import_common

        import_common()
        for name in asked["trainers"]:
            # A user's own trainers, and environments, are imported by each run: theirs may look at the run.
            if name in TRAINERS:
                TRAINERS[name].import_trainer()
        for name in asked["environments"]:
            import_environment(name)

    def rehearse() -> None:
        settings = {"algorithm_name": "ddpg", "env_name": "none"}
        parse_yaml(dump_settings(settings, "nobody's"), "a rehearsal")
        load_single_run(None, [f"{key}={value}" for key, value in settings.items()], Path("logs"), None)

    return serve(asked["socket"], Parts(import_all, Play(main, rehearse), asked["pairs"]))


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
    parser.add_argument("--fork-server", metavar="WISHES", help=argparse.SUPPRESS)
    parser.add_argument("--placed-on", help=argparse.SUPPRESS)
    parser.add_argument("--held", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--stop-after-save", action="store_true", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    if args.fork_server:
        return serve_forks(args.fork_server)
    if args.preflight:
        return answer_preflight(args.preflight, args.placed_on, args.held, build_config, find_trainer, import_trainers)
    try:
        config, run = load_single_run(args.file, read_flags(rest), Path(args.log_root), args.exp_name)
    except SpecError as error:
        print(error, file=sys.stderr)
        return CONFIG
    launched = os.environ.get("GRIDPILOT_RUN_DIR")
    if launched and args.file and args.file.absolute() == Path(launched) / "config.yaml" != run.config_path.absolute():
        print(f"{args.file} was changed: its settings have the id {run.id} now", file=sys.stderr)
        return CONFIG
    if take_over_lock(run):
        return run_launched(config, run, stop_after_save=args.stop_after_save)
    placed = "auto"
    if args.gpu is not None:
        try:
            devices, remark = choose_devices(args.gpu, list_gpus())
        except DeviceError as error:
            print(error, file=sys.stderr)
            return DEVICE
        except ValueError as error:
            parser.error(str(error))
        placed = devices[0].name
        os.environ.update(devices[0].environment())
        print(remark or f"on {devices[0].name}")
    try:
        import_trainers(config.imports)
        open_lineage(run.experiment_dir).check(config.resolved(), config, anew=not config.continue_training)
        if faults := config.find_environment_faults():
            raise SettingsError(faults)
        return run_alone(config, run, placed)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return CONFIG
    except OSError as error:
        print(f"{error.filename or run.folder}: {error.strerror or error}", file=sys.stderr)
        return CONFIG if isinstance(error, LocklessFolderError) else ERROR


if __name__ == "__main__":
    sys.exit(main())
