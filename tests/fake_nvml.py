"""NVIDIA's management library for machines without a GPU. It stands in for the module ``pynvml`` alone."""
# ruff: noqa: N802 - NVML's own names

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


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

    def nvmlInit(self) -> None:
        pass

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
