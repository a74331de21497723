"""A run with failures, retries and a killed worker: metrics, Redis, log, spans and engine agree about it."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio as aioredis
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorkerProcess,
    WorkerProcess,
    chat,
    journal_of,
    record_of,
    slow_chat,
    until_tokens,
)
from tests.integration.tracing.collector import Collector, collecting

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState, span_names
from inferfleet.schemas.journal import RunningEntry

ENDS = {f"job {state.value}" for state in JobState if state.terminal}

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(worker: WorkerProcess) -> Values:
    """Every sample of a worker, by its name and its labels without the pool."""
    port = (await worker.logged("serving health"))["port"]
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        text = await answer.text()
    return {
        (
            sample.name.removeprefix("inferfleet_"),
            tuple(sorted((name, value) for name, value in sample.labels.items() if name != "pool")),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(values: Values, name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not given."""
    return sum(
        value for (its, have), value in values.items() if its == name and labels.items() <= dict(have).items()
    )


def ends(values: Values) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (dict(labels)["state"], dict(labels)["code"]): int(value)
            for (name, labels), value in values.items()
            if name == "jobs_finished_total" and value
        }
    )


def tokens_in(log: Path) -> int:
    """What the engine itself has counted, a line a step."""
    return sum(map(int, log.read_text().split()))


def failing(content: str, times: int, *, after: int = 3, **more: object) -> dict[str, object]:
    hooks = {"tokens": 8, "fail": "engine_error", "fail_times": times, "after_tokens": after}
    return chat(content, simulated=hooks, **more)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


async def test_metrics_records_log_spans_and_engine_agree_about_a_run_in_which_a_worker_was_killed(
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    environment: dict[str, str],
    collector: Collector,
    store: aioredis.Redis,
    pool: str,
    tmp_path: Path,
) -> None:
    environment |= {**collector.environment, "INFERFLEET_TRACING": "true"}

    def engine(log: str) -> tuple[str, str]:
        return "--engine-args", json.dumps({"speed": 0, "token_log": str(tmp_path / log)})

    killed = await start_worker_process(*engine("killed"))
    interrupted = await fleet.submit(
        Job(pool=pool, tenant="acme", stream=True, body=slow_chat(tokens=40, step_s=0.05))
    )
    await until_tokens(fleet, interrupted, 5)
    killed.signal(signal.SIGKILL)
    await killed.ended()
    worker = await start_worker_process(*engine("worker"), retry_base_s="0.05")
    # It hangs so that the engine has no token that nobody has read when the answer is stopped.
    endless = chat("endless", simulated={"tokens": 9, "after_tokens": 3, "hang": True})
    cancelled = await fleet.submit(Job(pool=pool, body=endless))
    await until_tokens(fleet, cancelled, 3)
    jobs = [
        interrupted,
        cancelled,
        *[await fleet.submit(chat(f"plain {number}", max_tokens=5), pool=pool) for number in range(5)],
        await fleet.submit(failing("twice", 2), pool=pool),
        await fleet.submit(failing("restarts", 1, n=2), pool=pool),
        await fleet.submit(Job(pool=pool, tenant="acme", max_attempts=2, body=failing("always", 9))),
        await fleet.submit(Job(pool=pool, timeout_s=3, body=endless)),
        await fleet.submit(chat("impossible", simulated={"fail": "invalid_request"}), pool=pool),
    ]
    await fleet.cancel(cancelled)
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    values = await scrape(worker)
    records = await fleet.get_many(jobs)
    resumed = [
        entry.resumed_from
        for entry in await journal_of(store, interrupted)
        if isinstance(entry, RunningEntry) and entry.resumed_from
    ]
    assert await worker.stop() == 0

    lines = [json.loads(line) for line in worker.log.splitlines()]
    logged = Counter(
        (line["message"].removeprefix("job "), line.get("code") or "")
        for line in lines
        if line["message"] in ENDS
    )
    in_redis = Counter(
        (record.state.value, record.result.error.code.value if record.result.error else "")
        for record in (record_of(records, job) for job in jobs)
        if record.result is not None
    )
    by_job: dict[str, Counter[str]] = {job.id: Counter() for job in jobs}
    for span in collector.spans:
        if (state := span.attributes.get(span_names.JOB_STATE)) is not None:
            by_job[span.attributes[span_names.JOB_ID]][state] += 1
    assert [state for counts in by_job.values() for state in counts if f"job {state}" in ENDS] == [
        result.state for result in results
    ]
    assert sum(counts["retry"] for counts in by_job.values()) == total(values, "jobs_retried_total")

    assert ends(values) == in_redis == logged
    assert len(in_redis) == 5

    # Tokens: the results have what this worker generated, without what it had to generate again, and what the
    # killed one had written down.
    usage = [result.usage for result in results]
    assert total(values, "tokens_generated_total") == tokens_in(tmp_path / "worker")
    assert len(resumed) == 1
    assert resumed[0] <= tokens_in(tmp_path / "killed")
    wasted = total(values, "tokens_wasted_total")
    assert wasted > 0
    completion = sum(it.completion_tokens for it in usage)
    assert completion == total(values, "tokens_generated_total") - wasted + resumed[0]
    assert total(values, "tokens_prompt_total") == sum(it.prompt_tokens for it in usage)
    assert total(values, "tokens_cached_total") == sum(it.cached_tokens for it in usage)

    # Each of them by tenant.
    for kind, count in (("completion", completion), ("prompt", sum(it.prompt_tokens for it in usage))):
        assert total(values, "tenant_tokens_total", kind=kind) == count
    assert total(values, "tenant_jobs_finished_total", tenant="acme") == 2
    assert total(values, "tenant_jobs_finished_total") == len(jobs)

    # On the way: 2 retries of the first failing job, one of the next, and one before the dead letter.
    assert total(values, "jobs_retried_total", code="engine_error") == 4
    assert total(values, "dead_letters_total", code="too_many_attempts") == 1
    assert total(values, "jobs_restarted_total", reason="not_resumable") == 1
    assert total(values, "jobs_resumed_total") == 4
    assert total(values, "engine_seconds_count") == len(jobs) + 4
    assert total(values, "end_to_end_seconds_count") == len(jobs)
    assert total(values, "journal_flush_tokens_sum") <= completion + wasted
    assert total(values, "redis_commands_total") > 0
    assert values["worker_info", tuple(sorted(info(values).items()))] == 1
    assert info(values)["model_identity"] == record_of(records, interrupted).model_identity


def info(values: Values) -> dict[str, str]:
    (labels,) = [labels for name, labels in values if name == "worker_info"]
    return dict(labels)
