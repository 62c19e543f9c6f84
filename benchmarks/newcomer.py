"""The newcomer's job: a small sweep with a bad value, a Ctrl-C and a table at the end, and what must be true of it.

python -m benchmarks.newcomer            the twelve behaviours, each with what was seen (some five minutes)

A truth log written by the training function itself says what really ran: START when a training function begins or goes
on, END when one has finished. Five other tools were put through the same job before; what happened is in
`docs/newcomer.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.progress import read_progress
from experiment.run import State, find_runs

ROOT = Path(__file__).parents[1]
UNDER_WAY = 1_100
"""Steps after which a run of 3,000 is well on its way, past its first updates."""
LEFT_OUT = shutil.ignore_patterns(".*", "logs", "*.egg-info", "__pycache__", "build")
PROMPT_BACK_S = 5.0
BAD_VALUE_S = 1.0
IDLE_S = 1.5

TRUTH_LOG = """
import os, time
from typing import Literal
from rl import ddpg_config
from training.trainers import TrainerEntry

TRAINERS = {"ddpg_logged": TrainerEntry("truth_log:Config", "truth_log:build_trainer", "rl.ddpg:count_parameters")}


class Config(ddpg_config.DDPGConfig):
    algorithm_name: Literal["ddpg_logged"]


def write(word, config):
    with open("truth.log", "a") as file:
        file.write(f"{time.time():.3f} {word} {config.learning_rate} {config.seed}\\n")


def build_trainer(config, device):
    from rl import ddpg

    class Logged(ddpg.DDPGTrainer):
        taken = 0

        def train_step(self):
            result = super().train_step()
            if not self.taken and config.seed == 666:
                raise RuntimeError("this seed is cursed")
            self.taken += 1
            if self.taken == 1:
                write("START", config)
            return result

        def close(self):
            super().close()
            if os.path.exists(os.environ["GRIDPILOT_RUN_DIR"] + "/summary.json"):
                write("END", config)

    return Logged(config, device)
"""

SPEC = """\
meta_data:
  num_workers: 2
  imports: [truth_log]
constants:
  algorithm_name: ddpg_logged
  env_name: Pendulum-v1
  max_timesteps: 3000
variables:
  learning_rate: [1e-4, 3e-4, 1e-3]
  seed: [1, 2, 3]
"""
QUICK = ["-o", "max_timesteps=300", "-o", "learning_starts=50", "-o", "hidden_dims=[16]", "-o", "batch_size=16"]


class BehaviourError(AssertionError):
    """A behaviour that was not seen; the message says what was seen instead."""


def expect(holds: bool, seen: object) -> None:
    """Raise unless something holds."""
    if not holds:
        raise BehaviourError(str(seen))


def hear_interrupts() -> None:
    """Let Ctrl-C be heard as on a terminal, also where the benchmark itself was started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Project:
    """A copy of this repository with the newcomer's spec in it, and an empty home folder that nothing may write to."""

    folder: Path
    home: Path
    launches: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, parent: Path, name: str) -> Project:
        """Copy the code and write the spec."""
        folder = parent / name
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / "truth_log.py").write_text(TRUTH_LOG)
        (folder / "sweep.yaml").write_text(SPEC)
        home = parent / f"home_{name}"
        home.mkdir()
        return cls(folder, home)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `run_experiment.py` as a newcomer types it, in a session of its own."""
        self.launches.append(" ".join(words))
        return subprocess.Popen(
            [sys.executable, "run_experiment.py", *words],
            cwd=self.folder,
            env=os.environ | {"HOME": str(self.home), "TMPDIR": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Run it to its end; give exit code and output."""
        process = self.start(*words)
        output, _ = process.communicate(timeout=1200)
        return process.returncode, output

    def count_truth(self) -> dict[str, Counter[str]]:
        """Give how often each run (`rate seed`) wrote START and END."""
        counts: dict[str, Counter[str]] = {"START": Counter(), "END": Counter()}
        for line in self.read_truth():
            _, word, *run = line.split()
            counts[word][" ".join(run)] += 1
        return counts

    def read_truth(self) -> list[str]:
        """Give the lines of the truth log."""
        path = self.folder / "truth.log"
        return path.read_text().splitlines() if path.exists() else []

    def read_report(self, name: str, experiment: str = "sweep") -> str:
        """Give a file of the report."""
        return (self.folder / "logs" / experiment / "report" / name).read_text()

    def read_status(self) -> list[dict[str, Any]]:
        """Give what `status --json` says of the sweep."""
        _, lines = self.run("status", "-e", "sweep.yaml", "--json")
        return [json.loads(line) for line in lines.splitlines() if line.startswith("{")]

    def list_processes(self) -> list[int]:
        """Give the processes whose home is this project's."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self._is_ours(name)]

    def _is_ours(self, pid: str) -> bool:
        try:
            return f"HOME={self.home}\0".encode() in Path("/proc", pid, "environ").read_bytes()
        except OSError:
            return False

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 300.0) -> None:
        """Wait until something is so, while a process lives."""
        deadline = time.monotonic() + limit_s
        while not condition():
            expect(time.monotonic() < deadline and process.poll() is None, "the sweep ended or hung before its time")
            time.sleep(0.05)


@dataclass
class Job:
    """The whole job; the behaviours are looked at in the order in which the newcomer meets them."""

    parent: Path
    rows: list[tuple[int, str, bool, str]] = field(default_factory=list)
    straight_table: str = ""

    def look(self, number: int, what: str, check: Callable[[], str]) -> None:
        """Look at one behaviour and print what was seen."""
        started = time.monotonic()
        try:
            holds, seen = True, check()
        except (BehaviourError, subprocess.SubprocessError, OSError, ValueError, IndexError, KeyError) as error:
            holds, seen = False, f"{type(error).__name__}: {error}"
        self.rows.append((number, what, holds, seen))
        print(
            f"{'ok  ' if holds else 'FAIL'} {number:>2} {what} ({time.monotonic() - started:.0f} s)\n        {seen}",
            flush=True,
        )

    def run(self) -> bool:
        """Do the job; True if all behaviours were seen."""
        straight, project = Project.make(self.parent, "straight"), Project.make(self.parent, "project")
        self.look(2, "the bad value never starts", lambda: see_bad_value(project))
        self.look(
            3,
            "settings that train nothing are refused; an axis without effect is named",
            lambda: see_no_effect(project),
        )
        self.look(4, "a failure is told when it happens", lambda: see_failure(project))
        self.look(6, "one Ctrl-C: checkpoints, prompt back, exit 130, nothing left", lambda: see_interrupt(project))
        self.look(8, "an unfinished run can't pass for a finished one", lambda: see_unfinished(project))
        self.look(12, "see it before and while it runs, true after kill -9", lambda: see_status(project))
        self.look(5, "kill -9 of one training harms no other", lambda: see_kill(project))
        code, output = straight.run("-e", "sweep.yaml", "-g", "0")
        expect(code == 0, output)
        self.look(
            7,
            "the same command goes on; the table is that of a sweep left alone",
            lambda: see_resume(project, straight),
        )
        self.look(9, "a longer list runs only the new runs", lambda: see_longer_list(project))
        self.look(10, "the table is honest", lambda: see_table(project))
        self.look(11, "slots don't idle: from END to the next first step under 1.5 s", lambda: measure_idle(straight))
        self.look(1, "a short spec, two commands, no code, nothing outside the project", lambda: see_footprint(project))
        return all(holds for _, _, holds, _ in self.rows)


def see_bad_value(project: Project) -> str:
    """2: a bad value in a list is told with its place, at once, and nothing is made."""
    spec = project.folder / "bad.yaml"
    spec.write_text(SPEC.replace("1e-3]", "1e-3, -1e-3]"))
    started = time.monotonic()
    code, output = project.run("-e", "bad.yaml", "-g", "0")
    took = time.monotonic() - started
    line = SPEC[: SPEC.index("learning_rate")].count("\n") + 1
    expected = f"bad.yaml:{line}:37: learning_rate must be > 0, got -0.001 (3 of 12 runs)\n"
    expect((code, output) == (2, expected), (code, output))
    expect(took < BAD_VALUE_S, f"{took:.2f} s")
    expect(not (project.folder / "logs").exists(), "a folder was made")
    return f"exit 2 after {took:.2f} s: {output.strip()}"


def see_no_effect(project: Project) -> str:
    """3: pairs of settings that train nothing are refused; an axis that changes nothing is reported."""
    pairs = ["learning_starts=3000", "batch_size=2000000", "eval_freq=5000"]
    others = ["max_timesteps", "buffer_size", "max_timesteps"]
    for pair, other in zip(pairs, others, strict=True):
        code, output = project.run("-e", "sweep.yaml", "-o", pair)
        expect(code == 2 and pair.split("=")[0] in output and other in output, (code, output))
    (project.folder / "effect.yaml").write_text(
        "meta_data: {exp_name: effect, imports: [truth_log]}\n"
        "constants: {algorithm_name: ddpg_logged, env_name: Pendulum-v1}\n"
        "variables: {guard: [warn, stop], seed: [1, 2]}\n"
    )
    code, output = project.run("-e", "effect.yaml", "-g", "0", *QUICK)
    expect(code == 0, output)
    sentence = next(line for line in project.read_report("report.md", "effect").splitlines() if "no effect" in line)
    (project.folder / "truth.log").unlink()
    return f"3 pairs refused; {sentence.strip()}"


def see_failure(project: Project) -> str:
    """4: a failing run is told at once and again at the end, with log and command; the others go on."""
    (project.folder / "fail.yaml").write_text(
        SPEC.replace("[1, 2, 3]", "[666, 1]").replace("meta_data:", "meta_data:\n  exp_name: fail")
    )
    code, output = project.run("-e", "fail.yaml", "-g", "0", "-o", "learning_rate=1e-3", *QUICK)
    lines = output.splitlines()
    told = next(index for index, line in enumerate(lines) if line.startswith("FAILED"))
    expect(code == 1 and "RuntimeError: this seed is cursed" in lines[told], output)
    expect(any(line.startswith("done") for line in lines[told:]), "it was told only after the others had ended")
    again = next(line for line in lines if "again: " in line).split("again: ")[1]
    log = next(line for line in lines if "log: " in line).split("log: ")[1]
    expect((project.folder / log).exists(), log)
    second_code, second = project.run(*shlex.split(again)[2:])
    expect(second_code == 1 and "cursed" in second, second)
    table = project.read_report("report.md", "fail")
    expect("error" in table and "666" in table, table)
    (project.folder / "truth.log").unlink(missing_ok=True)
    return f"exit 1; {lines[told]}"


def see_interrupt(project: Project) -> str:
    """6: one Ctrl-C ends the sweep cleanly and says how to go on."""
    process = project.start("-e", "sweep.yaml", "-g", "0")
    project.wait_for(lambda: len(list(project.folder.glob("logs/sweep/*/exit.json"))) >= 2, process)
    project.wait_for(lambda: has_two_under_way(project), process)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    took = time.monotonic() - started
    expect(process.returncode == 130, (process.returncode, output))
    expect(took < PROMPT_BACK_S, f"the prompt came back after {took:.1f} s")
    expect(not project.list_processes(), "processes are left")
    stopped = [line for line in output.splitlines() if line.startswith("stopped")]
    last = next(line for line in output.splitlines() if "not started" in line)
    expect(len(stopped) == 2 and all(re.search(r"at step [\d,]+", line) for line in stopped), output)
    return f"exit 130 after {took:.1f} s; {'; '.join(stopped)}; {last}"


def has_two_under_way(project: Project) -> bool:
    """Tell whether two runs are well on their way at the same time."""
    running = [run for run in find_runs(project.folder / "logs/sweep") if run.status().state is State.RUNNING]
    return len([run for run in running if read_progress(run).step >= UNDER_WAY]) == 2


def see_unfinished(project: Project) -> str:
    """8: report and files call what is unfinished unfinished."""
    report = project.read_report("report.md")
    expect(re.search(r"[0-2] of 3 finished", report) is not None, report[:2000])
    summaries = len(list(project.folder.glob("logs/sweep/*/summary.json")))
    finished = len(list(project.folder.glob("logs/sweep/*/exit.json")))
    ends = sum(project.count_truth()["END"].values())
    expect(summaries == finished == ends, (summaries, finished, ends))
    return f"{finished} runs have a summary, an exit.json and an END each; the report says so"


def see_status(project: Project) -> str:
    """12: the dry run tells what is done; `status` from another terminal is true after a kill -9."""
    code, output = project.run("-e", "sweep.yaml", "-n")
    expect(code == 0 and "STOPPED" in output and "DONE" in output and "PENDING" in output, output)
    process = project.start("-e", "sweep.yaml", "-g", "0")

    def read() -> Counter[str]:
        return Counter(row["status"] for row in project.read_status())

    project.wait_for(lambda: has_two_under_way(project), process)
    running = read()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + PROMPT_BACK_S
    while project.list_processes():
        expect(time.monotonic() < deadline, "processes outlived the runner by 5 s")
        time.sleep(0.05)
    after = read()
    expect(after["RUNNING"] == 0 and after["DONE"] == running["DONE"], (running, after))
    return f"while running {dict(running)}; after kill -9 of the runner {dict(after)}"


def is_training(pid: int) -> bool:
    """Tell whether a process trains: it was forked and is called so, or its command is `train.py` with a config."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    forked = Path(f"/proc/{pid}/comm").read_bytes().startswith(b"train ")
    return forked or (b"train.py" in words and b"-e" in words)


def see_kill(project: Project) -> str:
    """5: a training killed by -9 is resumed in the same launch, the others don't notice, the exit code is true."""
    process = project.start("-e", "sweep.yaml", "-g", "0")
    starts = len(project.read_truth())
    project.wait_for(lambda: len(project.read_truth()) >= starts + 2, process)
    victim = next(pid for pid in project.list_processes() if is_training(pid))
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    expect(process.returncode == 0, (process.returncode, output))
    expect("(signal)" in output and "9 done" in output, output)
    return next(line for line in output.splitlines() if "(signal)" in line)


def see_resume(project: Project, straight: Project) -> str:
    """7: after all that, each run has exactly one END, and the table equals that of a sweep never interrupted."""
    code, output = project.run("-e", "sweep.yaml", "-g", "0")
    expect(code == 0 and "9 done" in output, (code, output))
    truth = project.count_truth()
    expect(len(truth["END"]) == 9 and set(truth["END"].values()) == {1}, truth)
    same = project.read_report("returns.csv") == straight.read_report("returns.csv")
    expect(same, "returns.csv differs from that of the sweep left alone")
    starts = sum(truth["START"].values())
    return f"9 runs, {starts} STARTs, one END each; returns.csv equals the straight sweep's byte for byte"


def see_longer_list(project: Project) -> str:
    """9: a seed added runs three new runs."""
    spec = project.folder / "sweep.yaml"
    spec.write_text(SPEC.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
    code, output = project.run("-e", "sweep.yaml", "-g", "0")
    expect(code == 0 and "12 runs: 9 done, 3 to run" in output, (code, output))
    truth = project.count_truth()
    expect(len(truth["END"]) == 12 and set(truth["END"].values()) == {1}, truth)
    code, failed = project.run("-e", "fail.yaml", "-g", "0", "-o", "learning_rate=1e-3", *QUICK)
    expect(code == 1 and "failed before" in failed and "--rerun failed" in failed, failed)
    return "12 runs: 9 done, 3 to run; a failed run is named and left"


def see_table(project: Project) -> str:
    """10: finished of planned, interval, seeds and ids; a dash for a failed arm; pictures are what they are called."""
    report = project.read_report("report.md")
    for wanted in ("4 of 4", "95 %", "IQM", "5 seeds"):
        expect(wanted in report, f"{wanted!r} is not in report.md")
    rows = project.read_report("returns.csv")
    ids = [path.name.rpartition("__")[2] for path in project.folder.glob("logs/sweep/*__*")]
    expect(all(run_id in rows for run_id in ids), "a run's id is not in returns.csv")
    pictures = list(project.folder.glob("logs/*/report/*.png"))
    expect(all(path.read_bytes().startswith(b"\x89PNG") for path in pictures) and len(pictures) > 2, pictures)
    failed = project.read_report("report.md", "fail")
    expect(re.search(r"\|\s*[-\u2013\u2014]\s*\|", failed) is not None, failed[:1500])
    return f"intervals, seeds, ids of {len(ids)} runs; {len(pictures)} PNGs"


def measure_idle(project: Project) -> str:
    """11: END of one run to the START of the next on the same slot, in seconds."""
    times = sorted((float(line.split()[0]), line.split()[1]) for line in project.read_truth())
    ends = [moment for moment, word in times if word == "END"]
    starts = [moment for moment, word in times if word == "START"][2:]
    gaps = sorted(start - end for start, end in zip(starts, ends, strict=False))
    median = gaps[len(gaps) // 2]
    expect(median < IDLE_S, f"median {median:.2f} s, longest {gaps[-1]:.2f} s")
    return f"median {median:.2f} s, longest {gaps[-1]:.2f} s"


def see_footprint(project: Project) -> str:
    """1: the spec is short, and nothing is written outside the project."""
    lines = len(SPEC.splitlines())
    expect(lines <= 12, f"{lines} lines")
    written = [str(path.relative_to(project.home)) for path in project.home.rglob("*")]
    expect(not written, f"written to the home folder: {written}")
    return f"{lines} lines; the home folder is empty after {len(project.launches)} launches"


def main(words: Sequence[str] | None = None) -> int:
    """Do the job and give 0 if every behaviour was seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.newcomer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="newcomer_") as folder:
        done = Job(Path(folder)).run()
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
