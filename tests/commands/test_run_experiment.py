"""The command as a user types it."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiment.cli import main
from experiment.devices import Gpu
from experiment.loader import load_yaml
from run_experiment import build_config

ROOT = Path(__file__).parents[2]
RUNNER = str(ROOT / "run_experiment.py")
DDPG = (
    "constants: {algorithm_name: ddpg, env_name: Pendulum-v1, max_timesteps: 40, learning_starts: 10, batch_size: 8}\n"
)


def run(
    folder: Path, *words: str, expect: int = 0, limits: Sequence[tuple[int, int]] = ()
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for name, value in limits:
            resource.setrlimit(name, (value, value))

    answer = subprocess.run(
        [sys.executable, RUNNER, *words], cwd=folder, capture_output=True, text=True, timeout=240, preexec_fn=limit
    )
    assert answer.returncode == expect, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


def write_work(folder: Path, code: str, variables: str = "index: [0, 1, 2]") -> None:
    (folder / "work.py").write_text(code)
    (folder / "spec.yaml").write_text(f"meta_data: {{script_path: work.py}}\nvariables:\n  {variables}\n")


def read_endings(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("logs/*/*/attempts/*/exit.json"))]


def test_help_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, RUNNER, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--rerun" in answer.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2


def test_the_runner_never_imports_torch_numpy_or_pandas(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(DDPG)
    code = (
        "import sys; from run_experiment import build_config; from experiment.cli import main;"
        "main(['-e', 'spec.yaml', '-n', '--no-count'], build_config); import experiment.sweep;"
        "print(sorted({'torch', 'numpy', 'pandas', 'gymnasium', 'matplotlib'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_learning_rates_in_the_published_style_reach_train_py_as_floats(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "spec.yaml").write_text(DDPG + "variables:\n  learning_rate: [1e-4, 3e-4, 1e-3]\n")
    shown = run(tmp_path, "-e", "spec.yaml", "-n", "--json")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["settings"]["learning_rate"] for row in rows] == [1e-4, 3e-4, 1e-3]
    assert {row["status"] for row in rows} == {"PENDING"}
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "-j", "2", "--plain")
    for row, rate in zip(rows, [1e-4, 3e-4, 1e-3], strict=True):
        (folder,) = tmp_path.glob(f"logs/spec/*__{row['id']}")
        written = load_yaml(folder / "config.yaml").data["learning_rate"]
        assert isinstance(written, float)
        assert written == rate
        assert json.loads((folder / "exit.json").read_text())["ok"]
    assert (tmp_path / "logs/spec/report/report.html").exists()


def test_the_guides_excerpt_is_read_and_what_it_leaves_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "example.yaml").write_text(
        'meta_data:\n  script_path: "train.py"\nconstants:\n  diffusion: "models.DiffusionRL"\n'
        '  loader: "datasets.VAESequenceDataset"\n  vae_latent_dim: 64\n  online_training: false\n'
        "variables:\n  seed: [100, 200, 300]\n  online_training: [false, true]\n"
        "  rl_learning_rate: [1e-4, 3e-4, 1e-3]\n"
    )
    answer = run(tmp_path, "-e", "example.yaml", "-g", "0", expect=2)
    missing = [f"example.yaml:3:1: the key {key!r} is missing\n" for key in ("env_name", "dataset")]
    assert answer.stderr == "".join(missing)
    assert not (tmp_path / "logs").exists()


def test_a_misspelt_environment_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "spec.yaml").write_text(DDPG.replace("Pendulum-v1", "Pendulm-v1"))
    answer = run(tmp_path, "-e", "spec.yaml", expect=2)
    assert answer.stderr.startswith("spec.yaml:1:45: env_name")
    assert "did you mean 'Pendulum-v1'?" in answer.stderr
    assert not (tmp_path / "logs").exists()


def test_a_bad_value_is_told_with_its_place_and_how_many_runs_have_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "spec.yaml").write_text(DDPG + "variables:\n  learning_rate: [1e-3, -1e-3]\n  seed: [1, 2, 3]\n")
    started = time.monotonic()
    answer = run(tmp_path, "-e", "spec.yaml", expect=2)
    assert answer.stderr == "spec.yaml:3:25: learning_rate must be > 0, got -0.001 (3 of 6 runs)\n"
    assert time.monotonic() - started < 10
    assert not (tmp_path / "logs").exists()


def test_a_failing_child_makes_the_sweep_fail_truthfully(tmp_path: Path) -> None:
    write_work(
        tmp_path, "import sys; config = open(sys.argv[2]).read()\nif 'index: 1' in config: raise ValueError('boom')\n"
    )
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", expect=1)
    assert "FAILED  index=1 (error): ValueError: boom" in answer.stdout
    assert "2 done, 1 failed" in answer.stdout
    again = next(line for line in answer.stdout.splitlines() if "again:" in line).split("again: ")[1]
    assert again.startswith(f"{sys.executable} {RUNNER} -e spec.yaml -g cpu --rerun ")
    second = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", expect=1)
    assert "1 failed before" in second.stdout
    run(tmp_path, *again.split()[2:], "--plain", expect=1)
    assert len(read_endings(tmp_path)) == 4


def test_a_sweep_whose_first_runs_all_fail_alike_is_stopped(tmp_path: Path) -> None:
    write_work(tmp_path, "raise ValueError('boom')", "index: [0, 1, 2, 3, 4, 5, 6]")
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "-j", "1", "--plain", expect=4)
    assert "all failed alike (ValueError: boom)" in answer.stdout
    assert len(read_endings(tmp_path)) == 5
    again = answer.stdout.splitlines()[-1].split("this goes on with all of them: ")[1]
    assert again.endswith(" -j 1 --rerun failed")
    assert len(read_endings(tmp_path)) == 5
    # While nothing is repaired it stops again.
    assert "all failed alike" in run(tmp_path, *again.split()[2:], "--plain", expect=4).stdout
    assert len(read_endings(tmp_path)) == 10
    (tmp_path / "helper.txt").write_text("not code: the version stays")
    code = "import os, sys\nif not os.path.exists('helper.txt'): raise ValueError('boom')\n"
    (tmp_path / "work.py").write_text(code)
    assert "7 done" in run(tmp_path, *again.split()[2:], "--plain").stdout


def test_a_foreign_script_gets_its_config_its_device_and_its_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys\nassert sys.argv[1] == '-e' and sys.argv[3:] == ['-g', '-1'], sys.argv\n"
        "assert os.environ['CUDA_DEVICE_ORDER'] == 'PCI_BUS_ID'\n"
        "assert sys.argv[2] == os.path.relpath(os.environ['GRIDPILOT_RUN_DIR'] + '/config.yaml')\n"
    )
    write_work(tmp_path, code)
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert "work.py is not ours: its settings are passed on unchecked" in answer.stdout


def test_two_launches_that_label_runs_differently_share_them_too(tmp_path: Path) -> None:
    write_work(tmp_path, "open('truth.log', 'a').write('END\\n')", "index: [0, 1, 2, 3, 4, 5]\n  other: [1]")
    words = [sys.executable, RUNNER, "-e", "spec.yaml", "-g", "cpu", "-j", "1", "--plain"]
    runners = [subprocess.Popen([*words, *more], cwd=tmp_path) for more in ([], ["-o", "other=1"])]
    assert [runner.wait(120) for runner in runners] == [0, 0]
    assert (tmp_path / "truth.log").read_text() == "END\n" * 6
    assert len(list(tmp_path.glob("logs/spec/*__*"))) == 6


def test_printing_into_a_closed_pipe_changes_no_exit_code_and_ends_no_sweep(tmp_path: Path) -> None:
    write_work(tmp_path, "0")
    words = [sys.executable, RUNNER, "-e", "spec.yaml", "-g", "cpu", "--plain"]
    runner = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert runner.stdout is not None
    runner.stdout.close()
    assert runner.wait(60) == 0
    assert runner.stderr is not None
    assert runner.stderr.read() == b""
    runner.stderr.close()
    assert [ending["ok"] for ending in read_endings(tmp_path)] == [True] * 3


def test_a_users_own_train_py_is_another_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys; assert '-g' in sys.argv and '--preflight' not in sys.argv")
    (tmp_path / "spec.yaml").write_text("variables: {anything: [1e-5]}\n")
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert "train.py is not ours" in answer.stdout


def test_a_script_that_calls_train_py_trains_a_run_of_its_own(tmp_path: Path) -> None:
    settings = "--algorithm_name ddpg --env_name Pendulum-v1 --max_timesteps 30 --learning_starts 9 --batch_size 8"
    words = [str(ROOT / "train.py"), *settings.split()]
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, *{words!r}]))"
    write_work(tmp_path, code, "index: [0]")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert list(tmp_path.glob("logs/ddpg_Pendulum-v1/ddpg__*/exit.json"))


def test_a_dangling_link_among_the_sources_is_passed_over(tmp_path: Path) -> None:
    write_work(tmp_path, "0")
    (tmp_path / ".#work.py").symlink_to("nobody@nowhere")
    (tmp_path / "gone.py").symlink_to("nowhere.py")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert [ending["ok"] for ending in read_endings(tmp_path)] == [True] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imports: [nope_mod]}\nconstants: {algorithm_name: mine", "'nope_mod' can't be imported: ModuleNotFoundError"),
        (
            "imports: [nope_mod]}\nconstants: {algorithm_name: ddpg, env_name: Pendulum-v1",
            "'nope_mod' can't be imported",
        ),
        ("exp_name: x}\nconstants: {algorithm_name: [ddpg]", "algorithm_name must be text"),
    ],
)
def test_what_can_not_be_imported_or_named_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(f"meta_data: {{{text}}}\n")
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", expect=2)
    assert answer.stderr.startswith("spec.yaml:")
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_train_py_refuses_what_it_can_not_train_before_it_makes_anything(tmp_path: Path) -> None:
    for words in (["--env_name", "Nope-v1"], ["--imports", "foo", "--env_name", "Pendulum-v1"], ["--bacth_size", "3"]):
        answer = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--algorithm_name", "ddpg", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 2, answer.stderr
        assert "Traceback" not in answer.stderr
    assert not (tmp_path / "logs").exists()


def test_two_launches_at_the_same_moment_share_the_work(tmp_path: Path) -> None:
    write_work(tmp_path, "open('truth.log', 'a').write('END\\n')", "index: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]")
    words = [sys.executable, RUNNER, "-e", "spec.yaml", "-g", "cpu", "-j", "2", "--plain"]
    runners = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [runner.communicate(timeout=120)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    assert all("12 done" in output for output in outputs)
    assert (tmp_path / "truth.log").read_text() == "END\n" * 12
    assert all(ending["attempt"] == 1 for ending in read_endings(tmp_path))


def test_a_longer_list_runs_only_the_new_runs(tmp_path: Path) -> None:
    write_work(tmp_path, "open('truth.log', 'a').write('END\\n')", "index: [0, 1]")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    write_work(tmp_path, (tmp_path / "work.py").read_text(), "index: [0, 1, 2]")
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert "3 runs: 2 done, 1 to run" in answer.stdout
    assert (tmp_path / "truth.log").read_text() == "END\n" * 3


def test_a_vanished_gpu_is_exit_code_three_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_work(tmp_path, "0")
    gpus = [Gpu(0, 0, "GPU-0", "A100", 80 * 2**30)]
    assert main(["-e", "spec.yaml", "-g", "1"], build_config, lambda: gpus) == 3
    assert capsys.readouterr().err == "-g 1: there is no GPU 1 here; there are 0 (A100)\n"
    assert not (tmp_path / "logs").exists()


def test_a_gpu_that_dies_under_its_run_ends_the_sweep_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(DDPG + "variables: {seed: [1, 2]}\n")
    gpus = [Gpu(0, 0, "GPU-0", "A100", 80 * 2**30)]
    assert main(["-e", "spec.yaml", "-g", "0", "--plain", "--no-report"], build_config, lambda: gpus) == 3
    assert "device 0 is gone: GPU 0 was asked for, and torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-e", "missing.yaml"], "missing.yaml: there is no such file"),
        (["-e", "spec.yaml", "-o", "nonsense"], "-o takes key=value"),
        (["-e", "spec.yaml", "--only", "index=9"], "index"),
        (["-e", "spec.yaml", "--rerun", "ffff"], "ffff"),
        (["-e", "spec.yaml", "-g", "x"], "-g x"),
        (["-e", "spec.yaml", "-j", "0"], "'0' is not a whole number of at least 1"),
        (["-e", "spec.yaml", "--timeout", "soon"], "'soon' is no duration"),
        (["-e", "spec.yaml", "--log-root", "work.py"], "work.py"),
        (["status", "-e", "spec.yaml", "--rerun", "all"], "status doesn't read --rerun"),
        (["logs", "ffff", "-g", "0"], "logs doesn't read -g"),
        (["status", "-e", "spec.yaml"], "holds no experiment"),
        (["logs", "ffff"], "no run has the id 'ffff'"),
        ([], "give a spec"),
    ],
)
def test_wrong_usage_starts_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    write_work(tmp_path, "0")
    answer = run(tmp_path, *words, expect=2)
    assert message in answer.stderr
    assert not (tmp_path / "logs").exists()


def test_a_missing_script_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("meta_data: {script_path: trian.py}\nvariables: {seed: [1]}\n")
    answer = run(tmp_path, "-e", "spec.yaml", expect=2)
    assert answer.stderr.startswith("spec.yaml:1:26: ")
    assert "trian.py" in answer.stderr


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    settings = "max_timesteps: 400, learning_starts: 50, batch_size: 8, save_freq: 100, log_freq: 50, keep_replay: true"
    (tmp_path / "spec.yaml").write_text(
        f"constants: {{algorithm_name: ddpg, env_name: Pendulum-v1, hidden_dims: [64, 64], {settings}}}\n"
    )
    # A limit on the size of files fails as a full disk does, in every process, checkpoints first.
    limit = [(resource.RLIMIT_FSIZE, 60_000)]
    answer = run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", "--no-report", expect=1, limits=limit)
    assert "FAILED  ddpg (error)" in answer.stdout
    assert "File too large" in answer.stdout
    (run_dir,) = tmp_path.glob("logs/spec/ddpg__*")
    assert not list(run_dir.rglob("*.tmp"))
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] in (40, 50)
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", "--no-report", "--rerun", "failed")
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 400


def test_status_tells_from_another_terminal(tmp_path: Path) -> None:
    write_work(tmp_path, "import sys\nif 'index: 1' in open(sys.argv[2]).read(): sys.exit('broken')\n")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", expect=1)
    rows = [json.loads(line) for line in run(tmp_path, "status", "-e", "spec.yaml", "--json").stdout.splitlines()]
    assert [row["status"] for row in rows] == ["DONE", "FAILED", "DONE"]
    text = run(tmp_path, "status", "-e", "logs/spec").stdout
    assert "2 DONE, 1 FAILED" in text
    assert "broken" in text
    assert "broken" in run(tmp_path, "logs", rows[1]["id"][:6]).stdout


def test_stop_lets_runs_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nmark = os.environ['GRIDPILOT_RUN_DIR'] + '/seen'\n"
        "if os.path.exists(mark): sys.exit(0)\nopen(mark, 'w').close()\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint('ready', flush=True)\nsignal.pause()\n"
    )
    write_work(tmp_path, code)
    words = [sys.executable, RUNNER, "-e", "spec.yaml", "-g", "cpu", "-j", "1", "--plain"]
    runner = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any("ready" in path.read_text() for path in tmp_path.glob("logs/spec/*/attempts/001/console.log")):
        assert time.monotonic() < deadline
        try:
            runner.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    assert "STOPPED" in run(tmp_path, "stop", "-e", "spec.yaml").stdout
    output, _ = runner.communicate(timeout=60)
    assert runner.returncode == 75
    assert "1 stopped, 2 not started; the same command goes on" in output
    (tmp_path / "work.py").write_text("0")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")


def test_the_report_is_made_by_the_runners_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec.yaml").write_text(DDPG)
    for folder in (tmp_path, tmp_path / "elsewhere"):
        (folder / "analysis").mkdir(parents=True)
        (folder / "analysis/__init__.py").write_text("raise SystemExit('another package')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain")
    assert (tmp_path / "logs/spec/report/report.html").exists()


def test_overrides_make_a_spec_file_that_says_what_was_run(tmp_path: Path) -> None:
    write_work(tmp_path, "0")
    run(tmp_path, "-e", "spec.yaml", "-g", "cpu", "--plain", "-o", "index=[7, 8]", "-o", "note='1e-4'")
    written = tmp_path / "again.yaml"
    written.write_text((tmp_path / "logs/spec/spec.yaml").read_text())
    first = run(tmp_path, "-e", "spec.yaml", "-o", "index=[7, 8]", "-o", "note='1e-4'", "-n", "--json").stdout
    second = run(tmp_path, "-e", "again.yaml", "-n", "--json").stdout
    assert first == second
    assert '"status": "DONE"' in first


def test_a_hundred_thousand_combinations_are_shown_with_flat_memory(tmp_path: Path) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    seeds, taus = list(range(1000)), [index / 1000 for index in range(1, 101)]
    (tmp_path / "spec.yaml").write_text(f"{DDPG}variables:\n  seed: {seeds}\n  tau: {taus}\n")
    code = (
        "import re, sys; from run_experiment import build_config; from experiment.cli import main;"
        "code = main(['-e', 'spec.yaml', '-n', '--no-count'], build_config);"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024); sys.exit(code)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[-2].startswith("100000 runs: 100000 PENDING")
    assert int(lines[-1]) < 120
