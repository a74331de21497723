"""What vLLM's processes write is in the worker's log, in the form of its other lines."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from tests.engine.conftest import ON_CPU

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PATIENCE_S = 300.0


async def test_every_line_is_json_with_its_level(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = f"p-{uuid4().hex[:8]}"
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    with running_services(ServicesChoice.EMBEDDED) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=pool,
            engine="vllm",
            model=tiny_model,
            engine_args=ON_CPU,
            max_running=2,
            http_host="127.0.0.1",
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            worker = workers.start(settings)
            await wait_until_ready([worker], timeout_s=PATIENCE_S)
            await fleet.run("hello", pool=pool, max_tokens=4, timeout_s=PATIENCE_S)
            await worker.stop()
            log = await asyncio.to_thread(worker.log.read_text)
    # Behind the log comes what libraries in C++ say when Python exits.
    lines = [json.loads(line) for line in log[: log.rindex("}\n") + 1].splitlines()]
    of_core = [line for line in lines if line["message"].startswith("(EngineCore pid=")]
    assert any(line["level"] == "INFO" for line in of_core)
    assert {line["worker_id"] for line in lines} == {settings.worker_id}
