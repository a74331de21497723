"""Runs of agents over HTTP: what callers start, see, and answer, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.integration.agents.conftest import StartRunner, result_of, until, until_declared
from tests.integration.api_keys.conftest import Keys, refused
from tests.integration.conftest import PATIENCE_S, StartGateway, eventually
from tests.integration.receiver import receiving

from inferfleet.agents import Agent, AgentRuns, tenant_runs, tool
from inferfleet.agents.tenant_runs import TenantRuns
from inferfleet.schemas.names import run_key
from inferfleet.schemas.run import RunRecord, RunState
from inferfleet.testing.workers import ScriptedAnswers
from inferfleet.wire.redis.webhooks import WebhookStore

START = "/v1/agents/clerk/runs"


@pytest.fixture
async def clerk(model: ScriptedAnswers, pool: str) -> Agent:
    """An agent that may pay if a person approves."""
    model.reply_to("pay", with_calls=[("pay", {"amount": 1})])
    model.reply_to("paid", with_text="It is paid.")
    model.reply_to("too dear", with_text="I see.")

    async def pay(amount: int) -> str:
        """Pay."""
        return "paid" if amount else "nothing"

    return Agent(name="clerk", tools=[tool(pay, needs_approval=True)], pool=pool)


@pytest.fixture
async def http(start_gateway: StartGateway) -> AsyncIterator[httpx2.AsyncClient]:
    gateway = await start_gateway(webhook_networks=["127.0.0.0/8"])
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as client:
        yield client


def client_of(url: str, key: str) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, headers=headers)


async def test_a_caller_starts_a_run_approves_its_call_and_is_told_what_becomes_of_it(
    http: httpx2.AsyncClient, runs: AgentRuns, clerk: Agent, start_runner: StartRunner, pool: str
) -> None:
    async with receiving() as receiver:
        types = ["agent.run.waiting", "agent.run.succeeded"]
        hook = {"name": "hook", "url": receiver.url, "event_types": types}
        endpoint = (await http.post("/v1/webhook_endpoints", json=hook)).json()
        await start_runner(clerk)
        await until_declared(runs, pool)
        once = {"Idempotency-Key": pool}
        limits = {"max_cost": 0.1, "prices": {"input": 0.5, "output": "1.25"}}
        first, again = [
            await http.post(START, json={"input": "pay", "queue": pool, "limits": limits}, headers=once)
            for _ in range(2)
        ]
        assert (first.status_code, first.json()) == (202, again.json())
        run_id, url = first.json()["id"], first.headers["location"]
        await until(runs, run_id, RunState.WAITING)
        listed = await http.get("/v1/agents/runs", params={"queue": pool, "state": "waiting"})
        assert [each["id"] for each in listed.json()["data"]] == [run_id]
        waiting = (await http.get(url)).json()
        assert waiting["limits"]["prices"] == {"input": "0.5", "output": "1.25"}
        assert 0 < float(waiting["cost"]) < 0.1
        assert listed.json()["data"][0]["cost"] == waiting["cost"] == waiting["steps"][1]["cost"]
        assert [step["kind"] for step in waiting["steps"]] == [
            *("model_called", "model_answered", "question_asked")
        ]
        asked = {"call": "0.0", "tool": "pay", "arguments": '{"amount": 1}', "kind": "approval"}
        assert waiting["questions"] == [{"id": "0.0:1", **asked, "until_ms": None}]
        refused(await http.post(f"{url}/approve", json={"question": "7.0:1"}), 409, "run_conflict")
        refused(await http.post(f"{url}/approve", json={}), 400, "invalid_request")
        refused(await http.post(f"{url}/approve"), 415, "not_json")
        approved = await http.post(f"{url}/approve", json={"question": "0.0:1"})
        assert approved.json() == {"id": run_id, "question": "0.0:1"}
        await result_of(runs, run_id)
        ended = (await http.get(url)).json()
        assert (ended["state"], ended["result"]["text"]) == ("succeeded", "It is paid.")
        assert float(ended["result"]["cost"]) > float(waiting["cost"])
        events = [received.event for received in await receiver.take(len(types))]
        assert {(event["type"], event["data"]["id"]) for event in events} == {(it, run_id) for it in types}
        assert len({event["id"] for event in events}) == 2
        await http.delete(f"/v1/webhook_endpoints/{endpoint['id']}")


async def test_an_endpoint_is_told_of_questions_once(
    http: httpx2.AsyncClient,
    runs: AgentRuns,
    clerk: Agent,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
) -> None:
    model.reply_to("both", with_calls=[("pay", {"amount": 1}), ("pay", {"amount": 2})])
    store = WebhookStore(runs.fleet.pipeline)
    async with receiving() as receiver:
        types = ["agent.run.waiting", "agent.run.succeeded"]
        hook = {"name": "hook", "url": receiver.url, "event_types": types}
        endpoint_id = (await http.post("/v1/webhook_endpoints", json=hook)).json()["id"]
        await start_runner(clerk)
        run_id = await runs.start("clerk", "both", queue=pool)
        (told,) = await receiver.take(1)
        assert told.event["id"] == f"evt_agent.run.waiting_{run_id}_0.1:1"
        await runs.approve(run_id, "0.0:1")

        async def paid() -> bool:
            return any(step.kind == "tool_ended" for step in await runs.steps(run_id))

        await eventually(paid)
        await until(runs, run_id, RunState.WAITING)
        await runs.approve(run_id, "0.1:1")
        await result_of(runs, run_id)
        await receiver.take(2)

        async def delivered() -> bool:
            endpoint = await store.endpoint(endpoint_id)
            return endpoint is not None and endpoint.undelivered == 0

        await eventually(delivered)
        assert [each.event["type"] for each in receiver.received] == types
        await http.delete(f"/v1/webhook_endpoints/{endpoint_id}")


async def test_a_caller_denies_a_call_and_cancels_a_run(
    http: httpx2.AsyncClient, runs: AgentRuns, clerk: Agent, start_runner: StartRunner, pool: str
) -> None:
    await start_runner(clerk)
    await until_declared(runs, pool)
    ids = [(await http.post(START, json={"input": "pay", "queue": pool})).json()["id"] for _ in range(2)]
    for run_id in ids:
        await until(runs, run_id, RunState.WAITING)
    await http.post(f"/v1/agents/runs/{ids[0]}/deny", json={"question": "0.0:1", "reason": "too dear"})
    await http.post(f"/v1/agents/runs/{ids[1]}/cancel")
    assert (await result_of(runs, ids[0])).text == "I see."
    assert (await result_of(runs, ids[1])).state is RunState.CANCELLED


@pytest.mark.parametrize(
    ("agent", "body", "headers", "problem"),
    [
        ("clerk", {}, {}, "input: is missing"),
        ("clerk", {"input": "pay", "inputs": 1}, {}, "inputs"),
        (
            "clerk",
            {"input": "pay", "limits": {"max_stps": 1}},
            {},
            "limits.max_stps: is not a member",
        ),
        ("clerk", {"input": "pay", "priority": "soon"}, {}, "priority: 'soon' is neither"),
        ("clerk", {"input": "pay", "limits": {"max_steps": 0}}, {}, "limits.max_steps"),
        ("clerk", {"input": "pay", "limits": {"max_steps": True}}, {}, "limits.max_steps: must be a number"),
        (
            "clerk",
            {"input": "pay", "priority": True},
            {},
            "priority: must be a number or a string, not true",
        ),
        ("clerk", {"input": "pay", "limits": {"max_cost": -1}}, {}, "limits.max_cost: -1 is too low"),
        (
            "clerk",
            {"input": "pay", "limits": {"prices": {"input": 1, "output": 1}}},
            {},
            "give max_cost as well",
        ),
        ("my clerk", {"input": "pay"}, {}, "agent"),
        ("clerk", {"input": "pay"}, {"Idempotency-Key": "k" * 256}, "idempotency_key: has 256 characters"),
    ],
)
async def test_a_run_that_cannot_be_started_is_refused(
    http: httpx2.AsyncClient,
    runs: AgentRuns,
    queue: str,
    agent: str,
    body: Any,
    headers: dict[str, str],
    problem: str,
) -> None:
    await runs.start("clerk", "declare the queue", queue=queue)
    body = {**body, "queue": queue}
    answer = await http.post(f"/v1/agents/{agent}/runs", json=body, headers=headers)
    refused(answer, 400, "invalid_request")
    assert problem in answer.json()["error"]["message"]


async def test_a_key_starts_the_runs_that_it_may(
    start_gateway: StartGateway, runs: AgentRuns, queue: str, tmp_path: Path
) -> None:
    await runs.start("clerk", "declare the queue", queue=queue)
    keys = Keys(tmp_path / "keys.json")
    limited = keys.create(queue, pools=(queue,), max_priority=3, requests_per_minute=1)
    free = keys.create(queue)
    url = (await start_gateway(api_keys_file=keys.path)).url
    body = {"input": "pay", "queue": queue}
    async with client_of(url, limited) as low, client_of(url, free) as high:
        refused(await low.post(START, json={"input": "pay"}), 403, "pool_not_allowed")
        refused(await low.post(START, json={**body, "priority": "normal"}), 403, "priority_not_allowed")
        started = await low.post(START, json=body)
        # That of the agent may be higher.
        assert (await low.get(started.json()["url"])).json()["priority"] == 3
        refused(await low.post(START, json=body), 429, "rate_limit_exceeded")
        started = await high.post(START, json=body)
        assert (await high.get(started.json()["url"])).json()["priority"] is None
        refused(await high.post(START, json={**body, "queue": f"{queue}.other"}), 404, "pool_not_found")


@pytest.mark.parametrize("most", [2, 3, 2000])
async def test_pages_have_each_run_of_their_tenant_once_and_name_no_other(
    runs: AgentRuns, queue: str, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(tenant_runs, "MOST_LOOKED_AT", most)
    tenants = ["mine", "yours", "mine", "yours", "yours", "yours", "mine", "yours", "mine", "mine"]
    ids = [await runs.start("clerk", "pay" * 1000, queue=queue, tenant=tenant) for tenant in tenants]
    mine = TenantRuns(runs, "mine")
    found: list[RunRecord] = []
    after: str | None = None
    while (page := await mine.page(queue, after=after, limit=2)).next is not None:
        assert len(page.runs) <= 2
        found += page.runs
        after = page.next
        assert after not in {run_id for run_id, tenant in zip(ids, tenants, strict=True) if tenant == "yours"}
    found += page.runs
    assert [each.order.id for each in found] == sorted(
        run_id for run_id, tenant in zip(ids, tenants, strict=True) if tenant == "mine"
    )
    assert {len(each.order.input) for each in found} == {200}


async def test_a_page_does_not_read_the_runs_of_other_tenants(
    runs: AgentRuns, queue: str, store: aioredis.Redis
) -> None:
    tenants = ("mine", "yours")
    mine, yours = [await runs.start("clerk", "pay", queue=queue, tenant=tenant) for tenant in tenants]
    await store.hset(run_key(yours), "order", "unreadable")
    page = await TenantRuns(runs, "mine").page(queue, limit=2)
    assert [each.order.id for each in page.runs] == [mine]
    assert (await TenantRuns(runs, "mine").page(queue, state=RunState.WAITING, limit=2)).runs == []


async def test_a_caller_replays_the_runs_of_its_tenant_once_for_each_key(
    start_gateway: StartGateway,
    runs: AgentRuns,
    clerk: Agent,
    start_runner: StartRunner,
    pool: str,
    tmp_path: Path,
) -> None:
    await start_runner(clerk)
    await until_declared(runs, pool)
    keys = Keys(tmp_path / "keys.json")
    free = keys.create(pool, pools=(pool,))
    limited = keys.create(pool, max_priority=3, requests_per_minute=2)
    elsewhere, other = keys.create(pool, pools=(f"{pool}.other",)), keys.create(f"{pool}.tenant")
    url = (await start_gateway(api_keys_file=keys.path)).url
    once = {"Idempotency-Key": f"{pool}-again"}
    async with client_of(url, free) as http:
        start = {"input": "pay", "queue": pool, "priority": 7, "limits": {"max_steps": 9}}
        first = (await http.post(START, json=start)).json()
        await until(runs, first["id"], RunState.WAITING)
        await runs.approve(first["id"], "0.0:1")
        await result_of(runs, first["id"])
        replay = f"{first['url']}/replay"
        whole, again = [await http.post(replay, json={}, headers=once) for _ in range(2)]
        assert (whole.status_code, whole.json()) == (202, again.json())
        await until(runs, whole.json()["id"], RunState.WAITING)
        refused(await http.post(replay, json={"from_step": 2}, headers=once), 409, "idempotency_conflict")
        rest = await http.post(replay, json={"from_step": 2})
        assert rest.headers["location"] == rest.json()["url"]
        result = await result_of(runs, rest.json()["id"])
        assert (result.text, result.steps) == ("It is paid.", 2)
        order = (await runs.get(rest.json()["id"])).order
        assert (order.agent, order.queue, order.priority) == ("clerk", pool, 7)
        assert order.limits is not None
        assert order.limits.max_steps == 9
        refused(await http.post(replay, json={"from_step": 0}), 400, "invalid_request")
        no_step = await http.post(replay, json={"from_step": 3})
        refused(no_step, 409, "run_conflict")
        assert "has no step 3: name one from 1 to 2" in no_step.json()["error"]["message"]
        usual = (await http.post(START, json={"input": "pay", "queue": pool})).json()
    async with client_of(url, limited) as http:
        refused(await http.post(replay, json={}), 403, "priority_not_allowed")
        lower = await http.post(f"{usual['url']}/replay", json={})
        # That of the agent may be higher.
        assert (await runs.get(lower.json()["id"])).order.priority == 3
        await http.post(f"{usual['url']}/replay", json={})
        refused(await http.post(f"{usual['url']}/replay", json={}), 429, "rate_limit_exceeded")
    async with client_of(url, elsewhere) as http:
        refused(await http.post(replay, json={}), 403, "pool_not_allowed")
    async with client_of(url, other) as http:
        refused(await http.post(replay, json={}), 404, "run_not_found")
