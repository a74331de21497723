"""Workers with LoRA adapters: what a gateway knows of them, and what becomes of an interrupted answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from tests.engine.conftest import ON_CPU
from tests.engine.lora import write_adapter

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.producer import Fleet
from inferfleet.producer.openai.models import Models
from inferfleet.schemas import FailureCode, Job, JobState, Result
from inferfleet.schemas.journal import JournalEntry, RestartedEntry, RestartReason, RunningEntry, TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.worker import Worker

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]

PATIENCE_S = 300.0
TOKENS = 1000
MAX_MODEL_LEN = 2048


def body(model: str, *, tokens: int = 20) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of the sea, at length."}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


class Pool:
    """A pool whose worker has adapters."""

    def __init__(self, settings: WorkerSettings, fleet: Fleet) -> None:
        self._settings = settings
        self.fleet = fleet
        self.name = settings.pool
        self.adapters = Path(settings.adapters_dir)

    @asynccontextmanager
    async def worker(self, worker_id: str) -> AsyncIterator[None]:
        """Run a worker, and drain it: it hands over at once what it runs."""
        settings = self._settings.model_copy(update={"worker_id": f"{self.name}-{worker_id}"})
        worker = Worker(settings=settings, engine=VllmEngine.from_settings(settings))
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await running

    async def until_tokens(self, job: Job) -> None:
        async for line in self.fleet.stream(job):
            if isinstance(line.entry, TokensEntry):
                return

    async def answer(self, model: str, *, tokens: int = 20) -> Result:
        job = await self.fleet.submit(body(model, tokens=tokens), pool=self.name)
        return await self.fleet.wait(job, timeout_s=PATIENCE_S)

    async def journal(self, job: Job) -> list[JournalEntry]:
        return [line.entry async for line in self.fleet.stream(job)]


@pytest_asyncio.fixture(loop_scope="session")
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    model = build_tiny_model(tmp_path / "model", max_model_len=MAX_MODEL_LEN)
    adapters = tmp_path / "adapters"
    for seed, name in enumerate(("first", "second")):
        write_adapter(adapters / name, seed=seed)
    write_adapter(adapters / "high", seed=3, rank=64)
    choice = ServicesChoice.EMBEDDED if unavailable_reason() else ServicesChoice.NATIVE
    with running_services(choice) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=f"p-{uuid4().hex[:8]}",
            model=str(model),
            engine_args=ON_CPU | {"max_model_len": MAX_MODEL_LEN, "max_loras": 2},
            adapters_dir=str(adapters),
            max_running=4,
            drain_timeout_s=0,
            http_host="127.0.0.1",
            http_port=0,
        )
        async with Fleet.connect(ProducerSettings(**urls)) as fleet:
            await fleet.declare_pool(settings.pool)
            yield Pool(settings, fleet)


async def test_an_answer_resumes_with_its_adapter_and_restarts_if_that_was_replaced(pool: Pool) -> None:
    # Given two answers that a worker has begun with adapters
    async with pool.worker("a"):
        jobs = {
            name: await pool.fleet.submit(body(name, tokens=TOKENS), pool=pool.name, stream=True)
            for name in ("first", "second")
        }
        await asyncio.gather(*map(pool.until_tokens, jobs.values()))
        # When one adapter is replaced, and the worker is drained
        before = (await pool.fleet.get(jobs["second"])).model_identity
        write_adapter(pool.adapters / "second", seed=9)
    async with pool.worker("b"):
        ended = {
            name: (await pool.fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
            for name, job in jobs.items()
        }
        journals = {name: await pool.journal(job) for name, job in jobs.items()}

        # Then the other answer was resumed, and this one restarted
        running = [entry for entry in journals["first"] if isinstance(entry, RunningEntry)]
        assert running[-1].resumed_from > 0
        assert not any(isinstance(entry, RestartedEntry) for entry in journals["first"])
        (restarted,) = [entry for entry in journals["second"] if isinstance(entry, RestartedEntry)]
        assert restarted.reason is RestartReason.ANOTHER_MODEL

        # And both texts are those of one adapter alone
        identities = {name: result.model_identity for name, result in ended.items()}
        assert identities["first"] != identities["second"] != before
        assert {entry.model_identity for entry in running} == {identities["first"]}
        for name, result in ended.items():
            whole = (await pool.answer(name, tokens=TOKENS)).raise_for_state()
            assert (result.text, result.model_identity) == (whole.text, whole.model_identity)
            assert result.response is not None
            assert result.response["model"] == name


async def test_a_gateway_knows_the_adapters_and_a_bad_one_fails_only_its_job(pool: Pool) -> None:
    async with pool.worker("a"):
        base, bad, unknown, good = await asyncio.gather(*map(pool.answer, ("tiny", "high", "../x", "first")))
        for result, says in ((bad, "LoRA rank 64 is greater than"), (unknown, "not '../x'")):
            assert result.state is JobState.FAILED
            assert result.error is not None
            assert result.error.code is FailureCode.INVALID_REQUEST
            assert says in result.error.message
            assert result.attempts == 1
        assert base.raise_for_state().text != good.raise_for_state().text

        models = Models(pool.fleet.workers, pool="none")
        assert (await models.route("first", pool=None)).pool == pool.name
        listed = {entry["id"]: entry["pool"] for entry in await models.list()}
        assert {name: listed[name] for name in ("tiny", "first", "second")} == dict.fromkeys(
            ("tiny", "first", "second"), pool.name
        )
        # An adapter that comes later is known, too.
        write_adapter(pool.adapters / "later", seed=5)
        async with asyncio.timeout(PATIENCE_S):
            while "later" not in (await pool.fleet.workers())[0].adapters:
                await asyncio.sleep(0.05)
        assert (await pool.answer("later")).raise_for_state().text != good.text
