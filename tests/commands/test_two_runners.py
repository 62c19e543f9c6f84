"""Two runners, or two versions of one spec, on one folder."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.gated import TIMEOUT_S, Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


def test_runners_with_other_lists_share_what_they_have_in_common_and_each_ends_with_its_own(project: Project) -> None:
    project.write_spec([0, 1, 2])
    project.write_spec([1, 2, 3], name="later.yaml")
    first = project.start()
    project.wait_until_begun("index=0")
    second = project.start(spec="later.yaml")
    project.wait_until_begun("index=1")
    seen = project.ask("status", "-e", "logs/spec")
    assert "not in the plan" not in seen
    assert "2 RUNNING, 2 PENDING" in seen
    assert seen.count("the terminal it was started from has its lines") == 2
    project.open_gate()
    said = [runner.communicate(timeout=TIMEOUT_S)[0] for runner in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert project.ended() == ["index=0", "index=1", "index=2", "index=3"]
    assert all("3 done" in text for text in said)
    line = f"note: another runner (pid {first.pid} on "
    (told,) = [text for text in said[1].splitlines() if text.startswith(line)]
    shared = "works in logs/spec; runs are shared: 1 of its 3 runs are not in this spec, 1 of the 3 here are not in its"
    assert told.endswith(shared)
    assert "another runner" not in said[0].splitlines()[0]
    # Now that the first is gone, the last launch says what is planned.
    left = project.ask("status", "-e", "logs/spec")
    assert "DONE, not in the plan" in left
    assert "no runner is at work; one left at" in left


def test_a_runner_with_another_number_of_workers_shares_all_runs(project: Project) -> None:
    project.write_spec([0, 1, 2])
    first = project.start()
    project.wait_until_begun("index=0")
    project.write_spec([0, 1, 2], meta=", num_workers: 2")
    second = project.start("-j", "2")
    project.wait_until_begun("index=1", "index=2")
    project.open_gate()
    said = [runner.communicate(timeout=TIMEOUT_S)[0] for runner in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert project.ended() == ["index=0", "index=1", "index=2"]
    assert any(line.endswith("works in logs/spec; runs are shared") for line in said[1].splitlines())


def test_a_runner_with_other_constants_has_runs_of_its_own(project: Project) -> None:
    project.write_spec([0, 1], constants="{tau: 1}")
    first = project.start()
    project.wait_until_begun("index=0")
    project.write_spec([0, 1], constants="{tau: 2}")
    second = project.start()
    project.wait_until_begun("index=0")
    assert "2 RUNNING, 2 PENDING" in project.ask("status", "-e", "spec.yaml")
    project.open_gate()
    said = [runner.communicate(timeout=TIMEOUT_S)[0] for runner in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert project.ended() == ["index=0", "index=0", "index=1", "index=1"]
    assert "2 of its 2 runs are not in this spec" in said[1]


def test_a_runner_that_is_killed_leaves_the_other_to_finish_all_of_its_own(project: Project) -> None:
    project.write_spec([0, 1, 2])
    project.write_spec([0, 3], name="later.yaml")
    first = project.start()
    project.wait_until_begun("index=0")
    second = project.start(spec="later.yaml")
    project.wait_until_begun("index=3")
    first.kill()
    project.open_gate()
    said, _ = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, said
    assert "2 done" in said
    assert set(project.ended()) == {"index=0", "index=3"}
    # What the killed one left says nothing any more, and the next launch clears it away.
    assert "runner pid" not in project.ask("status", "-e", "logs/spec")
    assert len(list(project.folder.glob("logs/spec/.runners/*"))) == 1
    assert "another runner" not in project.ask("-e", "spec.yaml", "-g", "cpu", "--plain")
    assert list(project.folder.glob("logs/spec/.runners/*")) == []


def test_one_stop_reaches_both_runners(project: Project) -> None:
    project.write_spec([0, 1])
    project.write_spec([2, 3], name="later.yaml")
    runners = [project.start(), project.start(spec="later.yaml")]
    project.wait_until_begun("index=0", "index=2")
    stopped = project.ask("stop", "-e", "logs/spec")
    assert "asked to stop; 2 running" in stopped
    said = [runner.communicate(timeout=TIMEOUT_S)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [75, 75], said
    assert project.ended() == []


def can_be_another_machine() -> bool:
    """Tell whether a process can be given a host's name, processes and /proc of its own here."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "hostname", "elsewhere"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_be_another_machine(), reason="needs namespaces of its own")
def test_a_second_machine_on_a_shared_folder_helps(project: Project) -> None:
    """As far as one kernel can show it: another host's name, other processes, the same files and locks."""
    project.write_spec([0, 1])
    first = project.start()
    project.wait_until_begun("index=0")
    second = project.start(machine="elsewhere")
    project.wait_until_begun("index=1")
    seen = project.ask("status", "-e", "spec.yaml")
    assert "2 RUNNING" in seen
    assert f"runner pid {first.pid} on {os.uname().nodename} since" in seen
    assert " on elsewhere since " in seen
    (run_id,) = [line.split()[0] for line in seen.splitlines() if line.endswith("index=1")]
    assert "on elsewhere, device cpu" in project.ask("why", run_id)
    project.open_gate()
    said = [runner.communicate(timeout=TIMEOUT_S)[0] for runner in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert project.ended() == ["index=0", "index=1"]
    assert f"another runner (pid {first.pid} on {os.uname().nodename}) works in logs/spec; runs are shared\n" in said[1]
    env = json.loads((project.folder / "logs/spec/env.elsewhere.json").read_text())
    assert env["host"] == "elsewhere"


@pytest.mark.skipif(not can_be_another_machine(), reason="needs namespaces of its own")
def test_a_second_machine_takes_over_what_the_first_did_not_live_to_finish(project: Project) -> None:
    project.write_spec([0])
    first = project.start()
    project.wait_until_begun("index=0")
    second = project.start(machine="elsewhere")
    first.kill()
    project.open_gate()
    said, _ = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, said
    assert "1 done" in said
