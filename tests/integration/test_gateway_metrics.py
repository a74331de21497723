"""What Prometheus sees of a gateway, beside what its clients saw."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis.asyncio as aioredis
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
)
from tests.integration.files_and_batches.conftest import begin, client_of, request, until
from tests.integration.receiver import receiving

from inferfleet.gateway.api_keys import ApiKey, changed_keys, new_key_id, new_secret
from inferfleet.gateway.metrics import MOST_TENANTS, NO_ROUTE
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import BATCHES_KEY

CHAT = Endpoint.CHAT.value


class Metrics:
    """The metrics of the gateway that has started last."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log
        self._http = httpx2.AsyncClient(timeout=PATIENCE_S)

    @property
    def url(self) -> str:
        said = [message for message in self._log.messages if message.startswith("serving metrics on ")]
        return said[-1].split()[-1]

    async def sums(self, metric: str, *by: str) -> dict[Any, float]:
        """The values of a metric by labels, or by one alone, without those that are 0."""
        answer = await self._http.get(self.url)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        sums: defaultdict[Any, float] = defaultdict(float)
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name == f"inferfleet_gateway_{metric}":
                    values = tuple(sample.labels[label] for label in by)
                    sums[values[0] if len(by) == 1 else values] += sample.value
        assert sums, f"there is no {metric}"
        return {values: total for values, total in sums.items() if total}

    async def sum(self, metric: str) -> float:
        return (await self.sums(metric)).get((), 0)

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture
async def metrics(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Metrics]:
    with caplog.at_level("INFO"):
        metrics = Metrics(caplog)
        yield metrics
        await metrics.close()


async def test_the_metrics_count_what_clients_have_seen(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, metrics: Metrics
) -> None:
    gateway = await start_gateway(metrics_port=0)
    await start_worker()
    seen: Counter[tuple[str, str]] = Counter()
    codes: Counter[str] = Counter()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        for method, route, path, body in (
            ("POST", CHAT, CHAT, chat()),
            ("POST", CHAT, CHAT, chat(temperature=9)),
            ("POST", CHAT, CHAT, chat(model="nobody's")),
            ("POST", "/v1/jobs", "/v1/jobs", {"body": chat()}),
            ("GET", "/v1/jobs/{job_id}", f"/v1/jobs/{new_job_id()}", None),
            ("PUT", "/v1/jobs/{job_id}", f"/v1/jobs/{new_job_id()}", {}),
            ("GET", NO_ROUTE, "/v2/something", None),
            ("GET", "/v1/models/{model}", "/v1/models/a/b", None),
        ):
            answer = await http.request(method, path, json=body)
            seen[method, route] += 1
            if answer.status_code >= 400:
                codes[answer.json()["error"]["code"]] += 1
            assert (await http.get("/health/ready")).status_code == 200

    assert await metrics.sums("requests_total", "method", "route") == seen
    assert await metrics.sums("request_duration_seconds_count", "method", "route") == seen
    assert await metrics.sums("response_start_seconds_count", "method", "route") == seen
    assert await metrics.sums("requests_total", "status") == {
        "200": 1,
        "202": 1,
        "400": 1,
        "404": 4,
        "405": 1,
    }
    assert await metrics.sums("tenant_requests_total", "tenant", "status") == {
        ("", "2xx"): 2,
        ("", "4xx"): 6,
    }
    assert await metrics.sums("refusals_total", "code") == codes
    assert await metrics.sum("open_requests") == await metrics.sum("clients_gone_total") == 0


async def test_open_streams_rise_and_fall_and_a_client_that_leaves_is_counted(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, metrics: Metrics
) -> None:
    gateway = await start_gateway(metrics_port=0)
    await start_worker()
    body = {**slow_chat(tokens=2_000, step_s=0.05), "stream": True}

    async def open_now() -> tuple[float, float]:
        return await metrics.sum("open_streams"), await metrics.sum("open_requests")

    async def all_ended() -> bool:
        return await open_now() == (0, 0)

    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        async with http.stream("POST", CHAT, json=body) as one, http.stream("POST", CHAT, json=body) as two:
            assert one.status_code == two.status_code == 200
            while_open = await open_now()
        await eventually(all_ended)

    assert while_open == (2, 2)
    assert await metrics.sums("clients_gone_total", "method", "route") == {("POST", CHAT): 2}
    assert await metrics.sums("requests_total", "status") == {"200": 2}


async def test_limits_and_tenants_are_counted_and_tenants_are_bounded(
    fleet: Fleet, start_gateway: StartGateway, pool: str, tmp_path: Path, metrics: Metrics
) -> None:
    path, texts = tmp_path / "keys.json", list[str]()
    limited: list[dict[str, Any]] = [
        {"requests_per_minute": 1, "tokens_per_minute": 5000},
        {"max_unfinished_jobs": 1},
        {"guaranteed_tokens_per_minute": 1},
    ]
    with changed_keys(path) as keys:
        for number in range(MOST_TENANTS + 2):
            text, secret = new_secret(key_id := new_key_id())
            texts.append(text)
            limits = limited[number] if number < len(limited) else {}
            tenant = f"{pool}.{number}"
            made_at = datetime.now(UTC)
            keys.append(ApiKey(id=key_id, tenant=tenant, secrets=(secret,), created_at=made_at, **limits))
    gateway = await start_gateway(api_keys_file=path, metrics_port=0)
    job = {"body": chat()}
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        for key, body in (
            (texts[0], job),
            (texts[0], job),
            (texts[0], {"body": chat(max_tokens=6000)}),
            (texts[1], job),
            (texts[2], job),
            ("none", job),
            *((text, job) for text in texts[1:]),
        ):
            await http.post("/v1/jobs", json=body, headers={"authorization": f"Bearer {key}"})

    assert await metrics.sum("jobs_demoted_total") == 1
    assert await metrics.sums("limited_total", "limit") == {"requests": 1, "tokens": 1, "unfinished_jobs": 1}
    assert await metrics.sums("refusals_total", "code") == {
        "rate_limit_exceeded": 1,
        "request_exceeds_limit": 1,
        "too_many_unfinished_jobs": 1,
        "invalid_api_key": 1,
    }
    by_tenant = await metrics.sums("tenant_requests_total", "tenant")
    # One value is for requests without a key.
    assert by_tenant == {"": 1, f"{pool}.0": 3, f"{pool}.1": 2, f"{pool}.2": 2, "other": 3} | {
        f"{pool}.{number}": 1 for number in range(3, MOST_TENANTS - 1)
    }


async def test_lines_of_a_batch_and_events_of_webhooks_are_counted(
    fleet: Fleet,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    pool: str,
    tmp_path: Path,
    metrics: Metrics,
    store: aioredis.Redis,
) -> None:
    # Other tests leave batches behind, whose files this gateway does not have.
    await store.delete(BATCHES_KEY)
    gateway = await start_gateway(metrics_port=0, files_url=str(tmp_path), webhook_networks=["127.0.0.0/8"])
    await start_worker()
    content = "".join(request(name, body={"model": pool}) for name in "abc")
    async with receiving() as receiver, client_of(gateway) as client:
        hook = await client.webhooks.create(name="test", url=receiver.url, event_types=["batch.completed"])
        try:
            await until(
                client,
                await begin(client, content + request("d", body={"model": pool, "temperature": 9})),
                "completed",
            )
            await receiver.take(1)
        finally:
            await client.webhooks.delete(hook.id)

    async def is_over() -> bool:
        return await metrics.sum("batches_running") == 0

    await eventually(is_over)
    assert await metrics.sum("batch_claims_total") == 1
    assert await metrics.sum("batch_lines_submitted_total") == 3
    assert await metrics.sums("batch_lines_ended_total", "state") == {"completed": 3, "failed": 1}
    assert await metrics.sums("webhook_deliveries_total", "outcome") == {"accepted": 1}


async def test_an_outage_of_rabbitmq_is_counted_from_a_failed_to_a_successful_attempt(
    fleet: Fleet, start_gateway: StartGateway, services: Services, tmp_path: Path, metrics: Metrics
) -> None:
    address = tmp_path / "amqp-url"
    address.write_text("amqp://127.0.0.1:1/")
    gateway = await start_gateway(metrics_port=0, amqp_url=address.as_uri())
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        assert (await http.post("/v1/jobs", json={"body": chat()})).status_code == 503
        during = await metrics.sums("outages_total", "service")
        address.write_text(services.amqp_url)
        assert (await http.post("/v1/jobs", json={"body": chat()})).status_code == 202

    assert during == await metrics.sums("outages_total", "service") == {"rabbitmq": 1}
    lasted = await metrics.sums("outage_seconds_total", "service")
    assert lasted.keys() == {"rabbitmq"}
    assert lasted == await metrics.sums("outage_seconds_total", "service")


async def test_metrics_are_on_a_port_of_their_own_or_nowhere(
    fleet: Fleet, start_gateway: StartGateway, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    without = await start_gateway()
    assert "serving metrics" not in caplog.text
    gateway = await start_gateway(metrics_port=0, metrics_host="127.0.0.2")
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:
        for url in (without.url, gateway.url):
            assert (await http.get(f"{url}/metrics")).status_code == 404
        assert metrics.url.startswith("http://127.0.0.2:")
        assert (await http.get(metrics.url.replace("/metrics", "/v1/models"))).status_code == 404
    assert await metrics.sums("build_info") == {(): 1}


async def test_a_port_for_metrics_that_is_taken_is_said(
    fleet: Fleet, start_gateway: StartGateway, metrics: Metrics, inferfleet: RunCommand
) -> None:
    await start_gateway(metrics_port=0)
    port = metrics.url.removesuffix("/metrics").rpartition(":")[2]

    ended = await inferfleet("gateway", "--http-port", "0", "--metrics-port", port)

    assert ended.code == 2
    assert "choose another --metrics-port" in ended.err
