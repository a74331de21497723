"""Attempts are told as spans, also those whose worker died."""

from __future__ import annotations

import signal

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.tracing.collector import Collector

from inferfleet.producer import Fleet
from inferfleet.schemas.span_names import SCHEMA_URL
from inferfleet.schemas.trace import span_of_attempt, trace_of_attempts
from inferfleet.wire.span_export import MAX_CHARS

ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = f"00-{ID}-{PARENT}-01"
UNSAMPLED = f"00-{ID}-{PARENT}-00"


async def test_an_attempt_is_a_tree_of_spans_with_what_was_asked_and_said(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    await start_tracing("--worker-id", f"w-{pool}")
    body = chat(max_tokens=7, temperature=0.5, simulated={"tokens": 7}, model="simulated")
    job = await fleet.submit(body, pool=pool, stream=True, priority=7, traceparent=SAMPLED)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    (attempt,) = await collector.attempts(job.id, 1)
    await eventually(lambda: _has(collector, "commit"))
    assert (attempt.trace, attempt.parent) == (ID, PARENT)
    assert (attempt.name, attempt.id) == ("chat simulated", span_of_attempt(job.id, 1))
    assert attempt.schema_url == SCHEMA_URL
    assert attempt.resource["service.name"] == "inferfleet-worker"
    assert not attempt.failed
    assert attempt.attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attempt.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "simulated",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.model": "simulated",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.id": (result.response or {})["id"],
        "gen_ai.response.model": "simulated",
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 7,
        "inferfleet.attempt": 1,
        "inferfleet.job.id": job.id,
        "inferfleet.job.state": "succeeded",
        "inferfleet.pool": pool,
        "inferfleet.priority": 7,
        "inferfleet.resumed_from": 0,
        "inferfleet.tenant": "default",
        "inferfleet.worker.id": f"w-{pool}",
        "messaging.destination.name": f"inferfleet.jobs.{pool}",
        "messaging.message.id": job.id,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.system": "rabbitmq",
    }
    stages = [span for span in collector.spans if span.parent == attempt.id]
    assert {span.name for span in stages} == {"prefill", "decode", "commit"}
    assert {span.name for span in collector.spans if span.parent == PARENT} == {"queue", "chat simulated"}
    collector.check_tree(PARENT)
    assert b"hello" not in b"".join(received.body for received in collector.receiver.received)


@pytest.mark.parametrize("sampled", [True, False])
async def test_histograms_lead_to_the_traces_of_sampled_jobs(
    fleet: Fleet, start_tracing: StartWorkerProcess, pool: str, *, sampled: bool
) -> None:
    worker = await start_tracing()
    port = (await worker.logged("serving health"))["port"]
    job = await fleet.submit("hello", pool=pool, traceparent=SAMPLED if sampled else UNSAMPLED)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    url, accept = (
        f"http://127.0.0.1:{port}/metrics",
        {"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    async with aiohttp.ClientSession() as http, http.get(url, headers=accept) as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    traced = {
        (family.name, sample.exemplar.labels["trace_id"])
        for family in families
        for sample in family.samples
        if sample.exemplar is not None
    }
    times = ("queue_wait", "time_to_first_token", "generation", "end_to_end")
    assert traced == {(f"inferfleet_{time}_seconds", ID) for time in times if sampled}


async def test_the_attempt_of_a_killed_worker_is_told_by_the_next(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    first = await start_tracing("--worker-id", f"first-{pool}", lease_s="1", journal_flush_s="0.02")
    job = await fleet.submit(slow_chat(tokens=60, step_s=0.05), pool=pool, traceparent=SAMPLED)
    await until_running(fleet, job)
    await eventually(lambda: _has_tokens(fleet, job.id))
    first.signal(signal.SIGKILL)
    await first.ended()
    await start_tracing("--worker-id", f"second-{pool}", lease_s="1")
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    lost, second = await collector.attempts(job.id, 2)
    await eventually(lambda: _has(collector, "commit"))
    assert [lost.id, second.id] == [span_of_attempt(job.id, number) for number in (1, 2)]
    assert lost.attributes["inferfleet.worker.id"] == f"first-{pool}"
    assert lost.failed
    assert lost.attributes["error.type"] == "worker_lost"
    assert lost.end == second.start
    assert second.attributes["inferfleet.worker.id"] == f"second-{pool}"
    assert second.attributes["inferfleet.resumed_from"] > 0
    assert not second.failed
    tokens = [each.attributes["gen_ai.usage.output_tokens"] for each in (lost, second)]
    assert sum(tokens) == result.usage.completion_tokens
    (link,) = second.links
    assert (link.trace, link.span) == (ID, lost.id)
    assert link.attributes == {"inferfleet.link": "previous_attempt"}
    # The first began to wait with the submission; the second took over.
    assert [span.attributes["inferfleet.attempt"] for span in collector.named("queue")] == [1]
    assert "hydrate" in {span.name for span in collector.spans if span.parent == second.id}
    collector.check_tree(PARENT)


async def test_retries_and_hand_overs_are_linked_and_wait_in_spans_of_their_own(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    first = await start_tracing(retry_base_s="0.05", drain_timeout_s="0", journal_flush_s="0.02")
    body = slow_chat(tokens=40, step_s=0.05, fail="engine_error", fail_times=1)
    job = await fleet.submit(body, pool=pool, traceparent=SAMPLED)
    (failed,) = await collector.attempts(job.id, 1)
    await eventually(lambda: _has_tokens(fleet, job.id))
    assert await first.stop() == 0
    # The engine of each worker fails once.
    await start_tracing(retry_base_s="0.05")
    await fleet.wait(job, timeout_s=PATIENCE_S)
    attempts = await collector.attempts(job.id, 4)
    await eventually(lambda: _has(collector, "commit", count=4))
    states = [attempt.attributes["inferfleet.job.state"] for attempt in attempts]
    assert states == ["retry", "handed_over", "retry", "succeeded"]
    assert [attempt.failed for attempt in attempts] == [True, False, True, False]
    assert failed.attributes["error.type"] == "engine_error"
    assert [[link.span for link in attempt.links] for attempt in attempts] == [
        [],
        [attempts[0].id],
        [attempts[1].id],
        [attempts[2].id],
    ]
    waits = collector.named("queue")
    assert [wait.attributes["inferfleet.attempt"] for wait in waits] == [1, 2, 3, 4]
    assert [wait.end for wait in waits] == [attempt.start for attempt in attempts]
    collector.check_tree(PARENT)


async def test_a_job_without_a_trace_has_one_of_its_own_for_all_attempts(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    await start_tracing(retry_base_s="0.05")
    job = await fleet.submit(chat(simulated={"fail": "engine_error", "fail_times": 1}), pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    await collector.attempts(job.id, 2)
    await eventually(lambda: _has(collector, "commit", count=2))
    assert {span.trace for span in collector.spans} == {trace_of_attempts(job.id, None)}
    collector.check_tree("")


async def test_what_submitters_make_up_has_a_limit_in_spans(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    worker = await start_tracing()
    jobs = [
        await fleet.submit(chat(**body), pool=pool, traceparent=SAMPLED)
        for body in ({"model": "m" * 100_000}, {"top_k": 2**63}, {})
    ]
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    attempts = {job.id: (await collector.attempts(job.id, 1))[0] for job in jobs}
    assert max(len(attempt.name) for attempt in attempts.values()) == MAX_CHARS
    assert max(len(str(attempt.attributes)) for attempt in attempts.values()) < 3 * MAX_CHARS
    assert "Failed to encode" not in worker.log


async def test_a_job_whose_submitter_does_not_sample_it_has_no_span(
    fleet: Fleet, start_tracing: StartWorkerProcess, collector: Collector, pool: str
) -> None:
    worker = await start_tracing()
    jobs = [
        await fleet.submit("hello", pool=pool, traceparent=traceparent)
        for traceparent in (UNSAMPLED, SAMPLED)
    ]
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    assert {span.attributes.get("inferfleet.job.id") for span in collector.spans} == {jobs[1].id, None}


async def test_the_sampler_decides_about_jobs_without_a_trace(
    fleet: Fleet,
    start_tracing: StartWorkerProcess,
    environment: dict[str, str],
    collector: Collector,
    pool: str,
) -> None:
    environment |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    worker = await start_tracing()
    jobs = await fleet.submit_many(["hello"] * 100, pool=pool)
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    sampled = {span.trace for span in collector.spans}
    assert 10 < len(sampled) < 90
    assert sampled <= {trace_of_attempts(job.id, None) for job in jobs}


async def test_a_worker_that_does_not_trace_exports_nothing_and_loads_no_exporter(
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    environment: dict[str, str],
    collector: Collector,
    pool: str,
) -> None:
    environment |= collector.environment
    no_exporter = "import sys; sys.modules['opentelemetry.exporter'] = None"
    worker = await start_worker_process(preamble=no_exporter)
    job = await fleet.submit("hello", pool=pool, traceparent=SAMPLED)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    assert not collector.receiver.received


async def test_tracing_without_the_extra_is_an_error_that_names_it(start_tracing: StartWorkerProcess) -> None:
    worker = await start_tracing(preamble="import sys; sys.modules['opentelemetry.sdk'] = None")
    assert await worker.ended() != 0
    assert "pip install 'inferfleet[otel]'" in worker.log


async def test_a_collector_that_is_away_is_one_line_of_the_log(
    fleet: Fleet, start_tracing: StartWorkerProcess, environment: dict[str, str], pool: str
) -> None:
    environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}
    worker = await start_tracing()
    for _ in range(3):
        job = await fleet.submit("hello", pool=pool, traceparent=SAMPLED)
        await fleet.wait(job, timeout_s=PATIENCE_S)
        await worker.logged("cannot export spans")
    assert await worker.stop() == 0
    lines = [line for line in worker.log.splitlines() if "export" in line or "opentelemetry" in line]
    assert len(lines) == 1


async def test_a_worker_ends_although_its_last_spans_find_no_collector(
    fleet: Fleet, start_tracing: StartWorkerProcess, pool: str
) -> None:
    never_ends = (
        "import threading; from opentelemetry.sdk.trace import TracerProvider; "
        "TracerProvider.shutdown = lambda self: threading.Event().wait()"
    )
    worker = await start_tracing(preamble=never_ends)
    job = await fleet.submit("hello", pool=pool, traceparent=SAMPLED)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0


async def _has(collector: Collector, name: str, *, count: int = 1) -> bool:
    return len(collector.named(name)) >= count


async def _has_tokens(fleet: Fleet, job_id: str) -> bool:
    return (await fleet.get(job_id)).tokens > 0
