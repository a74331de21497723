"""The model of a running worker is replaced: no job fails, no answer has text of two models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    assert_whole,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
    until_running,
    until_tokens,
)
from tests.integration.test_model_identity import since_the_restart

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobRecord, JobState, Result
from inferfleet.schemas.control import CancelJob, SwapModel, SwapStrategy
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.journal import RestartedEntry, RestartReason
from inferfleet.schemas.model_swap import SwapState
from inferfleet.schemas.names import CONTROL_EXCHANGE
from inferfleet.worker.engines.simulated import SimulatedEngine, SimulatedParameters, expected_text
from inferfleet.worker.ports import EngineDeadError

NEW = {"speed": 0, "weights": 7}
BOTH = pytest.mark.parametrize("strategy", SwapStrategy)


def identity(weights: int) -> str:
    return SimulatedEngine(model="simulated", max_running=1, engine_args={"weights": weights}).identity.short


WEIGHTS = {identity(weights): weights for weights in (0, 7)}


def assert_of_one_model(job: Job, result: Result) -> None:
    assert result.model_identity is not None
    parameters = SimulatedParameters(weights=WEIGHTS[result.model_identity])
    assert result.raise_for_state().text == expected_text(job.endpoint, job.body, parameters=parameters)


class Swapped:
    """Orders one worker to swap its model, as the command does, and follows it."""

    def __init__(self, fleet: Fleet, foreign: ForeignClient, worker_id: str) -> None:
        self._fleet = fleet
        self._foreign = foreign
        self._worker_id = worker_id

    async def order(self, **fields: Any) -> str:
        whole: dict[str, Any] = {
            "swap_id": uuid4().hex,
            "worker_id": self._worker_id,
            "model": "simulated",
            "engine_args": NEW,
            "drain_timeout_s": PATIENCE_S,
            **fields,
        }
        await self._foreign.publish(SwapModel(**whole).model_dump_json().encode(), exchange=CONTROL_EXCHANGE)
        return str(whole["swap_id"])

    async def heartbeat(self) -> Heartbeat:
        (found,) = [it for it in await self._fleet.workers() if it.worker_id == self._worker_id]
        return found

    async def until(self, wanted: Callable[[Heartbeat], bool]) -> Heartbeat:
        """Wait for a heartbeat for which ``wanted`` is true, and return it."""
        found: list[Heartbeat] = []

        async def is_so() -> bool:
            its = [it for it in await self._fleet.workers() if it.worker_id == self._worker_id]
            found[:] = filter(wanted, its)
            return bool(found)

        await eventually(is_so)
        return found[0]

    async def until_over(self, swap_id: str | None = None) -> Heartbeat:
        def over(heartbeat: Heartbeat) -> bool:
            swap = heartbeat.swap
            return swap is not None and not swap.busy and swap_id in {None, swap.swap_id}

        return await self.until(over)


@pytest.fixture
async def swapped(fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str) -> Swapped:
    """A ready worker with four slots."""
    await start_worker(worker_id=f"{pool}-w", max_running=4)
    swapped = Swapped(fleet, foreign, f"{pool}-w")

    async def ready() -> bool:
        return any(it.phase is WorkerPhase.READY for it in await fleet.workers() if it.pool == pool)

    await eventually(ready)
    return swapped


@BOTH
async def test_no_job_fails_and_no_answer_has_text_of_two_models(
    fleet: Fleet, swapped: Swapped, store: aioredis.Redis, pool: str, strategy: SwapStrategy
) -> None:
    jobs = [
        await fleet.submit(slow_chat(f"{n}", tokens=20 + n, step_s=0.01), pool=pool, stream=True)
        for n in range(16)
    ]
    await until_tokens(fleet, jobs[0], 3)

    await swapped.order(strategy=strategy)
    heartbeat = await swapped.until_over()

    jobs.append(await fleet.submit(slow_chat("after", tokens=20, step_s=0), pool=pool, stream=True))
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    for job, result in zip(jobs, results, strict=True):
        assert_of_one_model(job, result)
        entries = await journal_of(store, job)
        assert "restarted" not in kinds_of(entries)
        assert_whole(entries)
    assert {result.model_identity for result in results} == {identity(0), identity(7)}
    assert results[-1].model_identity == identity(7) == heartbeat.model_identity
    assert heartbeat.phase is WorkerPhase.READY
    assert heartbeat.swap is not None
    assert (heartbeat.swap.state, heartbeat.swap.reason) == (SwapState.SWITCHED, "")
    assert (heartbeat.swap.without_service_s > 0) is (strategy is SwapStrategy.RESTART)


@BOTH
async def test_an_answer_that_outlasts_the_drain_begins_again_on_the_new_model(
    fleet: Fleet, swapped: Swapped, store: aioredis.Redis, pool: str, strategy: SwapStrategy
) -> None:
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await swapped.order(strategy=strategy, drain_timeout_s=0)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert_of_one_model(job, result)
    assert result.model_identity == identity(7)
    entries = await journal_of(store, job)
    (restarted,) = [entry for entry in entries if isinstance(entry, RestartedEntry)]
    assert restarted.reason is RestartReason.ANOTHER_MODEL
    assert_whole(since_the_restart(entries))


@BOTH
async def test_the_same_model_with_another_size_resumes_an_answer_that_outlasts_the_drain(
    fleet: Fleet, swapped: Swapped, store: aioredis.Redis, pool: str, strategy: SwapStrategy
) -> None:
    """Nothing but the length of its context differs, so it has the identity of the old one."""
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await swapped.order(strategy=strategy, drain_timeout_s=0, engine_args={"max_model_len": 1024})
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert_of_one_model(job, result)
    assert result.model_identity == identity(0)
    entries = await journal_of(store, job)
    assert "restarted" not in kinds_of(entries)
    assert kinds_of(entries).count("running") > 1
    assert_whole(entries)


async def test_the_old_model_serves_while_the_new_one_loads(
    fleet: Fleet, swapped: Swapped, pool: str
) -> None:
    await swapped.order(engine_args={"load_s": 10_000})
    await swapped.until(lambda it: it.swap is not None and it.swap.state is SwapState.LOADING)
    job = await fleet.submit(chat(), pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.model_identity == identity(0)
    assert (await swapped.heartbeat()).phase is WorkerPhase.READY


async def test_a_worker_without_a_model_takes_no_job_and_is_not_ready(
    fleet: Fleet, swapped: Swapped, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await swapped.order(strategy=SwapStrategy.RESTART, engine_args={"load_s": 10_000})
    await swapped.until(lambda it: it.phase is WorkerPhase.LOADING)
    job = await fleet.submit(chat(), pool=pool)

    async def given_back() -> bool:
        return await foreign.waiting() == 1

    await eventually(given_back)
    other = await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    record = await fleet.get(job)
    assert isinstance(record, JobRecord)
    assert record.worker_id == other.worker._settings.worker_id  # pyright: ignore[reportPrivateUsage]


@BOTH
@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"engine_args": {"shade": 7}}, "no argument 'shade'"),
        ({"engine_args": NEW, "probe_hash": "0123456789abcdef"}, "but 0123456789abcdef is required"),
        ({"engine_args": {"speed": 0, "weights": -1}}, "one token over and over"),
        ({"engine_args": {"speed": 0, "max_model_len": 2}}, "refuses the probe"),
        ({"engine_args": NEW, "max_perplexity": 20}, "perplexity is unknown"),
        ({"model": "another-name"}, "served as 'another-name' instead of 'simulated'"),
    ],
    ids=["unknown argument", "other hash", "lost weights", "refuses", "perplexity", "name"],
)
async def test_a_model_that_is_not_fit_is_rolled_back(
    fleet: Fleet,
    swapped: Swapped,
    pool: str,
    strategy: SwapStrategy,
    order: dict[str, Any],
    reason: str,
) -> None:
    running = await fleet.submit(slow_chat("runs", tokens=30, step_s=0.01), pool=pool)
    await until_running(fleet, running)
    await swapped.order(strategy=strategy, **order)
    heartbeat = await swapped.until_over()
    assert heartbeat.swap is not None
    assert heartbeat.swap.state is SwapState.ROLLED_BACK
    assert reason in heartbeat.swap.reason
    assert (heartbeat.phase, heartbeat.model_identity) == (WorkerPhase.READY, identity(0))
    jobs = [running, await fleet.submit(chat("after"), pool=pool)]
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=PATIENCE_S), strict=True):
        assert_of_one_model(job, result)
        assert result.model_identity == identity(0)


async def test_a_worker_does_one_swap_at_a_time_and_the_same_order_once(
    fleet: Fleet, swapped: Swapped, foreign: ForeignClient, pool: str
) -> None:
    job = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_running(fleet, job)
    first = await swapped.order(engine_args={"load_s": 10_000})
    begun = await swapped.until(lambda it: it.swap is not None)
    await swapped.order()
    await swapped.order(swap_id=first)
    # Commands are obeyed in order.
    await foreign.publish(CancelJob(job_id=job.id).model_dump_json().encode(), exchange=CONTROL_EXCHANGE)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (await swapped.heartbeat()).swap == begun.swap


async def test_a_worker_that_has_swapped_can_swap_back(fleet: Fleet, swapped: Swapped, pool: str) -> None:
    for weights in (7, 0, 7):
        swap_id = await swapped.order(engine_args={"speed": 0, "weights": weights})
        heartbeat = await swapped.until_over(swap_id)
        assert heartbeat.model_identity == identity(weights)
        job = await fleet.submit(chat(f"{weights}"), pool=pool)
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).model_identity == identity(weights)


async def test_a_worker_that_drains_gives_up_its_swap(
    start_worker: StartWorker, fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w")
    swapped = Swapped(fleet, foreign, f"{pool}-w")

    async def alive() -> bool:
        return worker.worker.phase is WorkerPhase.READY

    await eventually(alive)
    await swapped.order(engine_args={"load_s": 10_000}, strategy=SwapStrategy.RESTART)
    await swapped.until(lambda it: it.phase is WorkerPhase.LOADING)
    await worker.stop()
    assert worker.running.exception() is None


async def test_a_worker_that_can_load_no_model_any_more_ends_and_another_answers_its_jobs(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its driver fails, for example, which no engine has foreseen."""
    worker = await start_worker(worker_id=f"{pool}-w")
    swapped = Swapped(fleet, foreign, f"{pool}-w")
    await swapped.until(lambda heartbeat: heartbeat.phase is WorkerPhase.READY)

    async def fail(_: SimulatedEngine) -> None:
        raise RuntimeError("device busy")

    with monkeypatch.context() as patched:
        patched.setattr(SimulatedEngine, "start", fail)
        await swapped.order(strategy=SwapStrategy.RESTART)
        job = await fleet.submit(chat(), pool=pool)
        with pytest.raises(EngineDeadError, match="neither model can be loaded: device busy; device busy"):
            async with asyncio.timeout(PATIENCE_S):
                await worker.running

    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
