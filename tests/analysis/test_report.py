from __future__ import annotations

import csv
import html.parser
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.load import ExperimentError
from analysis.report import MANIFEST, ReportBusyError, main, write_report
from experiment.files import append_event
from experiment.locks import acquire_lock


class PageReader(html.parser.HTMLParser):
    """Keeps what a page opens, closes, loads and says."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def mixed(experiment: Any) -> Any:
    """Some runs of each kind, with texts that would break a page or a table that doesn't escape them."""
    odd = "a|b <script>alert(1)</script> `c` *d*\n_e_"
    experiment.finish(experiment.add({"rate": 0.1, "seed": 1, "note": odd}, label=odd), -100.0)
    experiment.finish(experiment.add({"rate": 0.1, "seed": 2, "note": odd}), "nan", attempts=2, resume="episode")
    experiment.finish(experiment.add({"rate": 0.2, "seed": 1, "note": odd}), -120.0, attempts=2)
    log = "start\n\x1b[31mTraceback\x1b[0m:\n10%\r90%\r\nValueError: <img src=x> | \x07bad\n\n"
    experiment.fail(experiment.add({"rate": 0.2, "seed": 2, "note": odd}), "error", log)
    (experiment.folder / "spec.yaml").write_text("meta_data: {description: 'rates & <b>seeds</b>'}\n")
    (experiment.folder / "env.json").write_text(json.dumps({"host": "h<1>", "packages": {"torch": "2.13", "x": "1"}}))
    return experiment


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_report_has_page_text_tables_and_figures(finished_sweep: Path) -> None:
    paths = write_report(finished_sweep)
    assert paths.html == finished_sweep / "report" / "report.html"
    assert {path.name for path in paths.tables} >= {
        "returns.csv",
        "parameters.csv",
        "memory.csv",
        "time.csv",
        "runs.csv",
    }
    assert {path.name for path in paths.figures} == {"learning_curves.png", "final_returns.png"}
    for path in (paths.html, paths.markdown, *paths.tables, *paths.figures):
        assert path.stat().st_size > 0
    assert paths.text.startswith("9 of 9 runs finished. Best: learning_rate=0.001, IQM of the final evaluation returns")
    assert not list(paths.folder.glob("*.tmp"))


def test_the_same_files_give_the_same_bytes(mixed: Any) -> None:
    first = read_all(write_report(mixed.folder).folder)
    assert read_all(write_report(mixed.folder).folder) == first


def test_the_page_needs_nothing_else_and_escapes_everything(mixed: Any) -> None:
    page = PageReader(write_report(mixed.folder).html.read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "<script>alert(1)</script>" in page.text
    assert "rates & <b>seeds</b>" in page.text
    assert "ValueError: <img src=x> | bad" in page.text


def test_every_row_of_the_markdown_has_as_many_cells_as_its_head(mixed: Any) -> None:
    lines = write_report(mixed.folder).markdown.read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert tables
    width = 0
    for line, before in zip(lines, ["", *lines], strict=False):
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|")
            width = width if before.startswith("|") else cells
            assert cells == width, line
    assert "<script>" not in "".join(line for line in lines if "`" not in line).replace("\\<script\\>", "")


def test_combinations_that_share_a_run_are_each_named_with_it(experiment: Any) -> None:
    for seed, run_id in ((1, "a" * 16), (2, "b" * 16)):
        for theta in (0.1, 0.2, 0.3):
            run = experiment.add({"seed": seed, "ou_theta": theta}, run_id=run_id)
        experiment.finish(run, -7.0 * seed)
    paths = write_report(experiment.folder)
    text = paths.markdown.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| seed=")]
    assert [(row[0].removeprefix("| "), row[-1].removesuffix(" |")) for row in rows] == [
        (f"seed={seed},ou_theta={theta}", run_id)
        for seed, run_id in ((1, "a" * 16), (2, "b" * 16))
        for theta in (0.1, 0.2, 0.3)
    ]
    assert paths.text.startswith("2 of 2 runs finished.")
    assert "- Combinations: 6, 2 distinct runs" in text
    assert "6 combinations are 2 runs" in text


def test_nothing_is_said_of_shared_runs_where_there_are_none(finished_sweep: Path) -> None:
    text = write_report(finished_sweep).markdown.read_text()
    assert "Combinations" not in text
    assert "share one" not in text


def test_an_unfinished_run_has_its_last_words_its_log_and_a_command_to_paste(mixed: Any) -> None:
    row = read_unfinished(mixed.folder)
    assert (row["state"], row["reason"]) == ("FAILED", "error")
    assert row["last_lines"] == "Traceback: / 90% / ValueError: <img src=x> | bad"
    assert Path(row["console"]).read_text().startswith("start")
    spec, root = mixed.folder / "spec.yaml", mixed.folder.parent
    command = f"python run_experiment.py -e {spec} -g 0 --log-root {root} --rerun {row['id']}"
    assert shlex.split(row["command"]) == command.split()


def test_a_guessed_command_names_only_an_unusual_log_root(
    mixed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = read_unfinished(mixed.folder)
    assert row["command"] == f"python run_experiment.py -e logs/sweep/spec.yaml -g 0 --rerun {row['id']}"


def test_the_command_that_launched_last_is_the_one_to_paste(mixed: Any) -> None:
    events = mixed.folder / "events.jsonl"
    append_event(events, "launched", command="python run_experiment.py -e old.yaml -g 0")
    append_event(events, "launched", command="python run_experiment.py -e 'my sweep.yaml' -g 0,1 -j 4")
    append_event(events, "left", exit_code=1)
    with events.open("a") as file:
        file.write('{"event": "launched", "comm')
    row = read_unfinished(mixed.folder)
    assert row["command"] == f"python run_experiment.py -e 'my sweep.yaml' -g 0,1 -j 4 --rerun {row['id']}"


def read_unfinished(folder: Path) -> dict[str, str]:
    write_report(folder)
    with (folder / "report" / "unfinished.csv").open() as file:
        (row,) = csv.DictReader(file)
    return row


def test_resumes_are_counted_and_new_episodes_named(mixed: Any) -> None:
    text = write_report(mixed.folder).markdown.read_text()
    assert "2 of 3 finished runs took more than one attempt." in text
    assert "1 of them began a new episode at each resume" in text


def test_constants_swept_values_and_packages_are_there(mixed: Any) -> None:
    folder = write_report(mixed.folder).folder
    with (folder / "settings.csv").open() as file:
        rows = {row["key"]: (row["role"], row["value"]) for row in csv.DictReader(file)}
    assert rows["rate"] == ("swept", "0.1, 0.2")
    assert rows["note"][0] == "constant"
    text = (folder / "report.md").read_text()
    assert "packages.torch" in text
    assert "packages.x" not in text
    assert "packages.x,1" in (folder / "environment.csv").read_text()


def read_defaults(folder: Path) -> list[tuple[str, str, str]]:
    path = write_report(folder).folder / "defaults.csv"
    with path.open() as file:
        return [(row["key"], row["value"], f"{row['runs']} of {row['of']}") for row in csv.DictReader(file)]


def test_settings_left_to_their_defaults_are_listed_with_what_runs_had(experiment: Any) -> None:
    runs = [
        experiment.add({"algorithm_name": "ddpg", "seed": 1, "env_kwargs.g": 9.8}),
        experiment.add({"algorithm_name": "td3", "seed": 1, "env_kwargs.g": 9.8, "tau": 0.1}),
    ]
    more = ["tau: 0.005\nbatch_size: 64\n", "tau: 0.1\nbatch_size: 256\npolicy_delay: 2\n"]
    for run, text in zip(runs, more, strict=True):
        experiment.finish(run)
        shared = "algorithm_name: x\nseed: 1\nenv_kwargs: {g: 9.8, more: {}}\neval_freq: null\nlow: 1.0e-05\n"
        run.config_path.write_text(shared + text)
    experiment.add({"algorithm_name": "sac", "seed": 1, "env_kwargs.g": 9.8})
    assert read_defaults(experiment.folder) == [
        ("env_kwargs.more", "{}", "2 of 2"),
        ("eval_freq", "null", "2 of 2"),
        ("low", "1e-05", "2 of 2"),
        ("tau", "0.005", "1 of 2"),
        ("batch_size", "64", "1 of 2"),
        ("batch_size", "256", "1 of 2"),
        ("policy_delay", "2", "1 of 2"),
    ]
    page = (experiment.folder / "report" / "report.html").read_text()
    assert "<details><summary>Settings left to their defaults (7)</summary>" in page


def test_a_config_that_can_not_be_read_is_warned_of(experiment: Any) -> None:
    run = experiment.add({"seed": 1})
    experiment.finish(run)
    run.config_path.write_text("a: [\n")
    paths = write_report(experiment.folder)
    assert f"warning: run {run.id}: its settings are left out: {run.config_path}:" in paths.text
    assert not (paths.folder / "defaults.csv").exists()


def test_a_spec_whose_settings_are_all_given_has_no_table_of_defaults(experiment: Any) -> None:
    experiment.finish(experiment.add({"algorithm_name": "ddpg", "seed": 1}))
    assert "defaults.csv" not in {path.name for path in write_report(experiment.folder).tables}


def test_parameters_have_a_row_for_each_shape(experiment: Any) -> None:
    for size in (64, 256):
        for seed in range(2):
            run = experiment.add({"hidden_dims": [size], "seed": seed})
            experiment.finish(run, parameters={"actor": size, "critic": 2 * size})
    folder = write_report(experiment.folder).folder
    with (folder / "parameters.csv").open() as file:
        rows = [[row[name] for name in ("settings", "actor", "critic", "total")] for row in csv.DictReader(file)]
    assert rows == [["hidden_dims=[64]", "64", "128", "192"], ["hidden_dims=[256]", "256", "512", "768"]]


def test_an_experiment_without_a_finished_run_says_so(experiment: Any) -> None:
    experiment.add({"seed": 1})
    experiment.fail(experiment.add({"seed": 2}), "config")
    paths = write_report(experiment.folder)
    assert paths.text.startswith("0 of 2 runs finished. There are no returns to report.")
    assert paths.figures == ()
    assert "0 of 2 finished, 1 PENDING, 1 FAILED (config)" in PageReader(paths.html.read_text()).text


def test_the_returns_of_a_resumed_sweep_are_byte_equal_to_those_of_a_straight_one(
    tmp_path: Path, make_sweep: Callable[..., object]
) -> None:
    make_sweep(tmp_path / "straight")
    make_sweep(tmp_path / "resumed", attempts=2, machine=3.0)
    straight, resumed = (write_report(tmp_path / name) for name in ("straight", "resumed"))
    for name in ("returns.csv", "learning_curves.png", "final_returns.png"):
        assert (straight.folder / name).read_bytes() == (resumed.folder / name).read_bytes()
    assert straight.text == resumed.text
    sections = [paths.markdown.read_text().split("## ")[1] for paths in (straight, resumed)]
    assert sections[0] == sections[1]


def test_files_of_an_earlier_report_go_and_those_of_others_stay(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}))
    experiment.add({"seed": 2})
    folder = write_report(experiment.folder).folder
    (folder / "mine.csv").write_text("kept")
    assert (folder / "unfinished.csv").exists()
    plan = experiment.folder / "plan.jsonl"
    plan.write_text(plan.read_text().splitlines(keepends=True)[0])
    write_report(experiment.folder)
    assert not (folder / "unfinished.csv").exists()
    assert (folder / "mine.csv").exists()


def test_a_hostile_list_of_earlier_files_removes_nothing_outside(experiment: Any) -> None:
    experiment.finish(experiment.add({"seed": 1}))
    folder = write_report(experiment.folder).folder
    (folder / MANIFEST).write_text(json.dumps({"files": ["../plan.jsonl"]}))
    write_report(experiment.folder)
    assert (experiment.folder / "plan.jsonl").exists()


def test_keys_that_differ_in_odd_characters_get_files_of_their_own(experiment: Any) -> None:
    for first, second in itertools.product(range(2), repeat=2):
        experiment.finish(experiment.add({"a/b": first, "a b": second, "seed": 1}, label=f"{first}{second}"))
    names = [path.name for path in write_report(experiment.folder).tables if path.name.startswith("returns_")]
    assert names == ["returns_by_a-b.csv", "returns_by_a-b_2.csv"]


def test_a_second_writer_waits_and_gives_up_with_a_word(finished_sweep: Path, request: pytest.FixtureRequest) -> None:
    (finished_sweep / "report").mkdir()
    descriptor = acquire_lock(finished_sweep / "report" / ".lock")
    assert descriptor is not None
    request.addfinalizer(lambda: os.close(descriptor))
    with pytest.raises(ReportBusyError, match="held by another process"):
        write_report(finished_sweep, patience_s=0.0)


def test_the_command_prints_the_table_and_the_place(finished_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished_sweep)]) == 0
    out = capsys.readouterr().out
    assert "*0.001         3 of 3    *-580.0 [-590.0, -570.0]" in out
    assert out.rstrip().endswith("finished/report/report.html")


def test_the_command_answers_a_wrong_folder_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "not the folder of an experiment" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_one_line(finished_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished_sweep / "report").write_text("in the way")
    assert main([str(finished_sweep)]) == 1
    assert "was not written" in capsys.readouterr().err
    with pytest.raises(OSError, match="report"):
        write_report(finished_sweep)


def test_a_missing_experiment_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError):
        write_report(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_command_starts_fast_and_imports_nothing_of_training(finished_sweep: Path) -> None:
    code = (
        "import sys; from analysis.report import main; code = main(sys.argv[1:]); "
        "print({'torch', 'training', 'rl', 'envs', 'matplotlib.pyplot'} & set(sys.modules)); sys.exit(code)"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished_sweep)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    after = os.times()
    assert done.stdout.splitlines()[-1] == "set()"
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    assert cpu < 2.5


def test_the_package_itself_is_light() -> None:
    code = "import sys, analysis; sys.exit('pandas' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd()).returncode == 0


def test_many_runs_are_reported_in_little_time(experiment: Any, finished_sweep: Path) -> None:
    curve = [-1000.0 + 10 * step for step in range(50)]
    template = experiment.add({"rate": 0, "seed": 0}, run_id=f"{0:016x}")
    experiment.finish(template, curve=curve)
    rows = [{"id": f"{n:016x}", "label": f"r{n}", "settings": {"rate": n // 5, "seed": n % 5}} for n in range(100)]
    for row in rows[1:]:
        shutil.copytree(template.folder, experiment.folder / f"{row['label']}__{row['id']}")
    (experiment.folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begin = time.process_time()
    paths = write_report(experiment.folder)
    assert time.process_time() - begin < 6
    assert paths.text.startswith("100 of 100 runs finished.")
