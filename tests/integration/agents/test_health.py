"""A runner's HTTP port: what probes and Prometheus see of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.agents.conftest import StartRunner, result_of
from tests.integration.agents.test_runner import Gate, script
from tests.integration.conftest import eventually

from inferfleet.agents import Agent, AgentRuns, RunLimits
from inferfleet.gateway.webhooks.signing import new_secret
from inferfleet.producer import Fleet
from inferfleet.testing.workers import ScriptedAnswers
from inferfleet.wire.redis.webhooks import WebhookEndpoint, WebhookStore

LABELS = ("agent", "state", "code", "kind", "tool", "outcome")


class Port:
    """The port of the runner that has started last."""

    def __init__(self, log: pytest.LogCaptureFixture, http: aiohttp.ClientSession) -> None:
        self._log = log
        self._http = http

    async def get(self, path: str) -> tuple[int, str]:
        async def opened() -> bool:
            return bool(self._ports())

        await eventually(opened)
        async with self._http.get(f"http://127.0.0.1:{self._ports()[-1]}{path}") as response:
            return response.status, await response.text()

    async def ready(self) -> bool:
        status, _ = await self.get("/health/ready")
        return status == 200

    async def samples(self, metric: str) -> dict[tuple[str, ...], float]:
        """The values of a metric by its labels, without those that are 0."""
        _, text = await self.get("/metrics")
        return {
            tuple(sample.labels[label] for label in LABELS if label in sample.labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"inferfleet_agent_{metric}" and sample.value
        }

    def _ports(self) -> list[int]:
        return [
            record.__dict__["port"]
            for record in self._log.records
            if record.message.startswith("serving health")
        ]


@pytest.fixture
async def port(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Port]:
    with caplog.at_level("INFO"):
        async with aiohttp.ClientSession() as http:
            yield Port(caplog, http)


async def test_the_metrics_count_runs_steps_tool_calls_and_tokens(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, port: Port
) -> None:
    script(model)
    gate = Gate()
    gate.open.set()
    await start_runner(gate.agent(pool), http_host="127.0.0.1", http_port=0)
    prices = RunLimits.model_validate({"max_cost": 9, "prices": {"input": 1, "output": 1}})
    result = await result_of(runs, await runs.start("guest", "go", queue=pool, limits=prices))
    await result_of(runs, await runs.start("stranger", "go", queue=pool))

    async def ended() -> bool:
        # They count once all is done, after the result can be read.
        return await port.samples("runs_ended_total") == {
            ("guest", "succeeded", ""): 1,
            ("other", "failed", "unknown_agent"): 1,
        }

    await eventually(ended)
    assert await port.samples("steps_total") == {
        ("model_called",): 2,
        ("model_answered",): 2,
        ("tool_started",): 1,
        ("tool_ended",): 1,
    }
    assert await port.samples("tool_call_seconds_count") == {("gate", "succeeded"): 1}
    assert await port.samples("tokens_total") == {("guest",): result.tokens}
    assert result.cost is not None
    assert await port.samples("cost_total") == {("guest",): pytest.approx(float(result.cost))}
    assert await port.samples("runs_held") == {}


async def test_a_runner_is_ready_until_it_drains_and_alive_until_it_has_drained(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, port: Port
) -> None:
    script(model)
    gate = Gate()
    runner = await start_runner(gate.agent(pool), http_port=0, drain_timeout_s=1000)
    await eventually(port.ready)
    await runs.start("guest", "go", queue=pool)
    await gate.began.wait()
    assert await port.samples("runs_held") == {(): 1}
    stopping = asyncio.create_task(runner.stop())

    async def drains() -> bool:
        return not await port.ready()

    await eventually(drains)
    status, state = await port.get("/health/live")
    assert status == 200
    assert '"agents":["guest"],"ready":false' in state
    gate.open.set()
    await stopping


async def test_an_endpoint_gets_no_more_events_of_runs_than_it_may_have(
    fleet: Fleet,
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    port: Port,
) -> None:
    model.reply_to("go", with_text="Gone.")
    store = WebhookStore(fleet.pipeline)
    await store.add(
        WebhookEndpoint(
            id=f"we_{pool}",
            tenant=pool,
            name="hook",
            url="https://example.com/hook",
            event_types=("agent.run.succeeded",),
            secret=new_secret(),
            created_ms=1,
            updated_ms=1,
        )
    )
    tester = Agent(name="tester", pool=pool)
    await start_runner(tester, webhook_max_undelivered=1, http_host="127.0.0.1", http_port=0)
    for _ in range(2):
        await result_of(runs, await runs.start("tester", "go", queue=pool, tenant=pool))

    async def dropped() -> bool:
        return await port.samples("events_dropped_total") == {(): 1}

    await eventually(dropped)
    (endpoint,) = await store.endpoints(pool)
    assert endpoint.undelivered == 1
    await store.remove(pool, endpoint.id)
