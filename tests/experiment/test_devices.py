import pytest

from experiment.devices import CPU, DeviceError, Gpu, choose_devices, choose_visible, count_cores

GPUS = [Gpu(index, index, f"GPU-{index}{index}", "A", 80) for index in range(4)]


def test_without_any_gpu_every_choice_runs_on_the_cpu_and_says_so() -> None:
    for wanted in ("0", "0,1", "all"):
        devices, remark = choose_devices(wanted, [])
        assert devices == [CPU]
        assert remark is not None
        assert wanted in remark


def test_cpu_is_taken_silently_where_it_was_asked_for() -> None:
    assert choose_devices("cpu", GPUS) == ([CPU], None)


def test_a_gpu_that_is_not_there_is_an_error_where_others_are() -> None:
    with pytest.raises(DeviceError, match="there is no GPU 4 here; there are 0"):
        choose_devices("4", GPUS)


@pytest.mark.parametrize("wanted", ["-1", "x", "0,", "0,0", "1.5", ""])
def test_what_names_no_device_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match="-g"):
        choose_devices(wanted, GPUS)


def test_devices_are_hidden_from_a_run_but_its_own() -> None:
    devices, _ = choose_devices("2,0", GPUS)
    assert [device.environment()["CUDA_VISIBLE_DEVICES"] for device in devices] == ["GPU-22", "GPU-00"]
    assert CPU.environment()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("2,3", [2, 3]),
        ("GPU-33,0", [3, 0]),
        ("", []),
        ("-1", []),
        ("1,9,2", [1]),
    ],
)
def test_visible_devices_are_obeyed_as_cuda_does(variable: str | None, expected: list[int]) -> None:
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    visible = choose_visible(GPUS, environment)
    assert [gpu.physical for gpu in visible] == expected
    assert [gpu.index for gpu in visible] == list(range(len(expected)))


def test_there_is_at_least_one_core() -> None:
    assert count_cores() >= 1
