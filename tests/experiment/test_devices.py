import sys
from types import SimpleNamespace

import pytest

from experiment.devices import (
    CPU,
    DeviceError,
    Gpu,
    GpuMeter,
    GpuReading,
    choose_devices,
    choose_visible,
    count_cores,
    read_utilisation,
)

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


class FakeNvml:
    """NVML with one GPU that is 37 % busy; `broken` names the call that fails."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, broken: str = "") -> None:
        self.broken, self.opened = broken, 0

    def _may_fail(self, name: str) -> None:
        if name == self.broken:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._may_fail("init")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-00":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._may_fail("memory")
        return SimpleNamespace(total=80, free=30, used=50)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        sizes: dict[int, int | None] = {7: 20, 8: None}
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes.items()]

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._may_fail("rates")
        return SimpleNamespace(gpu=37, memory=5)


@pytest.mark.parametrize(
    ("broken", "uuid", "percent"),
    [("", "GPU-00", 37), ("", "GPU-11", None), ("init", "GPU-00", None), ("rates", "GPU-00", None)],
)
def test_utilisation_is_a_percentage_or_nothing(
    monkeypatch: pytest.MonkeyPatch, broken: str, uuid: str, percent: int | None
) -> None:
    nvml = FakeNvml(broken)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert read_utilisation(uuid) == percent
    assert nvml.opened == 0


def test_a_gpus_memory_is_told_with_the_processes_that_nvml_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = GpuMeter()
    assert meter.read("GPU-00") == meter.read("GPU-00") == GpuReading(30, 50, {7: 20})
    assert nvml.opened == 1


@pytest.mark.parametrize(("broken", "uuid"), [("init", "GPU-00"), ("memory", "GPU-00"), ("", "GPU-11")])
def test_memory_that_nvml_can_not_read_is_an_error_that_names_the_gpu(
    monkeypatch: pytest.MonkeyPatch, broken: str, uuid: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken))
    with pytest.raises(DeviceError, match=uuid):
        GpuMeter().read(uuid)
