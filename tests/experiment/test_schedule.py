import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.schedule import Company, Ending, Verdict, count_threads, decide_after, is_hopeless, make_slots


@settings(deadline=None)
@given(devices=st.integers(1, 8), jobs=st.integers(1, 64))
def test_slots_are_distinct_and_spread_evenly_over_devices(devices: int, jobs: int) -> None:
    slots = make_slots(devices, jobs)
    assert len(set(slots)) == jobs
    counts = [sum(slot.device == device for slot in slots) for device in range(devices)]
    assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(cores=st.integers(1, 256), jobs=st.integers(1, 256))
def test_threads_never_oversubscribe_cores_beyond_one_each(cores: int, jobs: int) -> None:
    threads = count_threads(cores, jobs)
    assert threads >= 1
    assert threads * jobs <= max(cores, jobs)


@pytest.mark.parametrize(
    ("ending", "retries", "stopping", "verdict"),
    [
        (Ending("ok", 0), 0, False, Verdict.DONE),
        (Ending("ok", 0), 0, True, Verdict.DONE),
        (Ending("error", 1), 0, False, Verdict.FAILED),
        (Ending("error", 1), 1, False, Verdict.RETRY),
        (Ending("error", 1), 1, True, Verdict.FAILED),
        (Ending("config", 2), 5, False, Verdict.FAILED),
        (Ending("requeue", 75), 5, False, Verdict.STOPPED),
        (Ending("error", 3), 0, False, Verdict.MOVE),
        (Ending("lost", None), 1, False, Verdict.RETRY),
        (Ending("lost", None), 1, True, Verdict.STOPPED),
        (Ending("oom", 86), 0, False, Verdict.FAILED),
    ],
)
def test_what_an_ending_means(ending: Ending, retries: int, stopping: bool, verdict: Verdict) -> None:
    assert decide_after(ending, retries, stopping, can_move=True) is verdict


@pytest.mark.parametrize(
    ("ending", "retries", "stopping", "verdict"),
    [
        (Ending("oom", 86), 0, False, Verdict.ALONE),
        (Ending("oom", -9), 3, False, Verdict.ALONE),
        (Ending("oom", 86), 0, True, Verdict.FAILED),
        (Ending("error", 1), 0, False, Verdict.FAILED),
    ],
)
def test_what_ran_out_of_memory_beside_others_is_tried_again_alone(
    ending: Ending, retries: int, stopping: bool, verdict: Verdict
) -> None:
    assert decide_after(ending, retries, stopping, can_move=False, had_company=True) is verdict


def test_on_another_device_only_the_machines_memory_is_shared() -> None:
    company = Company()
    for key, device in (("a", 0), ("b", 1), ("c", 1)):
        company.begin(key, device)
    company.end("c")
    cuda, killed = Ending("oom", 86), Ending("oom", -9)
    assert [company.mattered(key, cuda) for key in "ab"] == [False, True]
    assert [company.mattered(key, killed) for key in "ab"] == [True, True]
    company.end("b")
    company.end("a")
    company.begin("a", 0)
    assert not company.mattered("a", killed)


def test_without_a_device_to_lose_exit_code_three_is_a_failure() -> None:
    assert decide_after(Ending("error", 3), 0, False, can_move=False) is Verdict.FAILED


def test_five_first_runs_that_fail_alike_break_the_circuit() -> None:
    alike = [Ending("error", 1, "ValueError: x")] * 5
    assert is_hopeless(alike, 6)
    assert not is_hopeless(alike, 5)
    assert not is_hopeless(alike[:4], 6)
    assert not is_hopeless([*alike, alike[0]], 9)
    assert not is_hopeless([*alike[:4], Ending("error", 1, "ValueError: y")], 6)
    assert not is_hopeless([Ending("ok", 0)] * 5, 6)
