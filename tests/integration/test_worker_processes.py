"""Worker processes on this machine, as the demo and the other local parts use them."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.services import Services
from inferfleet.local.worker_processes import (
    WorkerProcessError,
    WorkerProcesses,
    wait_until_ready,
)
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.settings import WorkerSettings

MakeSettings = Callable[..., WorkerSettings]


@pytest.fixture
def settings(services: Services, pool: str) -> MakeSettings:
    def make(**changes: Any) -> WorkerSettings:
        return WorkerSettings(
            **{
                "amqp_url": services.amqp_url,
                "redis_url": services.redis_url,
                "pool": pool,
                "engine": "simulated",
                "worker_id": f"worker-{uuid4().hex[:8]}",
                **changes,
            }
        )

    return make


async def test_a_ready_worker_says_how_it_is(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings(max_running=3))
        await wait_until_ready([worker], timeout_s=PATIENCE_S)

        heartbeat = await worker.heartbeat()

    assert heartbeat is not None
    assert (heartbeat.worker_id, heartbeat.phase) == (worker.id, WorkerPhase.READY)


async def test_all_are_drained_at_the_end_and_exit_with_0(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        workers = [processes.start(settings()) for _ in range(2)]
        await wait_until_ready(workers, timeout_s=PATIENCE_S)

    assert [worker.poll() for worker in workers] == [0, 0]
    assert await workers[0].heartbeat() is None


async def test_a_stopped_worker_can_be_replaced_while_another_runs(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        first, second = (processes.start(settings()) for _ in range(2))
        await wait_until_ready([first, second], timeout_s=PATIENCE_S)

        assert await first.stop() == 0
        third = processes.start(settings())
        await wait_until_ready([third], timeout_s=PATIENCE_S)

        assert second.poll() is None


async def test_a_killed_worker_tells_by_what_and_stopping_it_again_does_no_harm(
    settings: MakeSettings,
) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings())
        await wait_until_ready([worker], timeout_s=PATIENCE_S)

        assert await worker.kill() == -signal.SIGKILL

        assert "was ended by SIGKILL" in worker.describe_end()
        assert await worker.stop() == -signal.SIGKILL


async def test_a_paused_worker_does_not_answer_and_goes_on_later(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings())
        await wait_until_ready([worker], timeout_s=PATIENCE_S)

        worker.send_signal(signal.SIGSTOP)
        assert await worker.heartbeat() is None
        assert worker.poll() is None

        worker.send_signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            while await worker.heartbeat() is None:
                pass


async def test_a_worker_that_ignores_its_orders_is_killed(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferfleet.local.worker_processes.STOP_GRACE_S", 0.2)
    async with WorkerProcesses() as processes:
        worker = processes.start(settings(drain_timeout_s=0))
        await wait_until_ready([worker], timeout_s=PATIENCE_S)
        worker.send_signal(signal.SIGSTOP)
        assert await worker.heartbeat() is None

        assert await worker.stop() == -signal.SIGKILL


async def test_a_wrong_setting_is_told_with_the_workers_own_words(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings(engine_args={"nonsense": 1}))

        with pytest.raises(ConfigurationError, match="has no argument 'nonsense'"):
            await wait_until_ready([worker], timeout_s=PATIENCE_S)


async def test_services_out_of_reach_are_told_as_such(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings(redis_url="redis://127.0.0.1:1/0"))

        with pytest.raises(ServiceUnreachableError, match="does not answer"):
            await wait_until_ready([worker], timeout_s=PATIENCE_S)


async def test_a_worker_that_takes_too_long_to_load_is_told(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings(engine_args={"load_s": 3600}))

        with pytest.raises(WorkerProcessError, match="not ready within 1 s"):
            await wait_until_ready([worker], timeout_s=1)


async def test_logs_stay_in_a_folder_that_was_given(settings: MakeSettings, tmp_path: Path) -> None:
    async with WorkerProcesses(log_folder=tmp_path) as processes:
        worker = processes.start(settings())
        await wait_until_ready([worker], timeout_s=PATIENCE_S)

    assert "worker has stopped" in (tmp_path / f"{worker.id}.log").read_text()


async def test_without_a_folder_the_logs_go_with_the_processes(settings: MakeSettings) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings())
        await wait_until_ready([worker], timeout_s=PATIENCE_S)
        assert worker.log.exists()

    assert not worker.log.parent.exists()


async def test_the_log_of_a_worker_that_crashed_is_kept(settings: MakeSettings, fleet: Fleet) -> None:
    async with WorkerProcesses() as processes:
        worker = processes.start(settings())
        await wait_until_ready([worker], timeout_s=PATIENCE_S)

        body = {"messages": [{"role": "user", "content": "bye"}], "simulated": {"kill_engine": True}}
        await fleet.submit(body, pool=worker.settings.pool, max_attempts=1)

        assert await worker.wait() == 1
        assert f"ended with code 1; the end of its log (all of it: {worker.log}):" in worker.describe_end()

    assert "the engine died" in worker.log.read_text()
    shutil.rmtree(worker.log.parent)
