"""The loops of the documents run against AirSimEnv-v42, changed only where they could never have run."""

from __future__ import annotations

import hashlib
import re
import runpy
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from envs.classic_gym import ClassicEnv
from envs.drone.pilots import fly_straight
from rl.vmamba_td3.config import VMambaTD3Config

FOLDER = Path(__file__).parent
ORIGINALS = {
    "train_vmamba_td3_advanced.py": "7a1ecd2e0b0dd5f2518997a2b53488db8b8f5eeff8bf0ecfab34a6b2f145bdca",
    "evaluate_vmamba_td3.py": "3f6ed324cc34f25851ef68bd09225b91733bb6c77d4ba4d25c9b9cee0a8f5e36",
}
"""SHA-256 of the scripts as the documents have them."""


class Replay:
    """Keeps what is added, as it comes."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    @property
    def size(self) -> int:
        return len(self.rows)

    def add(self, base: Any, depth: Any, action: Any, reward: Any, next_base: Any, next_depth: Any, done: Any) -> None:
        self.rows.append((base, depth, action, reward, next_base, next_depth, done))


class VMambaTD3Agent:
    """Has the documented interface, turns to the goal and flies there, and learns nothing."""

    made: list[VMambaTD3Agent]

    def __init__(self, env: ClassicEnv, initial_obs: dict[str, Any], args: Namespace) -> None:
        assert initial_obs in env.observation_space
        self.args, self.replay_buffer = args, Replay()
        self.progress: list[float] = []
        self.noise: list[bool] = []
        self.loaded: list[str] = []
        self.made.append(self)

    def select_action(self, base_seq: Any, depth_seq: Any, noise: bool = True) -> Any:
        assert base_seq.shape == (4, 10)
        assert depth_seq.shape == (4, 1, 64, 64)
        self.noise.append(noise)
        return fly_straight({"base": base_seq})

    def train(self, progress_ratio: float = 0.0) -> dict[str, float] | None:
        self.progress.append(progress_ratio)
        return None if self.replay_buffer.size < 30 else {"actor_loss": -1.0, "critic_loss": 2.0}

    def save(self, path: str) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()

    def load(self, path: str) -> None:
        self.loaded.append(path)


@pytest.fixture
def args() -> dict[str, Any]:
    """Give what the scripts find in their settings."""
    return {
        **VMambaTD3Config(algorithm_name="vmamba_td3").model_dump(),
        "max_timesteps": 60,
        "learning_starts": 20,
        "save_interval": 25,
    }


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: dict[str, Any]) -> list[VMambaTD3Agent]:
    """Put modules that the scripts import into place, work in an empty folder, and give the agents that are made."""
    monkeypatch.chdir(tmp_path)
    VMambaTD3Agent.made = []
    contents: dict[str, dict[str, Any]] = {
        "config": {"get_config": lambda: Namespace(**args)},
        "algorithm": {},
        "algorithm.vmamba_td3": {},
        "algorithm.vmamba_td3.vmamba_td3": {"VMambaTD3Agent": VMambaTD3Agent, "make_agent": VMambaTD3Agent},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return VMambaTD3Agent.made


def test_the_training_loop_of_the_documents_runs(
    agents: list[VMambaTD3Agent], capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(FOLDER / "train_vmamba_td3_advanced.py"), run_name="__main__")
    (agent,) = agents
    assert (agent.args.vmamba_hidden_dim, agent.args.hidden_dim) == (96, 512)
    assert len(agent.replay_buffer.rows) == 60
    assert agent.progress == [step / 60 for step in range(20, 60)]
    assert sorted(path.name for path in Path("models").iterdir()) == [f"vmamba_td3_{n}.pth" for n in (0, 25, 50)]
    assert capsys.readouterr().out == ""  # the first step that is a multiple of 1,000 has no metrics yet


def test_the_training_loop_goes_on_where_it_was_and_begins_anew_at_an_end(
    agents: list[VMambaTD3Agent], args: dict[str, Any]
) -> None:
    args.update(max_timesteps=320, save_interval=1_000)
    runpy.run_path(str(FOLDER / "train_vmamba_td3_advanced.py"), run_name="__main__")
    (agent,) = agents
    rows = agent.replay_buffer.rows
    ends = [index for index, row in enumerate(rows) if row[6] == 1.0]
    assert 0 < len(ends) < 20
    for index, (before, after) in enumerate(pairwise(rows)):
        goes_on = np.array_equal(before[4], after[0]) and np.array_equal(before[5], after[1])
        assert goes_on != (index in ends), index
    assert all(isinstance(row[3], float) and row[6] in (0.0, 1.0) for row in rows)


def test_the_evaluation_of_the_documents_runs(agents: list[VMambaTD3Agent], capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(FOLDER / "evaluate_vmamba_td3.py"), run_name="document")
    returns, lengths = script["evaluate_model"]("models/vmamba_td3_final.pth", num_episodes=2)
    (agent,) = agents
    assert agent.loaded == ["models/vmamba_td3_final.pth"]
    assert not any(agent.noise)
    assert len(agent.noise) == sum(lengths)
    assert all(1 < length <= 300 for length in lengths)
    printed = capsys.readouterr().out
    assert f"Episode 2: Reward = {returns[1]:.2f}, Length = {lengths[1]}" in printed
    assert f"Mean Length: {np.mean(lengths):.2f}" in printed


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_is_not_marked_is_as_the_documents_have_it(name: str) -> None:
    lines = []
    for line in (FOLDER / name).read_text().splitlines(keepends=True):
        if was := re.search(r"^( *).*  # changed: was `(.*)`", line):
            lines.append(f"{was[1]}{was[2]}\n")
        elif "  # added: " not in line:
            lines.append(line)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == ORIGINALS[name]
