"""The table of memory: claims, predictions, measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import memory
from analysis.sizing import Measurement

ROOT = Path(__file__).parents[2]


def read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["memory"]
    return rows


def test_the_command_sets_the_documents_claims_beside_predictions(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    command = [sys.executable, "-m", "analysis.memory", "--algorithm", "vmamba_td3", "--json", str(file)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = read_rows(file)
    claims = {row["preset"]: (row["claimed_gpu_bytes"], row["batch_size"]) for row in rows}
    assert claims == {
        "ultra_light": (2 * 10**9, 256),
        "light": (4 * 10**9, 128),
        "standard": (8 * 10**9, 64),
        "heavy": (16 * 10**9, 32),
    }
    defaults = {row["preset"]: row for row in rows if row["variant"] == "defaults"}
    assert defaults["heavy"]["lasting_bytes"] == 16 * 207_061_777
    assert all(row["lasting_bytes"] < row["tensors_bytes"] < row["cpu_bytes"] for row in rows)
    patched = {row["preset"]: row for row in rows if row["variant"] == "patch_4"}
    assert all(patched[name]["tensors_bytes"] > 2 * row["tensors_bytes"] for name, row in defaults.items())
    assert "`heavy` | defaults (patch 16) | 32 | 16 |" in answer.stdout


def test_measured_peaks_stand_beside_predictions_and_what_cannot_fit_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def pretend(_: str, settings: dict[str, Any], frame: tuple[int, int], device: str) -> Measurement:
        assert (frame, device) == ((64, 64), "cpu")
        assert settings["batch_size"] in (1, 2)
        return Measurement(1.0, 512 * 2**20)

    monkeypatch.setattr(memory, "measure", pretend)
    monkeypatch.setattr(memory, "read_free_memory", lambda: 10**9)
    file = tmp_path / "memory.json"
    words = ["--presets", "ultra_light", "heavy", "--variants", "defaults", "--batch", "1", "2", "--measure"]
    assert memory.main(["--algorithm", "vmamba_td3", *words, "--json", str(file)]) == 0
    measured = {(row["preset"], row["batch_size"]): row["measured_bytes"] for row in read_rows(file)}
    size = 512 * 2**20
    assert measured == {("ultra_light", 1): size, ("ultra_light", 2): size, ("heavy", 1): None, ("heavy", 2): None}
    out = capsys.readouterr().out
    assert "Not measured: heavy, defaults (patch 16), batch 1:" in out
    assert "don't fit into the 1.0 GB free" in out
    assert "| 512.0 |" in out


def test_an_unknown_algorithm_is_refused_with_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        memory.main(["--algorithm", "ddpg"])
    assert stopped.value.code == 2
    assert "no sizes are known of 'ddpg'; known: vmamba_td3" in capsys.readouterr().err


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.sizing import measure

    monkeypatch.chdir(ROOT)
    found = measure("vmamba_td3", {"vmamba_num_heads": 3}, (64, 64))
    assert found.ms_per_update is found.peak_bytes is None
    assert found.reason.startswith("exit code 2: vmamba_num_heads (3) does not divide hidden_dim")
