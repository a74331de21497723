"""The worker's GPUs, as NVIDIA's management library (NVML) sees them. Needs the extra ``gpu``.

A MIG instance counts as a GPU. NVML knows its memory; power, temperature and throttling are those of the
whole GPU that it is a part of, and its utilization is unknown.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

logger = logging.getLogger(__name__)

THROTTLING: Final = {
    "power": 0x04 | 0x80,
    "thermal": 0x20 | 0x40,
    "hardware": 0x08,
}
"""NVML's bits for the reasons of lower clocks that are limits of a GPU, and not idleness or a setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What NVML says of one GPU now. ``None`` is unknown."""

    uuid: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    """The share of the last moments in which a kernel ran, 0 to 1."""
    power_watts: float | None = None
    temperature_celsius: float | None = None
    throttled: dict[str, bool] | None = None


class Gpus:
    """Reads the GPUs that CUDA shows this process: none without NVML, a driver, or a GPU."""

    def __init__(self, nvml: Any | None = None) -> None:
        self._nvml: Any = nvml if nvml is not None else _nvml()
        self._failed = False

    @property
    def found(self) -> bool:
        """Whether there is a driver to ask."""
        return self._nvml is not None

    def read(self) -> list[GpuReading]:
        """Ask NVML, which may take milliseconds for each GPU: call this in a thread."""
        if self._nvml is None:
            return []
        try:
            readings = [self._reading(handle) for handle in self._handles()]
        except self._nvml.NVMLError as error:
            if not self._failed:
                logger.warning("cannot read the GPUs; omitting their metrics: %s", error)
            self._failed = True
            return []
        self._failed = False
        return readings

    def _handles(self) -> Iterator[Any]:
        """Yield the visible GPUs, and instead of one that is partitioned its MIG instances."""
        nvml = self._nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = None if visible is None else [name.strip() for name in visible.split(",")]
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            named = names is None or _is_named(names, nvml.nvmlDeviceGetUUID(gpu), str(index))
            mode = self._known(nvml.nvmlDeviceGetMigMode, gpu)
            if not mode or not mode[0]:
                if named:
                    yield gpu
                continue
            for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
                instance = self._known(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, number)
                if instance is not None and (
                    named or (names is not None and _is_named(names, nvml.nvmlDeviceGetUUID(instance)))
                ):
                    yield instance

    def _reading(self, handle: Any) -> GpuReading:
        nvml, known = self._nvml, self._known
        whole = known(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) or handle
        memory = known(nvml.nvmlDeviceGetMemoryInfo, handle)
        utilization = known(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = known(nvml.nvmlDeviceGetPowerUsage, whole)
        limits = known(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, whole)
        return GpuReading(
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization=None if utilization is None else utilization.gpu / 100,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=known(nvml.nvmlDeviceGetTemperature, whole, nvml.NVML_TEMPERATURE_GPU),
            throttled=None
            if limits is None
            else {why: bool(limits & bits) for why, bits in THROTTLING.items()},
        )

    def _known(self, ask: Callable[..., Any], *arguments: Any) -> Any | None:
        """Return NVML's answer; ``None`` if this GPU or driver has none."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None


def _is_named(names: list[str], *own: str) -> bool:
    # CUDA takes a unique beginning of a UUID, too.
    return any(name in own or (name[:4] in {"GPU-", "MIG-"} and own[0].startswith(name)) for name in names)


def _nvml() -> Any | None:
    """Return NVIDIA's module, initialized; ``None`` if it is not installed or there is no driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.debug("no GPU metrics: %s", error)
        return None
    return nvml
