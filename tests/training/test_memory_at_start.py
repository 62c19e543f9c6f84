"""A run that finds too little memory when it starts: whether its settings are to blame depends on who has the rest."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from experiment.memory import MemoryRoom
from experiment.problems import SettingsError
from experiment.run import Run
from training.answers import Answerer

BUFFER = 1_000_000 * 36


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create_path(tmp_path, "x", 16 * "a")
    run.attempt_dir(1).mkdir(parents=True)
    run.start_path(1).write_text(json.dumps({"device": "cpu"}))
    return run


def start(run: Run, monkeypatch: pytest.MonkeyPatch, *, free: int, whole: int) -> int:
    config = train.build_config({"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "max_timesteps": 1_000_000})
    monkeypatch.setattr(train, "find_room", lambda _: MemoryRoom(free))
    monkeypatch.setattr(train, "read_whole_memory", lambda: whole)
    return train.train(config, run, 1, 1, "x")


def test_a_run_beside_others_that_have_the_memory_has_run_out_of_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(run, monkeypatch, free=BUFFER - 1, whole=100 * BUFFER) == train.OUT_OF_MEMORY
    assert "buffer_size: 1,000,000 transitions of 36 bytes are 34 MiB" in capsys.readouterr().err


def test_settings_that_the_machine_could_never_hold_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="buffer_size: 1,000,000 transitions"):
        start(run, monkeypatch, free=BUFFER - 1, whole=BUFFER - 1)


@pytest.mark.parametrize("held", [0, 10 * BUFFER])
def test_memory_that_runs_have_which_will_have_ended_counts_as_free(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr("training.answers.read_free_memory", lambda: BUFFER - 1)
    answerer = Answerer(False, "cpu", held, train.build_config, train.find_trainer, train.import_trainers)
    settings = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "max_timesteps": 1_000_000}
    assert bool(answerer.answer(settings)["faults"]) == (held == 0)
