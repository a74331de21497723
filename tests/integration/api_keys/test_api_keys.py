"""API keys of the gateway: who may do what, and that nobody learns of another tenant's things."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis.asyncio as aioredis
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from openai import AsyncOpenAI
from tests.integration.api_keys.conftest import Enter, Keys, refused
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
)

from inferfleet.agents import AgentRuns
from inferfleet.gateway import server
from inferfleet.gateway.app import make_app
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import ConfigurationError, JobNotFoundError, PublishUnconfirmedError
from inferfleet.wire.redis import shared_limits
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.shared_limits import Cost, Lacking, SharedLimits

# It declares the test's pool.
pytestmark = pytest.mark.usefixtures("fleet")

CHAT = "/v1/chat/completions"

NOT_OWNED = {"model", "agent"}
"""Parameters of paths that name nothing of a tenant's."""

UNKNOWN = {
    "job_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "session_id": "nobodys",
    "endpoint_id": f"we_{'0' * 32}",
    "file_id": f"file-{'0' * 32}",
    "batch_id": f"batch_{'0' * 32}",
    "response_id": "resp_01890a5d-ac96-774b-bcce-000000000000",
    "conversation_id": "conv_unknown",
    "run_id": "01890a5d-ac96-774b-bcce-b302099a8057",
}
"""An id of nothing, of each kind. A new kind of id belongs here and into ``theirs``."""

BODIES: dict[str, Any] = {
    "/v1/sessions/{session_id}/fork": {"id": "copy"},
    "/v1/agents/runs/{run_id}/approve": {"question": "0.0:1"},
    "/v1/agents/runs/{run_id}/deny": {"question": "0.0:1"},
}
"""The bodies of requests that need more than ``{}``."""


def sdk(url: str, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


# Tenants


async def test_no_route_tells_a_tenant_of_what_another_one_has(
    start_gateway: StartGateway,
    start_worker: StartWorker,
    keys: Keys,
    enter: Enter,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fleet: Fleet,
) -> None:
    """Every route of the application, with every kind of id."""
    apps: list[FastAPI] = []

    def noted(gateway: Gateway) -> FastAPI:
        apps.append(make_app(gateway))
        return apps[-1]

    monkeypatch.setattr(server, "make_app", noted)
    names = [keys.create(f"{pool}.{name}") for name in ("mine", "yours")]
    url = (await start_gateway(api_keys_file=keys.path, files_url=str(tmp_path))).url
    mine, yours = (enter(url, name) for name in names)
    await start_worker()
    job = await yours.post("/v1/jobs", json={"body": chat(), "session_id": "talk"})
    hook = {"name": "hook", "url": "https://1.1.1.1/hook", "event_types": ["job.succeeded"]}
    endpoint = await yours.post("/v1/webhook_endpoints", json=hook)
    file = await yours.post("/v1/files", data={"purpose": "batch"}, files={"file": b"no batch"})
    order = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    talk = await yours.post("/v1/conversations", json={})
    asked = {"input": "hello", "model": pool, "background": True, "conversation": talk.json()["id"]}
    response = await yours.post("/v1/responses", json=asked)
    run_id = await AgentRuns(fleet).start("clerk", "pay", queue=pool, tenant=f"{pool}.yours")
    theirs = {
        "job_id": job.json()["id"],
        "session_id": "talk",
        "endpoint_id": endpoint.json()["id"],
        "file_id": file.json()["id"],
        "batch_id": (await yours.post("/v1/batches", json=order)).json()["id"],
        "response_id": response.json()["id"],
        "conversation_id": talk.json()["id"],
        "run_id": run_id,
    }
    assert (await yours.get(f"/v1/jobs/{theirs['job_id']}?wait=60")).json()["state"] == "succeeded"
    assert (await yours.get("/v1/sessions/talk")).status_code == 200
    routes = [
        (method, route.path_format, set(re.findall(r"{(\w+)}", route.path_format)) - NOT_OWNED)
        for route in iter_route_contexts(apps[0].routes)
        if route.path_format
        for method in route.methods or ()
    ]
    assert len(routes) > 15

    for method, path, kinds in routes:
        if not kinds:
            continue
        assert kinds <= theirs.keys(), f"{path}: let this test make such a thing of another tenant"
        body = None if method in {"GET", "HEAD", "DELETE"} else BODIES.get(path, {})
        foreign, unknown = [
            await mine.request(method, path.format_map(ids), json=body) for ids in (theirs, UNKNOWN)
        ]
        assert foreign.status_code == unknown.status_code == 404, (method, path, foreign.text)
        assert anonymous(foreign, theirs) == anonymous(unknown, UNKNOWN), (method, path)

    for method, path, _ in routes:
        if method == "GET" and "{" not in path:
            listed = await mine.get(path, params={"session_id": "talk", "queue": pool})
            assert not any(theirs[kind] in listed.text for kind in theirs.keys() - {"session_id"}), path
    # Nothing that was tried has had an effect.
    assert (await yours.get(f"/v1/jobs/{theirs['job_id']}")).json()["state"] == "succeeded"
    assert (await yours.get("/v1/sessions/talk")).json()["turns"] == 1
    assert (await yours.get(f"/v1/webhook_endpoints/{theirs['endpoint_id']}")).json()["name"] == "hook"
    assert (await yours.get(f"/v1/responses/{theirs['response_id']}")).json()["status"] != "cancelled"
    assert (await yours.get(f"/v1/conversations/{theirs['conversation_id']}")).status_code == 200
    assert (await yours.get(f"/v1/agents/runs/{theirs['run_id']}")).json()["state"] == "queued"


def anonymous(answer: httpx2.Response, ids: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return what an answer says, without the id that was asked for."""
    text = answer.text
    for one in ids.values():
        text = text.replace(one, "ID")
    varying = {"date", "content-length"}
    return text, {name: value for name, value in answer.headers.items() if name not in varying}


async def test_another_tenants_id_takes_the_same_work_as_an_unknown_one(
    fleet: Fleet, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, yours = TenantFleet(fleet, f"{pool}.mine"), TenantFleet(fleet, f"{pool}.yours")
    job = await yours.submit(chat(), pool=pool)
    sent: list[Any] = []
    queue = CommandPipeline._queue

    def noted(self: CommandPipeline, command: Any, *rest: Any) -> None:
        sent.append(command)
        queue(self, command, *rest)

    monkeypatch.setattr(CommandPipeline, "_queue", noted)

    async def work(call: Callable[[str], Awaitable[Any]], job_id: str) -> list[str]:
        """Return the commands of a call."""
        sent.clear()
        with pytest.raises(JobNotFoundError):
            await call(job_id)
        return [str(command).replace(job_id, "ID") for command in sent if job_id in str(command)]

    calls: list[Callable[[str], Awaitable[Any]]] = [
        *(mine.get, mine.record, mine.wait, mine.cancel, mine.position),
        lambda job_id: anext(mine.stream(job_id)),
    ]
    for call in calls:
        assert await work(call, job.id) == await work(call, UNKNOWN["job_id"]) != []


async def test_an_idempotency_key_is_its_tenants(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    names = [keys.create(f"{pool}.{name}") for name in ("a", "b", "a")]
    url = (await start_gateway(api_keys_file=keys.path)).url
    once = {"Idempotency-Key": "one"}

    answers = [await enter(url, key).post("/v1/jobs", json={"body": chat()}, headers=once) for key in names]

    first, second, third = (answer.json()["id"] for answer in answers)
    assert first == third != second


async def test_tenants_of_the_gateway_and_of_python_are_the_same(
    fleet: Fleet,
    start_gateway: StartGateway,
    keys: Keys,
    enter: Enter,
    pool: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    key = keys.create(pool)
    url = (await start_gateway(api_keys_file=keys.path)).url
    job = await fleet.submit(chat(), pool=pool, tenant=pool)

    assert (await enter(url, key).get(f"/v1/jobs/{job.id}")).json()["tenant"] == pool
    [logged] = [record for record in caplog.records if record.msg == "request"]
    assert vars(logged)["tenant"] == pool


async def test_a_caller_reads_only_its_own_names_of_sessions(
    start_gateway: StartGateway, start_worker: StartWorker, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)
    await start_worker()
    made = await http.post("/v1/jobs", json={"body": chat(), "session_id": "talk"})

    job = await http.get(made.json()["url"], params={"wait": 60})
    conflict = await http.post("/v1/sessions/talk/fork", json={"id": "talk"})

    assert job.json()["session_id"] == (await http.get("/v1/sessions/talk")).json()["id"] == "talk"
    refused(conflict, 409, "session_conflict")
    busy = {"body": chat(), "session_id": "talk", "on_busy": "reject"}
    await http.post("/v1/jobs", json={"body": slow_chat(tokens=1000, step_s=1), "session_id": "talk"})
    many = await http.post("/v1/jobs", json=[busy, {"body": chat()}])
    assert many.json()[0]["error"]["code"] == "session_busy", many.text
    assert "@" not in conflict.text + many.text


# Keys


async def test_the_sdk_raises_its_own_errors(
    start_gateway: StartGateway, start_worker: StartWorker, keys: Keys, pool: str
) -> None:
    only = keys.create("acme", pools=(pool,), max_priority=4, requests_per_minute=1)
    other = keys.create("acme", pools=(f"{pool}.other",))
    url = (await start_gateway(api_keys_file=keys.path)).url
    await start_worker()
    hello: Any = {"messages": [{"role": "user", "content": "hi"}], "model": pool, "max_tokens": 2}

    async with sdk(url, only) as client:
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await client.chat.completions.create(**hello, service_tier="priority")
        assert denied.value.code == "priority_not_allowed"
        assert (await client.chat.completions.create(**hello)).choices
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(**hello, stream=True)
        assert limited.value.code == "rate_limit_exceeded"
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 61

        async def listed() -> bool:
            return [model.pool async for model in client.models.list()] == [pool] * 2

        await eventually(listed)
    async with sdk(url, other) as client:
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await client.chat.completions.create(**hello)
        assert denied.value.code == "pool_not_allowed"
        assert [model.id async for model in client.models.list()] == []
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(pool)
    async with sdk(url, only[:-1]) as client:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.chat.completions.create(**hello)
        assert unknown.value.code == "invalid_api_key"
        assert only[:-1] not in str(unknown.value)


async def test_a_key_that_may_not_use_the_usual_priority_uses_its_highest(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool, max_priority=1)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)
    job = {"body": chat()}

    one, many = await http.post("/v1/jobs", json=job), await http.post("/v1/jobs", json=[job])

    for made in (one.json(), many.json()[0]):
        assert (await http.get(made["url"])).json()["priority"] == 1
    refused(await http.post("/v1/jobs", json=[job, {**job, "priority": 2}]), 403, "priority_not_allowed")


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer"}, "missing_api_key"),
        ({"authorization": "Basic abc"}, "missing_api_key"),
        ({"authorization": "Bearer ifk-"}, "invalid_api_key"),
        ({"authorization": "Bearer ifk-0123456789ab-x"}, "invalid_api_key"),
        ({"authorization": "Bearer \u00e9"}, "invalid_api_key"),
        ({"authorization": "Bearer " + "x" * 30_000}, "invalid_api_key"),
    ],
    ids=["none", "empty", "basic", "mark", "unknown", "not ASCII", "long"],
)
async def test_who_has_no_key_is_refused_before_anything_else(
    start_gateway: StartGateway, keys: Keys, header: dict[str, str], code: str
) -> None:
    url = (await start_gateway(api_keys_file=keys.path)).url
    encoded = {name.encode(): value.encode("latin-1") for name, value in header.items()}
    async with httpx2.AsyncClient(base_url=url, headers=encoded, timeout=PATIENCE_S) as http:
        for ask in (
            http.post(CHAT, content=b"x" * 100_000),
            http.get("/v1/models"),
            http.get("/v1/nowhere"),
            http.get("/nowhere/health/live"),
        ):
            answer = await ask
            refused(answer, 401, code)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.get("/openapi.json")).json()["security"] == [{"key": []}]


async def test_keys_need_a_tenant_and_understandable_values(
    inferfleet: RunCommand, keys: Keys, tmp_path: Path
) -> None:
    async def refuses(*arguments: str, file: Path = keys.path) -> str:
        ended = await inferfleet("keys", *arguments, "--file", str(file))
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        return str(ended.err)

    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)

    assert "--tenant" in await refuses("create", "--pool", "chat")
    assert "is too long" in await refuses("rotate", "0" * 12, "--keep", "99999999d")
    assert "cannot be read" in await refuses("create", "--tenant", "acme", file=loop)


async def test_keys_are_created_rotated_and_revoked_while_a_gateway_runs(
    start_gateway: StartGateway,
    inferfleet: RunCommand,
    enter: Enter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "keys.json"

    async def command(*arguments: str) -> Any:
        ended = await inferfleet("keys", *arguments, "--file", str(file), "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    made = await command("create", "--tenant", "acme", "--pool", "chat", "--max-priority", "high")
    gateway = await start_gateway(api_keys_file=file)

    async def status(key: str) -> int:
        return (await enter(gateway.url, key).get("/v1/jobs")).status_code

    async def becomes(key: str, code: int) -> None:
        async def is_now() -> bool:
            return await status(key) == code

        await eventually(is_now)

    assert await status(made["key"]) == 200
    rotated = await command("rotate", made["id"], "--keep", "1h")
    await becomes(rotated["key"], 200)
    assert await status(made["key"]) == 200
    last = await command("rotate", made["id"], "--keep", "0s")
    await becomes(last["key"], 200)
    assert [await status(made["key"]), await status(rotated["key"])] == [401, 401]
    [listed] = await command("list")
    assert (listed["id"], listed["tenant"], listed["pools"]) == (made["id"], "acme", ["chat"])
    assert made["key"] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600

    # A mistake in the file locks nobody out.
    content = file.read_text()
    file.write_text("{")

    async def noticed() -> bool:
        assert await status(last["key"]) == 200
        return "the keys that were read before still count" in caplog.text

    await eventually(noticed)
    file.write_text(content)
    await command("revoke", made["id"])
    await becomes(last["key"], 401)


async def test_with_keys_a_gateway_may_listen_anywhere(start_gateway: StartGateway, keys: Keys) -> None:
    await start_gateway(api_keys_file=keys.path, http_host="0.0.0.0")
    with pytest.raises(ValueError, match="everybody needs a key"):
        await start_gateway(api_keys_file=keys.path, allow_anonymous=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await start_gateway(api_keys_file=keys.path.with_name("missing"))
    keys.path.write_text('{"keys": [{"id": "1"}], "key": 1}')
    with pytest.raises(ConfigurationError, match="is no file of API keys"):
        await start_gateway(api_keys_file=keys.path)


# Limits


@pytest.mark.store
async def test_limits_are_shared_by_gateways(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    requests = keys.create(f"{pool}.a", requests_per_minute=3)
    tokens = keys.create(f"{pool}.a", tokens_per_minute=600)
    places = keys.create(f"{pool}.a", max_unfinished_jobs=3)
    urls = [(await start_gateway(api_keys_file=keys.path)).url for _ in range(2)]
    job = {"body": chat(max_tokens=150)}

    for key in (requests, tokens, places):
        doors = [enter(url, key) for url in urls]
        answers = [await doors[attempt % 2].post("/v1/jobs", json=job) for attempt in range(6)]
        assert [answer.status_code for answer in answers] == [202] * 3 + [429] * 3, answers[0].text
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[3:])
        assert answers[5].headers["x-should-retry"] == "true"


@pytest.mark.parametrize(("amount", "most_s"), [(1, 60), (3, 100)])
async def test_what_is_lacking_is_there_after_the_wait_and_not_before(
    pipeline: CommandPipeline, store: aioredis.Redis, pool: str, amount: int, most_s: float
) -> None:
    limits, cost = SharedLimits(pipeline, ttl_s=60), Cost("requests", 1, 3)
    assert [await limits.take(pool, [cost]) for _ in range(3)] == [None] * 3

    async def take() -> Lacking | None:
        return await limits.take(pool, [cost._replace(amount=amount)])

    lacking = await take()
    assert lacking is not None
    left_s = lacking.wait_s
    assert left_s <= most_s + 0.01
    while left_s > 0:
        assert await take() is not None
        # Let time pass, as far as Redis knows.
        step_s = min(left_s, 21.0)
        for key in {each async for each in store.scan_iter(match=f"*limit*{pool}*")}:
            await store.pexpire(key, await store.pttl(key) - round(1000 * step_s))
        left_s -= step_s
    assert await take() is None


async def test_at_once_no_more_jobs_are_accepted_than_a_key_may_have(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str, fleet: Fleet
) -> None:
    key = keys.create(pool, max_unfinished_jobs=5)
    doors = [enter((await start_gateway(api_keys_file=keys.path)).url, key) for _ in range(2)]

    async def submit(door: httpx2.AsyncClient) -> httpx2.Response:
        return await door.post("/v1/jobs", json={"body": chat()})

    answers = await asyncio.gather(*(submit(doors[number % 2]) for number in range(30)))

    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(accepted) == 5
    for answer in answers:
        if answer.status_code != 202:
            refused(answer, 429, "too_many_unfinished_jobs")
    # A job that has ended makes room for another.
    await fleet.cancel(accepted[0])

    async def accepts() -> bool:
        return (await submit(doors[0])).status_code == 202

    await eventually(accepts)
    refused(await submit(doors[1]), 429, "too_many_unfinished_jobs")


async def test_trying_again_at_once_reads_little(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.create(pool, max_unfinished_jobs=100)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)
    looked: list[int] = []
    ended = SharedLimits._ended  # pyright: ignore[reportPrivateUsage]

    async def noted(self: SharedLimits, places: dict[str, float]) -> list[str]:
        looked.append(len(places))
        return await ended(self, places)

    # Not the reading of states, which others in this process do, too.
    monkeypatch.setattr(SharedLimits, "_ended", noted)
    monkeypatch.setattr(shared_limits, "LOOK_AGAIN_S", PATIENCE_S)
    assert (await http.post("/v1/jobs", json=[{"body": chat()}] * 100)).status_code == 202

    for _ in range(3):
        refused(await http.post("/v1/jobs", json={"body": chat()}), 429, "too_many_unfinished_jobs")

    assert looked == [100, 1, 1]


async def test_a_refused_or_repeated_job_takes_no_place(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool, max_unfinished_jobs=1)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)

    refused(await http.post("/v1/jobs", json={"body": chat(), "pool": "nobodys"}), 404, "pool_not_found")
    refused(await http.post("/v1/jobs", json={"body": {}}), 400, "invalid_request")
    refused(await http.post("/v1/jobs", json=[{"body": chat()}] * 2), 429, "request_exceeds_limit")
    one: Any = {"json": {"body": chat()}, "headers": {"Idempotency-Key": "one"}}
    first, again = await http.post("/v1/jobs", **one), await http.post("/v1/jobs", **one)
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()


async def test_no_member_of_a_body_gives_tokens_back_or_hides_them(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool, tokens_per_minute=150)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)

    for members in ({"max_completion_tokens": -(10**9)}, {"max_completion_tokens": 1}):
        body = {"prompt": "x", "max_tokens": 90_000, **members}
        answer = await http.post("/v1/jobs", json={"endpoint": "/v1/completions", "body": body})
        refused(answer, 429, "request_exceeds_limit")
    job = {"body": chat(max_tokens="80.0")}
    assert (await http.post("/v1/jobs", json=job)).status_code == 202
    refused(await http.post("/v1/jobs", json=job), 429, "rate_limit_exceeded")


async def test_a_batch_with_numbers_as_texts_ends(
    start_gateway: StartGateway,
    start_worker: StartWorker,
    keys: Keys,
    enter: Enter,
    pool: str,
    tmp_path: Path,
) -> None:
    await start_worker()
    key = keys.create(pool, tokens_per_minute=10_000)
    http = enter((await start_gateway(api_keys_file=keys.path, files_url=str(tmp_path))).url, key)
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat(max_tokens="4.0", model=pool)}
    file = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": json.dumps(line).encode()})
    order = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = (await http.post("/v1/batches", json=order)).json()["id"]

    async def completed() -> bool:
        read = (await http.get(f"/v1/batches/{batch}")).json()
        return read["status"] == "completed" and read["request_counts"]["completed"] == 1

    await eventually(completed)


async def test_a_known_idempotency_key_allows_no_more_than_the_api_key(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool, max_priority=1, pools=(pool,), requests_per_minute=1)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)
    once = {"Idempotency-Key": "one"}

    async def submit(**options: Any) -> httpx2.Response:
        return await http.post("/v1/jobs", json={"body": chat(), **options}, headers=once)

    assert (await submit(priority=1)).status_code == 202
    refused(await submit(priority=9), 403, "priority_not_allowed")
    refused(await submit(pool=f"{pool}.other"), 403, "pool_not_allowed")
    assert (await submit(priority=0)).status_code == 202


async def test_of_an_array_only_new_jobs_count(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    requests = keys.create(pool, requests_per_minute=5)
    places = keys.create(pool, max_unfinished_jobs=3)
    url = (await start_gateway(api_keys_file=keys.path)).url
    by_requests, by_places = enter(url, requests), enter(url, places)

    async def submit(http: httpx2.AsyncClient, *names: str) -> int:
        jobs = [{"body": chat(), "idempotency_key": name} for name in names]
        return (await http.post("/v1/jobs", json=jobs)).status_code

    assert await submit(by_requests, "a", "b", "c", "d") == 202
    assert await submit(by_requests, "a", "b", "c", "new") == 202
    assert await submit(by_requests, "another") == 429
    assert await submit(by_places, "1", "1") == 202
    assert await submit(by_places, "1", "2") == 202
    assert await submit(by_places, "3") == 202
    assert await submit(by_places, "4") == 429


async def test_a_refused_request_takes_nothing(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str
) -> None:
    key = keys.create(pool, requests_per_minute=2, tokens_per_minute=150)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)

    async def submit(tokens: int) -> httpx2.Response:
        return await http.post("/v1/jobs", json={"body": chat(max_tokens=tokens)})

    for _ in range(2):
        refused(await submit(1000), 429, "request_exceeds_limit")
    assert (await submit(80)).status_code == 202
    for _ in range(2):
        refused(await submit(80), 429, "rate_limit_exceeded")
    assert (await submit(1)).status_code == 202
    # No request is left, and so no token is taken.
    refused(await submit(1), 429, "rate_limit_exceeded")


async def test_of_an_array_a_job_that_may_run_keeps_its_place(
    start_gateway: StartGateway, keys: Keys, enter: Enter, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.create(pool, max_unfinished_jobs=2)
    http = enter((await start_gateway(api_keys_file=keys.path)).url, key)
    publish = Publisher.publish

    async def unconfirmed(self: Publisher, job: Job, **options: Any) -> bool:
        if job.idempotency_key == "lost":
            raise PublishUnconfirmedError("the connection broke")
        return await publish(self, job, **options)

    monkeypatch.setattr(Publisher, "publish", unconfirmed)
    jobs = [{"body": chat(), "idempotency_key": name} for name in ("lost", "sent")]

    assert (await http.post("/v1/jobs", json=jobs)).status_code == 202
    refused(await http.post("/v1/jobs", json={"body": chat()}), 429, "too_many_unfinished_jobs")
