"""The worker's GPUs, as NVIDIA's management library (NVML) sees them. Needs the extra ``gpu``.

A MIG instance counts as a GPU. NVML knows its memory; power, temperature and throttling are those of the
whole GPU that it is a part of, and its utilization is unknown.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
"""How long a scrape waits for NVML. Prometheus itself waits for 10 s."""

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
        self._asked: asyncio.Future[list[GpuReading]] | None = None

    async def ask(self) -> list[GpuReading]:
        """Return what NVML says, or nothing if it takes too long.

        The driver of a broken GPU may never answer. That costs one thread, which does not keep the process
        from exiting, and not a second one until the driver answers.
        """
        if self._nvml is None:
            return []
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._answer, args=(self._asked,), name="nvml", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.shield(self._asked), PATIENCE_S)
        except TimeoutError:
            self._fail("NVML does not answer")
            return []

    def _answer(self, asked: asyncio.Future[list[GpuReading]]) -> None:
        try:
            readings = self.read()
        except Exception:
            logger.exception("cannot read the GPUs")
            readings = []

        def tell() -> None:
            self._asked = None
            asked.set_result(readings)

        # Nobody waits any more if the loop is closed.
        with suppress(RuntimeError):
            asked.get_loop().call_soon_threadsafe(tell)

    def _fail(self, why: object) -> None:
        if not self._failed:
            logger.warning("cannot read the GPUs; omitting their metrics: %s", why)
        self._failed = True

    def read(self) -> list[GpuReading]:
        """Ask NVML, which may take milliseconds for each GPU, or for ever."""
        if self._nvml is None:
            return []
        try:
            readings = [self._reading(handle) for handle in self._handles()]
        except self._nvml.NVMLError as error:
            self._fail(error)
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
