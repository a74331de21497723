"""The GPUs of a worker, as NVML describes them. NVML itself is a fake here: these machines have no GPU."""
# ruff: noqa: N802 - NVML's own names

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferfleet.worker.gpus import GpuReading, Gpus


class NvmlError(Exception):
    pass


class FakeNvml:
    """Answers as NVML's documentation says: a MIG instance has memory, but no utilization or power."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, gpus: dict[str, list[str]], *, limits: int = 0) -> None:
        self._gpus = gpus
        self._whole = {mig: gpu for gpu, instances in gpus.items() for mig in instances}
        self._limits = limits
        self.lost = False

    def nvmlDeviceGetCount(self) -> int:
        if self.lost:
            raise NvmlError("GPU is lost")
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self._gpus)[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMigMode(self, gpu: str) -> list[int]:
        if not self._gpus[gpu]:
            raise NvmlError("not supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: str, number: int) -> str:
        try:
            return self._gpus[gpu][number]
        except IndexError as error:
            raise NvmlError("not found") from error

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        if handle in self._gpus:
            raise NvmlError("invalid argument")
        return self._whole[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=30, total=80 if handle in self._gpus else 40)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self._need_whole(handle)
        return SimpleNamespace(gpu=75, memory=20)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self._need_whole(handle)
        return 312_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        self._need_whole(handle)
        return 64

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        self._need_whole(handle)
        return self._limits

    def _need_whole(self, handle: str) -> None:
        if handle not in self._gpus:
            raise NvmlError("not supported")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_read_in_base_units() -> None:
    assert Gpus(FakeNvml({"GPU-1": []}, limits=0x04 | 0x01)).read() == [
        GpuReading(
            uuid="GPU-1",
            memory_used_bytes=30,
            memory_total_bytes=80,
            utilization=0.75,
            power_watts=312.5,
            temperature_celsius=64,
            throttled={"power": True, "thermal": False, "hardware": False},
        )
    ]


def test_each_mig_instance_counts_as_a_gpu_with_the_power_of_the_whole() -> None:
    first, second = Gpus(FakeNvml({"GPU-1": ["MIG-a", "MIG-b"]})).read()

    assert (first.uuid, second.uuid) == ("MIG-a", "MIG-b")
    assert first.memory_total_bytes == 40
    assert (first.power_watts, first.temperature_celsius) == (312.5, 64)
    assert first.utilization is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["GPU-aa"]),
        ("1", ["MIG-x", "MIG-y"]),
        ("GPU-a", ["GPU-aa"]),
        ("MIG-y", ["MIG-y"]),
        ("", []),
    ],
)
def test_only_the_gpus_that_cuda_shows_the_process_are_read(
    visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    gpus = Gpus(FakeNvml({"GPU-aa": [], "GPU-bb": ["MIG-x", "MIG-y"]})).read()

    assert [gpu.uuid for gpu in gpus] == expected


def test_a_gpu_that_is_lost_is_absent_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml({"GPU-1": []})
    gpus = Gpus(nvml)
    nvml.lost = True
    assert (gpus.read(), gpus.read()) == ([], [])
    assert caplog.text.count("GPU is lost") == 1
    nvml.lost = False
    assert len(gpus.read()) == 1


def test_the_names_that_are_used_exist_in_the_real_library() -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]

    assert [name for name in used if not hasattr(pynvml, name)] == []


def test_without_a_driver_there_are_no_gpus() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert not Gpus().found
        assert Gpus().read() == []
    else:
        pytest.skip("this machine has an NVIDIA driver")
