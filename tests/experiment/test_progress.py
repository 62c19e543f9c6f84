import io
import json
from pathlib import Path

import pytest

from experiment.progress import LiveView, PlainView, Progress, Tally, describe, open_view, read_progress
from experiment.run import Run


def write_rows(folder: Path, *rows: object) -> Run:
    run = Run.create_path(folder, "seed=1", "0123456789abcdef")
    run.folder.mkdir()
    run.metrics_path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return run


def test_progress_is_that_of_the_last_whole_row(tmp_path: Path) -> None:
    first = {"step": 100, "env_step": 100, "time/fps": 50.0, "rollout/ep_rew_mean": -3.0}
    second = {"step": 200, "env_step": 200, "eval/mean_reward": -2.0}
    run = write_rows(tmp_path, first, second, '{"step": 300, "env_st')
    assert read_progress(run) == Progress(200, 50.0, -2.0)


@pytest.mark.parametrize(
    "row", ["nonsense\n", "[1]\n", {"step": "10"}, {"step": True}, {"time/fps": "nan", "step": None}]
)
def test_what_a_script_of_others_writes_is_no_progress_and_no_error(tmp_path: Path, row: object) -> None:
    assert read_progress(write_rows(tmp_path, row)) == Progress()


def test_a_run_that_has_written_nothing_is_at_step_zero(tmp_path: Path) -> None:
    assert read_progress(Run.create_path(tmp_path, "seed=1", "0123456789abcdef")) == Progress()


def test_what_is_not_known_is_a_dash() -> None:
    assert describe(Progress(), None) == ("0", "-", "-", "-")
    assert describe(Progress(1500, 250.0, -12.34), 4000) == ("1,500/4,000", "250", "-12.3", "00:00:10")
    assert describe(Progress(5000, 250.0), 4000)[3] == "00:00:00"


def test_a_tally_names_what_there_is() -> None:
    tally = Tally(done=1, running=2, failed=0, waiting=3, elsewhere=1, stopped=0)
    assert str(tally) == "1 done, 2 running, 1 run by another runner, 3 to run"


def test_without_a_terminal_lines_are_plain() -> None:
    assert isinstance(open_view(False, {}), PlainView)


def test_a_stream_that_breaks_silences_the_view_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    silenced: list[bool] = []
    monkeypatch.setattr("experiment.progress.silence_stdout", lambda: silenced.append(True))
    view = PlainView(Broken())
    view.say("one")
    view.say("two")
    assert silenced == [True]


def test_the_live_table_keeps_lines_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView({})
    view.say("a line [with brackets] that stays")
    view.update([], Tally(done=1, running=0, failed=0, waiting=3, elsewhere=0, stopped=0))
    view.close()
    assert "a line [with brackets] that stays" in capsys.readouterr().out
