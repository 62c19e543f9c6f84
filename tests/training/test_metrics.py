"""The curve: rows as the run folder's contract has them, cut on a resume, and shown once by TensorBoard."""

from __future__ import annotations

import errno
import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment.files import to_json_number
from training.metrics import Averages, MetricsError, MetricsLog, RecentEpisodes
from training.protocol import Episode


def write_rows(log: MetricsLog, *clocks: int, scale: float = 1.0) -> None:
    for clock in clocks:
        log.write(step=clock, env_step=clock, clock=clock, wall_time=clock / 7, values={"loss": clock * scale})


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_row_has_its_counters_first(path: Path) -> None:
    MetricsLog(path).write(step=3, env_step=12, clock=12, wall_time=1.23456, values={"train/critic_loss": 0.5})
    assert path.read_text() == '{"step": 3, "env_step": 12, "wall_time": 1.235, "train/critic_loss": 0.5}\n'


def test_values_that_are_not_finite_are_texts(path: Path) -> None:
    values = {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 1e300}
    MetricsLog(path).write(step=1, env_step=1, clock=1, wall_time=0.0, values=values)
    (row,) = read_rows(path)
    assert [row[name] for name in "abcd"] == ["nan", "inf", "-inf", 1e300]
    assert to_json_number(-0.0) == 0.0


def test_a_resume_cuts_rows_that_the_checkpoint_has_not_seen(path: Path) -> None:
    log = MetricsLog(path)
    write_rows(log, 1, 2)
    state = log.state_dict()
    write_rows(log, 3, 4)
    with path.open("ab") as file:
        file.write(b'{"step": 5, "env')
    resumed = MetricsLog(path)
    assert resumed.load_state_dict(state, 2) == 3
    write_rows(resumed, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert MetricsLog(path).load_state_dict(resumed.state_dict(), 3) == 0


@pytest.mark.parametrize("old", ['"step": 1', '"loss": 2'])
def test_a_curve_that_was_changed_is_refused(path: Path, old: str) -> None:
    log = MetricsLog(path)
    write_rows(log, 1, 2)
    path.write_text(path.read_text().replace(old, old[:-1] + "9"))
    with pytest.raises(MetricsError, match=r"metrics\.jsonl isn't what the checkpoint saw \(2 rows"):
        MetricsLog(path).load_state_dict(log.state_dict(), 2)


@pytest.mark.parametrize("missing", ["all", "some"])
def test_a_curve_that_lacks_rows_is_refused(path: Path, missing: str) -> None:
    log = MetricsLog(path)
    write_rows(log, 1, 2)
    if missing == "all":
        path.unlink()
    else:
        os.truncate(path, 20)
    with pytest.raises(MetricsError, match="continue_training: false"):
        MetricsLog(path).load_state_dict(log.state_dict(), 2)


def test_starting_over_empties_the_curve(path: Path) -> None:
    write_rows(MetricsLog(path), 1, 2)
    log = MetricsLog(path)
    assert log.start_over() == 2
    assert path.read_text() == ""
    assert MetricsLog(path.with_name("none.jsonl")).start_over() == 0


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_leaves_no_half_row(path: Path, monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    log = MetricsLog(path)
    write_rows(log, 1)
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        real(descriptor, data[:10])
        if short:
            return 10
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match=r"metrics\.jsonl: a row could not be written") as caught:
            write_rows(log, 2)
    assert caught.value.errno == errno.ENOSPC
    write_rows(log, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 3]


def read_curve(folder: Path) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss")]


def test_tensorboard_shows_the_same_curve_and_it_does_not_double_back(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    log = MetricsLog(path, folder)
    write_rows(log, 10, 20)
    log.sync()
    state = log.state_dict()
    write_rows(log, 30, 40)
    log.close()
    # Files are read in the order of their names, which have a second in them.
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(file.with_name(f"events.out.tfevents.000000000{number}"))
    assert read_curve(folder) == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    resumed = MetricsLog(path, folder)
    resumed.load_state_dict(state, 20)
    write_rows(resumed, 30, scale=2)
    resumed.close()
    assert read_curve(folder) == [(10, 10.0), (20, 20.0), (30, 60.0)]
    again = MetricsLog(path, folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(file.with_name(f"events.out.tfevents.000000000{number}"))
    again.start_over()
    write_rows(again, 10, scale=3)
    again.close()
    assert read_curve(folder) == [(10, 30.0)]


def test_a_point_is_in_its_file_at_once(path: Path, tmp_path: Path) -> None:
    log = MetricsLog(path, tmp_path / "tensorboard")
    write_rows(log, 10)
    assert read_curve(tmp_path / "tensorboard") == [(10, 10.0)]
    log.close()


def test_a_full_disk_ends_the_view_without_hiding_what_went_wrong(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = Path.open

    def open_full(file: Path, *args: Any, **kwargs: Any) -> Any:
        return real(Path("/dev/full"), "wb") if "tfevents" in file.name else real(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    log = MetricsLog(path, tmp_path / "tensorboard")
    with pytest.raises(OSError, match=r"tensorboard: .*No space left on device") as caught:
        write_rows(log, 1)
    assert caught.value.errno == errno.ENOSPC
    assert [row["step"] for row in read_rows(path)] == [1]
    log.close()
    del log
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_averages_are_over_the_steps_that_had_the_name() -> None:
    averages = Averages()
    averages.add({"a": 1.0})
    averages.add({"a": torch.tensor(3.0), "b": torch.tensor([5])})
    assert averages.take() == {"a": 2.0, "b": 5.0}
    assert averages.take() == {}


def test_averages_do_not_keep_the_trainers_own_tensors() -> None:
    averages = Averages()
    loss = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    averages.add({"loss": loss})
    with torch.no_grad():
        loss.add_(10)
    averages.add({"loss": loss})
    assert not averages.state_dict()["tensors"]["loss"].requires_grad
    assert averages.take() == {"loss": 6.0}


def test_averages_go_on_after_a_resume() -> None:
    straight, cut = Averages(), Averages()
    values = [torch.tensor(value) for value in (0.1, 0.2, 0.3)]
    for value in values:
        straight.add({"loss": value, "n": 0.1})
    cut.add({"loss": values[0], "n": 0.1})
    resumed = Averages()
    resumed.load_state_dict(cut.state_dict())
    for value in values[1:]:
        resumed.add({"loss": value, "n": 0.1})
    assert resumed.take() == straight.take()


def test_rollout_means_are_over_the_last_hundred_episodes() -> None:
    recent = RecentEpisodes()
    assert recent.means() == {}
    recent.add([Episode(-1e6, 1, False)])
    recent.add([Episode(-100.0, 50, True)] * 50 + [Episode(-200.0, 150, False)] * 50)
    resumed = RecentEpisodes()
    resumed.load_state_dict(recent.state_dict())
    expected = {"rollout/ep_rew_mean": -150.0, "rollout/ep_len_mean": 100.0, "rollout/return_per_step": -1.5}
    assert recent.means() == resumed.means() == expected
