"""How long vLLM's parts of a start take, as the worker logs it and shows it to Prometheus."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.conftest import ON_CPU

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.start_times import StartPart

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PATIENCE_S = 300.0
NOT_HERE = {StartPart.COMPILE, StartPart.GRAPHS}
"""These tests run vLLM with ``enforce_eager``."""


async def test_every_part_is_measured_and_they_add_up_to_the_start(tiny_model: str) -> None:
    with running_services(ServicesChoice.EMBEDDED) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=f"p-{uuid4().hex[:8]}",
            engine="vllm",
            model=tiny_model,
            engine_args=ON_CPU,
            max_running=2,
            http_host="127.0.0.1",
        )
        async with WorkerProcesses() as workers, aiohttp.ClientSession() as http:
            began = time.monotonic()
            worker = workers.start(settings)
            await wait_until_ready([worker], timeout_s=PATIENCE_S)
            waited_s = time.monotonic() - began
            url = f"http://127.0.0.1:{worker.settings.http_port}/metrics"
            async with http.get(url) as answer:
                families = text_string_to_metric_families(await answer.text())
            shown = {
                sample.labels["part"]: sample.value
                for family in families
                if family.name == "inferfleet_worker_start_seconds"
                for sample in family.samples
            }
            lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line[:1] == "{"]
    (told,) = [line for line in lines if line["message"].startswith("started in ")]
    assert shown.keys() == {*StartPart}
    assert {part for part in StartPart if shown[part] == 0} == NOT_HERE
    assert {**dict.fromkeys(NOT_HERE, 0.0), **told["parts"]} == pytest.approx(shown)
    assert sum(shown.values()) <= waited_s
    # VLLM_LOGGING_LEVEL is WARNING: vLLM's own lines with these times are not in the log.
    assert not [line for line in lines if "Loading weights took" in line["message"]]
