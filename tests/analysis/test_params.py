"""The counts of the issue, from the command that users type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import params
from analysis.params import list_sizes, tabulate_claims
from analysis.sizing import Measurement

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "analysis.params"]
DEFAULTS, PLAIN = "patch 16, LayerScale (defaults)", "patch 4, no LayerScale"
ENCODERS = {
    ("ultra_light", PLAIN): 3_432_864,
    ("light", PLAIN): 15_082_816,
    ("standard", PLAIN): 37_948_192,
    ("heavy", PLAIN): 79_246_720,
    ("ultra_light", DEFAULTS): 3_442_464,
    ("light", DEFAULTS): 15_103_040,
    ("standard", DEFAULTS): 37_980_064,
    ("heavy", DEFAULTS): 79_292_288,
    ("VMambaT", "head of 1,000 classes"): 22_893_448,
    ("VMambaS", "head of 1,000 classes"): 44_417_416,
    ("VMambaB", "head of 1,000 classes"): 76_254_056,
    ("VMambaT", "no head"): 22_124_448,
    ("VMambaS", "no head"): 43_648_416,
    ("VMambaB", "no head"): 75_229_056,
}
CLAIMS = {
    "ultra_light": 500_000,
    "light": 2_000_000,
    "standard": 8_000_000,
    "heavy": 20_000_000,
    "VMambaT": 22_000_000,
    "VMambaS": 44_000_000,
    "VMambaB": 75_000_000,
}


def read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["parameters"]
    return rows


def test_the_command_counts_what_it_should_and_sets_the_claims_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    command = [*COMMAND, "--algorithm", "vmamba_td3", "--json", str(file)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = read_rows(file)
    assert {(row["model"], row["configuration"]): row["visual_encoder"] for row in rows} == ENCODERS
    assert {row["model"]: row["claimed"] for row in rows} == CLAIMS
    lines = answer.stdout.splitlines()
    for (model, configuration), count in ENCODERS.items():
        assert any(f"`{model}` | {configuration} |" in line and f"| {count:,} |" in line for line in lines)
    agents = {row["model"]: (row["agent"], row["with_targets"]) for row in rows if row["configuration"] == DEFAULTS}
    assert agents["light"] == (32_439_697, 64_879_394)
    assert agents["heavy"] == (207_061_777, 414_123_554)


def test_another_frame_or_batch_changes_no_count() -> None:
    assert list_sizes((128, 100)) == list_sizes((64, 64))


def test_an_unknown_algorithm_is_refused_with_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        params.main(["--algorithm", "vmamba_td"])
    assert stopped.value.code == 2
    said = "no sizes are known of 'vmamba_td'; did you mean 'vmamba_td3'?; known: vmamba_td3, tdmpc2"
    assert said in capsys.readouterr().err


def test_an_option_that_belongs_to_the_other_algorithm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["vmamba_td3", "--obs-dim", "3", "--tasks", "2"], "--obs-dim, --tasks: only for --algorithm tdmpc2"),
        (["tdmpc2", "--frame", "64", "64"], "--frame: only for --algorithm vmamba_td3"),
        (["tdmpc2", "--measure", "--batch", "8"], "--measure, --batch: only for --algorithm vmamba_td3"),
    ):
        with pytest.raises(SystemExit) as stopped:
            params.main(["--algorithm", *words])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_claims_of_published_models_are_told_apart_by_their_heads_and_presets_match_nothing() -> None:
    frame = tabulate_claims(list_sizes()).frame.set_index("model")
    assert frame.loc["VMambaT", "could_be"] == frame.loc["VMambaB", "could_be"] == "no head"
    assert list(frame["could_be"])[:4] == ["none"] * 4
    assert list(frame["closest_count"])[:4] == [658_784, 2_909_888, 7_294_048, 15_090_304]


def test_measured_times_stand_in_their_rows_and_what_failed_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def pretend(_: str, settings: dict[str, Any], frame: tuple[int, int]) -> Measurement:
        assert settings["batch_size"] == 3
        assert frame == (64, 64)
        wide = settings["vmamba_hidden_dim"] == 128
        return Measurement(reason="out of memory") if wide else Measurement(settings["vmamba_patch_size"] * 100.0, 1)

    monkeypatch.setattr(params, "measure", pretend)
    file = tmp_path / "sizes.json"
    assert params.main(["--algorithm", "vmamba_td3", "--measure", "--batch", "3", "--json", str(file)]) == 0
    times = {(row["model"], row["configuration"]): row["ms_per_update"] for row in read_rows(file)}
    assert times[("light", DEFAULTS)] == 1_600
    assert times[("light", PLAIN)] == 400
    assert times[("heavy", PLAIN)] is times[("VMambaT", "no head")] is None
    out = capsys.readouterr().out
    assert "batches of 3 windows" in out
    assert f"Not measured: heavy, {PLAIN}: out of memory." in out


def test_a_file_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert params.main(["--algorithm", "vmamba_td3", "--json", str(tmp_path / "no" / "where.json")]) == 1
    assert "where.json was not written" in capsys.readouterr().err


def test_it_loads_no_torch() -> None:
    code = "import sys, analysis.params; print([name for name in ('torch', 'gymnasium') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
