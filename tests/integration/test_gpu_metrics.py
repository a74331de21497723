"""The GPUs in a worker's metrics."""

from __future__ import annotations

import aiohttp
from tests.integration.conftest import StartWorkerProcess

NEVER_ANSWERS = """
import sys, threading
from tests.fake_nvml import FakeNvml
FakeNvml.nvmlDeviceGetCount = lambda self: threading.Event().wait()
sys.modules["pynvml"] = FakeNvml({"GPU-1": []})
"""
"""A driver whose GPU has fallen off the bus."""


async def test_a_driver_that_hangs_costs_the_metrics_of_the_gpus_alone(
    start_worker_process: StartWorkerProcess,
) -> None:
    worker = await start_worker_process(preamble=NEVER_ANSWERS, http_port="0")
    port = (await worker.logged("serving health and metrics"))["port"]
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                text = await answer.text()
    assert "inferfleet_worker_ready" in text
    assert "inferfleet_gpu_seconds" not in text
    assert worker.log.count("NVML does not answer") == 1
    assert await worker.stop() == 0
