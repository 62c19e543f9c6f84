"""Policies that look at windows: traces are of the episodes that an evaluation runs, and exported files act alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import play
from analysis.traces import read_trace
from envs.record import Policy
from experiment.files import read_json
from playing.exporting import act_in, list_inputs
from playing.tracing import name_base, trace_episode
from rl.vmamba_td3.trainer import VMambaTD3Trainer
from tests.rl.vmamba_td3.conftest import SMALL, small_vmamba  # noqa: F401
from training.evaluation import report_seeds
from training.protocol import NotOneModuleError

ROOT = Path(__file__).parents[2]
Build = Callable[..., VMambaTD3Trainer]
TINY = SMALL | {
    "seq_len": 3,
    "max_timesteps": 20,
    "eval_env_kwargs": {"max_episode_steps": 12},
    "eval_freq": 0,
    "num_final_eval": 2,
    "device": "cpu",
}


def train(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "settings.yaml").write_text(json.dumps(settings))
    command = [sys.executable, str(ROOT / "train.py"), "-e", "settings.yaml", "--exp-name", "tiny"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (run,) = (folder / "logs" / "tiny").glob("*__*")
    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated for 12 steps, and whose windows have another length than the environment's own."""
    return train(tmp_path_factory.mktemp("trained"), TINY)


def test_a_trace_is_of_the_episodes_of_the_final_evaluation(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.npz"
    assert play.main(["trace", str(run_folder), "--episodes", "2", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    trace = read_trace(out)
    final = (read_json(run_folder / "summary.json") or {})["final_eval"]
    assert [episode["return"] for episode in trace.header["episodes"]] == final["returns"]
    assert [episode["seed"] for episode in trace.header["episodes"]] == list(report_seeds(2))
    assert [episode["distance"] for episode in trace.header["episodes"]] == final["measures"]["distance"]
    assert trace.lengths == final["lengths"] == [12, 12]
    assert trace.attention.shape == (24, 2, 3)
    assert trace.depth.shape == (24, 8, 8)
    assert [part.shape[1] for part in (trace.visual, trace.state, trace.context, trace.values)] == [8, 8, 8, 2]
    np.testing.assert_allclose(trace.attention.sum(-1), 1, atol=1e-6)
    assert trace.reward[:12].sum() == pytest.approx(final["returns"][0])
    assert (trace.header["slides"], trace.header["env_kwargs"]["seq_len"]) == (True, 3)
    assert trace.header["base_names"][0] == "distance to the goal"
    assert "2 episodes, 24 steps, mean return" in printed
    assert "2 heads over 3 frames" in printed


def test_a_trace_goes_into_the_runs_folder_and_replaces_none_unasked(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(run_folder), "--episodes", "1", "--env-kwargs", "max_episode_steps=3"]
    assert play.main(words) == 0
    kept = run_folder / "inside" / "trace.npz"
    assert read_trace(kept).lengths == [3]
    with pytest.raises(SystemExit):
        play.main(words)
    assert "is there already; give another with -o, or --overwrite" in capsys.readouterr().err
    assert play.main([*words, "--checkpoint", "newest", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--episodes", "0"], "--episodes: give 1 to 1,000,000"), (["-o", "a.npy"], "--out a.npy: the file is an .npz")],
)
def test_wrong_usage_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        play.main(["trace", str(run_folder), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_policy_without_attention_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"algorithm_name": "td3", "env_name": "Pendulum-v1", "hidden_dims": [8], "max_timesteps": 20}
    settings |= {"learning_starts": 10, "batch_size": 4, "eval_freq": 0, "num_final_eval": 0, "device": "cpu"}
    run = train(tmp_path, settings)
    assert play.main(["trace", str(run)]) == 2
    assert "the policy of td3 can't be looked into: it attends to no window of frames" in capsys.readouterr().err
    assert not (run / "inside").exists()


@pytest.mark.parametrize("settings", [{}, {"encoder_sharing": "shared", "temporal_scan": "causal"}])
def test_what_is_traced_is_what_the_policy_does(request: pytest.FixtureRequest, settings: dict[str, Any]) -> None:
    build: Build = request.getfixturevalue("small_vmamba")
    trainer = build(**settings)
    for _ in range(12):
        trainer.train_step()
    env = trainer._make_evaluation_env()
    obs, _ = env.reset(seed=3)
    act, look = trainer.begin_acting(), trainer.begin_tracing()
    for _ in range(6):
        row, action = look(obs), act(obs)
        np.testing.assert_array_equal(row["action"], action)
        stream = trainer.agent.find_stream("actor")
        base, depth = (torch.from_numpy(obs[key][None]) for key in ("base", "depth"))
        with torch.no_grad():
            visual, state = stream.visual_encoder(depth[0]), stream.state_encoder(base)
            sequence = stream.mamba.temporal(stream.mamba.fusion(visual[None], state))
            own = trainer.agent.choose(stream(base, depth))
            attention = stream.mamba.cross_attn.get_attention_weights(sequence)
            value = trainer.agent.value(base, depth, torch.zeros(1, 0), own)
        for name, wanted in {"visual": visual[-1], "state": state[0, -1], "attention": attention[0]}.items():
            np.testing.assert_allclose(row[name], wanted.numpy(), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(row["context"], stream(base, depth)[0].detach().numpy(), atol=1e-5)
        assert row["values"][0] == pytest.approx(float(value), abs=1e-5)
        np.testing.assert_array_equal(row["base"], obs["base"][-1])
        np.testing.assert_array_equal(row["depth"], obs["depth"][-1, 0])
        obs, *_ = env.step(action)
    env.close()


class _Jumping:
    """An environment whose windows are moved by two frames."""

    def __init__(self) -> None:
        self.time = 0

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return self._observe(), {}

    def _observe(self) -> dict[str, Any]:
        frames = np.maximum(np.arange(3) - 2 + 2 * self.time, 0)
        return {"depth": frames.astype(np.float32)[:, None, None, None] / 255}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._observe(), 1.0, False, self.time == 3, {}


def test_windows_that_do_not_slide_by_a_frame_are_noticed() -> None:
    env: Any = _Jumping()
    rows, facts, slides = trace_episode(env, lambda obs: {"action": 0.0, "depth": obs["depth"][-1, 0]}, 5)
    assert not slides
    assert facts == {"seed": 5, "return": 3.0, "length": 3, "terminated": False}
    assert [int(row["depth"][0, 0]) for row in rows] == [0, 2, 4]


def test_numbers_of_a_state_have_names_where_they_are_known(request: pytest.FixtureRequest) -> None:
    env = request.getfixturevalue("small_vmamba")()._make_evaluation_env()
    assert name_base(env)[3] == "altitude"
    assert len(name_base(env)) == env.observation_space["base"].shape[1]
    env.close()


def test_a_traced_window_is_as_long_as_the_policys_wherever_it_acts(request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue("small_vmamba")(seq_len=5, eval_env_kwargs={"density": "hard"}).config
    assert config.evaluation_kwargs["seq_len"] == 5
    assert config.evaluation_kwargs["density"] == "hard"


def test_a_policy_of_windows_is_exported_with_an_input_for_each_part(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.pt"
    assert play.main(["export", str(run_folder), "--format", "torchscript", "-o", str(out)]) == 0
    facts = read_json(tmp_path / "policy.pt.json") or {}
    assert list(facts["obs"]) == ["base", "depth"]
    assert facts["obs"]["depth"] == {
        "shape": [3, 1, 8, 8],
        "dtype": "float32",
        "low": 0.0,
        "high": 1.0,
        "name": "depth",
        "takes": "float32, (batch, 3, 1, 8, 8)",
    }
    assert facts["obs"]["base"]["shape"] == [3, 10]
    assert facts["checked"]["observations"] == 512
    assert facts["checked"]["largest_difference"] < 1e-5 < facts["checked"]["tolerance"] == 1e-4


def test_critics_that_see_more_than_who_acts_say_nothing_in_a_trace(request: pytest.FixtureRequest) -> None:
    trainer = request.getfixturevalue("small_vmamba")(asymmetric_critic=True)
    env = trainer._make_evaluation_env()
    assert trainer.config.evaluation_kwargs["privileged"] is False
    obs, _ = env.reset(seed=3)
    row = trainer.begin_tracing()(obs)
    assert row["values"].shape == (0,)
    np.testing.assert_array_equal(row["action"], trainer.begin_acting()(obs))
    env.close()
    assert list_inputs(trainer.build_policy_module()) == ["base", "depth"]


def test_what_a_policy_saw_and_did_is_gathered_by_name(request: pytest.FixtureRequest) -> None:
    trainer = request.getfixturevalue("small_vmamba")()
    env = trainer._make_evaluation_env()
    policy = Policy("DepthNav-v0", {}, {}, lambda env, generator: trainer.begin_acting())
    observed, acted = act_in(env, policy, ["base", "depth"])
    env.close()
    assert {name: part.shape for name, part in observed.items()} == {"base": (512, 2, 10), "depth": (512, 2, 1, 8, 8)}
    act = trainer.begin_acting()
    for number in (0, 100, 511):
        obs = {name: part[number] for name, part in observed.items()}
        np.testing.assert_array_equal(act(obs), acted[number])


def test_products_in_16_bits_are_not_exported_and_it_is_said_why(request: pytest.FixtureRequest) -> None:
    trainer = request.getfixturevalue("small_vmamba")(use_amp=True)
    with pytest.raises(NotOneModuleError, match="with use_amp: true its products are rounded to 16 bits"):
        trainer.build_policy_module()
