"""The loops of the documents run against AirSimEnv-v42, changed only where they could never have run."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from envs.drone.pilots import fly_straight
from experiment.assignments import parse_assignments
from experiment.problems import Problem
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.published import SequenceReplayBuffer, VMambaTD3Agent
from train import read_flags

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TRAIN, EVALUATE = FOLDER / "train_vmamba_td3_advanced.py", FOLDER / "evaluate_vmamba_td3.py"
LAUNCH, SHOW = FOLDER / "train_vmamba_td3_basic.py", FOLDER / "visualize_vmamba_td3.py"
ORIGINALS = {
    TRAIN: "7a1ecd2e0b0dd5f2518997a2b53488db8b8f5eeff8bf0ecfab34a6b2f145bdca",
    EVALUATE: "3f6ed324cc34f25851ef68bd09225b91733bb6c77d4ba4d25c9b9cee0a8f5e36",
    LAUNCH: "806d1ff3fb5d6633d3d8f6dd90d7157206511e43ca26f3e10c6c17acbada9514",
    SHOW: "c5699005577074603de2b9e3e1f0c6c66dad5f380ebfc087faa3fca386f79619",
}
"""SHA-256 of the scripts as the documents have them."""
SMALL: dict[str, Any] = {
    "vmamba_hidden_dim": 8,
    "vmamba_num_vss_blocks": [1, 1, 1, 1],
    "feature_dim": 16,
    "state_feature_dim": 16,
    "hidden_dim": 16,
    "batch_size": 4,
}
LAUNCHED = SMALL | {
    "max_timesteps": 20,
    "seq_len": 2,
    "learning_starts": 14,
    "eval_freq": 0,
    "num_final_eval": 0,
    "device": "cpu",
}
"""What the launched training is made small by."""
Call = Callable[..., Any]


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Give what the scripts find in the settings of their user, whose folder is empty."""
    monkeypatch.chdir(tmp_path)
    settings = VMambaTD3Config(algorithm_name="vmamba_td3").model_dump() | SMALL
    settings |= {"max_timesteps": 24, "learning_starts": 16, "save_interval": 10}
    config = ModuleType("config")
    vars(config)["get_config"] = lambda: Namespace(**settings)
    monkeypatch.setitem(sys.modules, "config", config)
    return settings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Give what the scripts call of the agent, as (arguments, named ones, result) in turn."""
    noted: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}

    def listen(owner: type, name: str, call: Call) -> None:
        heard = noted.setdefault(name, [])

        def note(self: Any, *words: Any, **named: Any) -> Any:
            result = call(self, *words, **named)
            heard.append((words, named, result))
            return result

        monkeypatch.setattr(owner, name, note)

    for name in ("select_action", "train", "save", "load"):
        listen(VMambaTD3Agent, name, getattr(VMambaTD3Agent, name))
    listen(SequenceReplayBuffer, "add", SequenceReplayBuffer.add)
    return noted


def open_script(path: Path) -> dict[str, Any]:
    """Give a script's functions."""
    return runpy.run_path(str(path), run_name="document")


def run_small_training() -> None:
    """Run the documents' training loop with sizes that a test has the time for; its own are changed by the user's."""
    script = open_script(TRAIN)
    script["custom_training_loop"].__globals__["get_custom_config"] = sys.modules["config"].get_config
    script["custom_training_loop"]()


def test_the_training_loop_of_the_documents_runs(args: dict[str, Any], calls: dict[str, list[Any]]) -> None:
    run_small_training()
    assert len(calls["select_action"]) == len(calls["add"]) == 24
    assert [named["progress_ratio"] for _, named, _ in calls["train"]] == [step / 24 for step in range(16, 24)]
    assert all(result["critic_loss"] > 0 for *_, result in calls["train"])
    assert sorted(path.name for path in Path("models").iterdir()) == [f"vmamba_td3_{n}.pth" for n in (0, 10, 20)]


def test_training_that_has_no_metrics_yet_prints_none(
    args: dict[str, Any], calls: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    args.update(max_timesteps=6, learning_starts=0)
    run_small_training()
    assert [result is None for *_, result in calls["train"]] == [True] * 3 + [False] * 3
    assert capsys.readouterr().out == ""


def test_the_training_loop_goes_on_where_it_was_and_begins_anew_at_an_end(
    args: dict[str, Any], calls: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VMambaTD3Agent, "select_action", lambda self, base, depth: fly_straight({"base": base}))
    args.update(max_timesteps=320, learning_starts=319)
    run_small_training()
    rows = [words for words, _, _ in calls["add"]]
    ends = [index for index, row in enumerate(rows) if row[6] == 1.0]
    assert 0 < len(ends) < 20
    for index, (before, after) in enumerate(pairwise(rows)):
        goes_on = np.array_equal(before[4], after[0]) and np.array_equal(before[5], after[1])
        assert goes_on != (index in ends), index
    assert all(isinstance(row[3], float) and row[6] in (0.0, 1.0) for row in rows)


def test_the_evaluation_of_the_documents_runs(
    args: dict[str, Any],
    calls: dict[str, list[Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_small_training()
    calls["select_action"].clear()
    returns, lengths = open_script(EVALUATE)["evaluate_model"]("models/vmamba_td3_20.pth", num_episodes=1)
    assert [words for words, _, _ in calls["load"]] == [("models/vmamba_td3_20.pth",)]
    assert len(calls["select_action"]) == sum(lengths)
    assert all(named == {"noise": False} for _, named, _ in calls["select_action"])
    assert len(returns) == 1 < lengths[0] <= 300
    printed = capsys.readouterr().out
    assert f"Episode 1: Reward = {returns[0]:.2f}, Length = {lengths[0]}" in printed
    assert f"Mean Length: {np.mean(lengths):.2f}" in printed


def test_the_documents_own_settings_are_settings_of_ours(args: dict[str, Any]) -> None:
    settings = vars(open_script(TRAIN)["get_custom_config"]())
    assert (settings["vmamba_hidden_dim"], settings["hidden_dim"]) == (96, 512)
    del settings["save_interval"]
    VMambaTD3Config.from_settings(settings)


@pytest.mark.slow
def test_the_training_loop_runs_in_the_documents_own_size(args: dict[str, Any], calls: dict[str, list[Any]]) -> None:
    args.update(max_timesteps=12, learning_starts=8, batch_size=2, save_interval=1_000)
    runpy.run_path(str(TRAIN), run_name="__main__")
    assert all(result["critic_loss"] > 0 for *_, result in calls["train"])
    assert [path.name for path in Path("models").iterdir()] == ["vmamba_td3_0.pth"]
    shutil.rmtree("models")  # 1.4 GB


def test_the_launching_script_starts_a_training_that_our_command_line_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    run = subprocess.run

    def launch(command: list[str], check: bool) -> Any:
        asked.append(command)
        return run(make_small(command), check=check, cwd=tmp_path)

    monkeypatch.setattr(subprocess, "run", launch)
    open_script(LAUNCH)["main"]()
    ((python, script, *words),) = asked
    assert (python, script) == (sys.executable, "train.py")
    settings = read_assignments(words)
    assert (settings["vmamba_num_vss_blocks"], settings["max_timesteps"]) == ([2, 2, 4, 2], 200_000)
    config = VMambaTD3Config.from_settings(settings)
    assert (config.policy_freq, config.actor_lr, config.env_name) == (2, 5e-4, "AirSimEnv-v42")
    (folder,) = tmp_path.glob("logs/*/*__*")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["parameters"]["actor"] > 0, (folder / "exit.json").exists()) == (True, True)
    assert "开始VMamba-TD3基础训练" in capfd.readouterr().out


def read_assignments(words: list[str]) -> dict[str, Any]:
    """Give the settings that the flags of a command line make."""
    problems: list[Problem] = []
    given = parse_assignments("flags", read_flags(words), problems)
    assert not problems
    return {key: setting.value for key, setting in given.items()}


def make_small(command: list[str]) -> list[str]:
    """Give a command for our train.py with its sizes replaced by `LAUNCHED`."""
    python, script, *words = command
    settings = read_assignments(words) | LAUNCHED
    flags = [str(part) for key, value in settings.items() for part in (f"--{key}", *np.ravel(value).tolist())]
    return [python, str(ROOT / script), *flags]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """Give what a script shows: the figures, and the heat maps that it asks seaborn for, which we don't depend on."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    seen: dict[str, list[Any]] = {"heat": [], "figures": []}
    seaborn = ModuleType("seaborn")
    vars(seaborn)["heatmap"] = lambda values, **options: seen["heat"].append(values)
    monkeypatch.setitem(sys.modules, "seaborn", seaborn)
    monkeypatch.setattr(plt, "show", lambda: seen["figures"].append(plt.gcf()))
    yield seen
    plt.close("all")


def test_the_pictures_of_the_documents_are_drawn(
    args: dict[str, Any], calls: dict[str, list[Any]], shown: dict[str, list[Any]]
) -> None:
    args.update(feature_dim=128)  # the script counts on it
    run_small_training()
    script = open_script(SHOW)
    script["visualize_attention_weights"]("models/vmamba_td3_20.pth")
    script["visualize_attention_weights"]("models/vmamba_td3_20.pth")
    first, again = shown["heat"]
    assert first.shape == (args["vmamba_num_heads"], args["seq_len"])
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(first.mean(), 1 / args["seq_len"], atol=1e-5)
    assert again.shape == first.shape
    script["visualize_feature_evolution"]("models/vmamba_td3_20.pth", num_steps=3)
    panels = shown["figures"][-1].axes
    assert [panel.get_title() for panel in panels] == [
        f"{name} Features Evolution" for name in ("Visual", "State", "Context")
    ]
    for panel in panels:
        assert [line.get_ydata().shape for line in panel.lines] == [(3,)] * 10
        assert all(np.isfinite(line.get_ydata()).all() for line in panel.lines)


@pytest.mark.parametrize("path", ORIGINALS, ids=lambda path: path.stem)
def test_what_is_not_marked_is_as_the_documents_have_it(path: Path) -> None:
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        if was := re.search(r"^( *).*  # changed: was `(.*)`", line):
            lines.append(f"{was[1]}{was[2]}\n")
        elif "  # added: " not in line:
            lines.append(line)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == ORIGINALS[path]
