"""The gateway as any HTTP client sees it: what it refuses, how it stops, and jobs over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    RunningGateway,
    StartGateway,
    StartWorker,
    WorkerProcess,
    chat,
    eventually,
    reader_of,
    slow_chat,
    unfinished,
)

from inferfleet.gateway import server, waiting
from inferfleet.producer import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import ConfigurationError, PublishUnconfirmedError, ServiceUnreachableError

CHAT = "/v1/chat/completions"
JSON = "application/json"
NO_JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


class Client(httpx2.AsyncClient):
    """Talks to one gateway, as any program would."""

    def __init__(self, gateway: RunningGateway) -> None:
        super().__init__(base_url=gateway.url, timeout=PATIENCE_S)


@pytest.fixture
async def http(fleet: Fleet, start_gateway: StartGateway) -> AsyncIterator[Client]:
    async with Client(await start_gateway()) as client:
        yield client


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def read_events(
    client: Client,
    url: str,
    *,
    after: str | None = None,
    count: int | None = None,
    begun: asyncio.Event | None = None,
) -> list[tuple[str, str, dict[str, Any]]]:
    """Read id, kind and data of the events of a stream, at most ``count``. Its answer sets ``begun``."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    headers = {} if after is None else {"Last-Event-ID": after}
    async with client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        if begun is not None:
            begun.set()
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                found.append((fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])))
            fields = {}
            if len(found) == count:
                break
    return found


def text_of(events: list[tuple[str, str, dict[str, Any]]]) -> str:
    return "".join(chunk["text"] for _, kind, data in events if kind == "tokens" for chunk in data["chunks"])


# Jobs over HTTP


async def test_a_job_is_submitted_awaited_and_read(
    http: Client, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = {"body": chat(), "priority": "high", "metadata": {"a": "b"}}

    accepted = await http.post("/v1/jobs", json=job)
    assert accepted.status_code == 202
    record = (await http.get(accepted.headers["location"], params={"wait": 60})).json()

    assert record["id"] == accepted.json()["id"]
    assert (record["state"], record["pool"], record["priority"]) == ("succeeded", pool, 7)
    assert record["result"]["response"]["choices"][0]["message"]["content"]
    assert "reply_to" not in record


async def test_an_array_of_jobs_is_submitted_and_each_has_its_answer(
    http: Client, fleet: Fleet, pool: str
) -> None:
    jobs = [{"body": chat(str(number))} for number in range(3)]

    accepted = await http.post("/v1/jobs", json=[*jobs, {"body": chat(), "pool": "no-such-pool"}])

    *good, bad = accepted.json()
    assert accepted.status_code == 202
    assert bad["error"]["code"] == "pool_not_found"
    records = await fleet.get_many([job["id"] for job in good])
    assert [record and record.pool for record in records.values()] == [pool] * 3
    refused(
        await http.post("/v1/jobs", json=[jobs[0], {"body": chat(temperature=9)}]), 400, "invalid_request"
    )


async def test_a_wait_ends_in_time_and_the_job_goes_on(http: Client) -> None:
    url = (await http.post("/v1/jobs", json={"body": chat()})).headers["location"]

    record = (await http.get(url, params={"wait": 0.05})).json()

    assert (record["state"], record["result"]) == ("queued", None)


async def test_a_job_is_cancelled(http: Client, fleet: Fleet) -> None:
    job = (await http.post("/v1/jobs", json={"body": chat()})).json()

    cancelled = await http.delete(job["url"])

    assert (cancelled.status_code, cancelled.json()) == (200, {"id": job["id"], "state": "cancelled"})
    assert (await fleet.get(job["id"])).state is JobState.CANCELLED


async def test_unfinished_jobs_are_listed_the_most_urgent_first(http: Client, pool: str) -> None:
    jobs = [{"body": chat(), "priority": priority} for priority in ("batch", "urgent", "normal")]
    batch, urgent, normal = (job["id"] for job in (await http.post("/v1/jobs", json=jobs)).json())

    listed = (await http.get("/v1/jobs", params={"pool": pool})).json()
    first = (await http.get("/v1/jobs", params={"pool": pool, "limit": 1})).json()
    some = (await http.get("/v1/jobs", params={"pool": pool, "priority": 1, "state": "queued"})).json()

    assert [job["id"] for job in listed["data"]] == [urgent, normal, batch]
    assert not listed["has_more"]
    assert ([job["id"] for job in first["data"]], first["has_more"]) == ([urgent], True)
    assert [job["id"] for job in some["data"]] == [batch]
    for wrong in ({"state": "succeeded"}, {"state": "odd"}, {"limit": 0}, {"pool": "A B"}, {"priority": 10}):
        refused(await http.get("/v1/jobs", params=wrong), 400, "invalid_request")


async def test_a_job_says_why_it_waits(http: Client, start_worker: StartWorker, pool: str) -> None:
    job = (await http.post("/v1/jobs", json={"body": chat()})).json()

    waiting = (await http.get(f"{job['url']}/position")).json()
    await start_worker()
    await http.get(job["url"], params={"wait": 60})
    ended = (await http.get(f"{job['url']}/position")).json()

    assert (waiting["state"], waiting["reason"], waiting["workers"]) == ("queued", "no_worker", 0)
    assert pool in waiting["detail"]
    assert (waiting["ahead"], waiting["starts_in_s"]) == (0, None)
    assert [wait["reason"] for wait in waiting["waits"]] == ["no_worker"]
    assert (ended["state"], ended["reason"], ended["ahead"], ended["waits"]) == ("succeeded", None, None, [])


async def test_events_are_resumed_on_another_gateway_without_a_gap_or_a_repeat(
    http: Client, start_gateway: StartGateway, start_worker: StartWorker, fleet: Fleet
) -> None:
    await start_worker()
    job = (
        await http.post("/v1/jobs", json={"body": slow_chat(tokens=60, step_s=0.01), "stream": True})
    ).json()

    first = await read_events(http, f"{job['url']}/events", count=4)
    async with Client(await start_gateway()) as other:
        rest = await read_events(other, f"{job['url']}/events", after=first[-1][0])
        ended = await other.get(f"{job['url']}/events", headers={"Last-Event-ID": rest[-1][0]})

    result = await fleet.wait(job["id"], timeout_s=PATIENCE_S)
    assert text_of(first + rest) == result.text
    assert [kind for _, kind, _ in first + rest if kind != "tokens"] == ["queued", "running", "finished"]
    assert ended.status_code == 204
    assert await read_events(http, f"{job['url']}/events") == first + rest


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "1-1",
        "1-1:",
        "-1-1:0",
        "1-1:-1",
        "99999999999999999999999-0:0",
        "18446744073709551615-18446744073709551615:5",
        "1-1:1:not hex",
        "١-1:0",
    ],
)
async def test_an_id_that_no_event_has_is_refused(http: Client, cursor: str) -> None:
    job = (await http.post("/v1/jobs", json={"body": chat()})).json()

    answer = await http.get(f"{job['url']}/events", headers=[(b"Last-Event-ID", cursor.encode())])

    refused(answer, 400, "invalid_request")


@pytest.mark.parametrize("job_id", [NO_JOB, "x", "a}b", "%00"])
async def test_a_job_that_does_not_exist_is_not_found(http: Client, job_id: str) -> None:
    url = f"/v1/jobs/{job_id}"

    for answer in (
        await http.get(url),
        await http.get(url, params={"wait": 1}),
        await http.delete(url),
        await http.get(f"{url}/events"),
        await http.get(f"{url}/position"),
    ):
        refused(answer, 404, "job_not_found")


# Sessions


async def test_a_session_is_read_changed_forked_and_deleted(
    http: Client, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    turn = (await http.post("/v1/jobs", json={"body": chat("one"), "session_id": pool})).json()
    await http.get(turn["url"], params={"wait": 60})
    url, copy = f"/v1/sessions/{pool}", f"{pool}-copy"

    merge_patch = {"Content-Type": "application/merge-patch+json"}
    patched = await http.patch(f"{url}/state", content=b'{"step": 1}', headers=merge_patch)
    forked = await http.post(f"{url}/fork", json={"id": copy, "turns": 1})
    session = (await http.get(f"/v1/sessions/{copy}")).json()

    assert patched.json()["state_version"] == 1
    assert forked.status_code == 201
    assert [message["role"] for message in session["messages"]] == ["user", "assistant"]
    assert (session["turns"], session["state"]) == (1, {"step": 1})
    refused(await http.post(f"{url}/fork", json={"id": copy}), 409, "session_conflict")
    refused(await http.post(f"{url}/fork", json={"id": "a b"}), 400, "invalid_request")
    for each in (url, f"/v1/sessions/{copy}"):
        assert (await http.delete(each)).status_code == 204
        refused(await http.get(each), 404, "session_not_found")
        refused(await http.delete(each), 404, "session_not_found")


# What is refused


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_request"),
        (b"[]", {}, 400, "invalid_request"),
        (b"\xff\xfe", {}, 400, "invalid_request"),
        (b"[" * 50_000, {}, 400, "invalid_request"),
        (b'{"messages": ' + b"[" * 190 + b"]" * 190 + b"}", {}, 400, "invalid_request"),
        (b'{"messages": [], "x": ' + b"[" * 500 + b"]" * 500 + b"}", {}, 400, "invalid_request"),
        (b"{}", {}, 400, "invalid_request"),
        (json.dumps(chat(temperature="hot")).encode(), {}, 400, "invalid_request"),
        (json.dumps(chat(model=["a"])).encode(), {}, 400, "invalid_request"),
        (json.dumps(chat(stream="perhaps")).encode(), {}, 400, "invalid_request"),
        (json.dumps(chat()).encode(), {"Inferfleet-Pool": "A B"}, 400, "invalid_request"),
        (json.dumps(chat()).encode(), {"Inferfleet-Session": "a b"}, 400, "invalid_request"),
        (json.dumps(chat()).encode(), {"Inferfleet-Timeout": "nan"}, 400, "invalid_request"),
        (json.dumps(chat()).encode(), {"Idempotency-Key": "x" * 300}, 400, "invalid_request"),
        (json.dumps(chat()).encode(), {"Content-Type": "text/plain"}, 415, "not_json"),
        (json.dumps(chat()).encode(), {"Content-Encoding": "gzip", "Content-Type": "x"}, 415, "not_json"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/jobs"])
async def test_bad_input_is_the_callers_mistake(
    http: Client, content: bytes, headers: dict[str, str], status: int, code: str, path: str
) -> None:
    if path != CHAT and content[:1] == b"{" and len(content) > 2:
        content = b'{"body": ' + content + b"}"

    answer = await http.post(path, content=content, headers={"Content-Type": "application/json", **headers})

    refused(answer, status, code)


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"body": 3},
        {"body": {}, "endpoint": 7},
        {"body": {}, "stream": 1},
        {"body": {}, "tenant": "x"},
        {"body": {}, "id": NO_JOB},
        {"body": {}, "priority": 10},
        {"body": {}, "expires_at": "soon"},
        {"body": {}, "metadata": {"a": 1}},
        [],
        [3],
    ],
)
async def test_a_job_that_breaks_the_contract_is_refused(http: Client, job: Any) -> None:
    if isinstance(job, dict) and job.get("body") == {}:
        job = {**job, "body": chat()}

    refused(await http.post("/v1/jobs", json=job), 400, "invalid_request")


async def test_unknown_fields_of_a_body_go_to_the_engine(http: Client, start_worker: StartWorker) -> None:
    await start_worker()

    answer = await http.post(CHAT, json=chat(some_new_field={"a": [1]}))

    assert answer.status_code == 200


async def test_a_path_or_method_that_does_not_exist_is_refused_in_openais_form(http: Client) -> None:
    refused(await http.get("/v1/no/such"), 404, "not_found")
    wrong = await http.get(CHAT)
    refused(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert (await http.put("/v1/jobs")).headers["allow"] == "GET, POST"
    assert (await http.put("/v1/jobs/x")).headers["allow"] == "DELETE, GET"
    refused(await http.post(f"{CHAT}/", json=chat()), 404, "not_found")
    refused(await http.get("/v1/jobs/x", params={"wait": "long"}), 400, "invalid_request")


async def test_a_page_of_another_machine_can_cancel_nothing(http: Client) -> None:
    cancel = "/v1/agents/runs/01890a5d-ac96-774b-bcce-b302099a8057/cancel"
    for origin in ("https://evil.example", "http://127.0.0.1.evil.example", "http://[bad", "null"):
        refused(await http.post(cancel, headers={"Origin": origin}), 403, "forbidden_origin")
    for origin in ("http://localhost:5173", "http://127.0.0.1:8000"):
        refused(await http.post(cancel, headers={"Origin": origin}), 404, "run_not_found")


async def test_a_page_whose_name_resolves_to_loopback_is_refused(
    http: Client, start_gateway: StartGateway
) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", ""):
        refused(await http.get("/v1/models", headers={"Host": host}), 403, "forbidden_host")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert (await http.get("/v1/models", headers={"Host": host})).status_code == 200
    async with Client(await start_gateway(allow_anonymous=True)) as open_to_all:
        answer = await open_to_all.get("/v1/models", headers={"Host": "inferfleet-gateway"})
        assert answer.status_code == 200


async def test_too_large_a_body_is_refused_before_it_is_read(
    fleet: Fleet, start_gateway: StartGateway
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    gateway = await start_gateway(max_request_bytes=10_000)
    json_type = {"Content-Type": "application/json"}
    async with Client(gateway) as http:
        declared = await http.post(CHAT, content=b" " * 10_000_000, headers=json_type)
        refused(declared, 413, "body_too_large")
        refused(await http.post(CHAT, content=parts(), headers=json_type), 413, "body_too_large")


async def test_a_body_larger_than_a_job_is_refused_but_an_array_of_jobs_may_be(
    fleet: Fleet, start_gateway: StartGateway
) -> None:
    large = chat("x" * 80_000)
    async with Client(await start_gateway(max_body_bytes=10_000)) as http:
        refused(await http.post(CHAT, json=large), 413, "body_too_large")
        refused(await http.post("/v1/jobs", json={"body": large}), 400, "invalid_request")
        refused(await http.post("/v1/jobs", json=[{"body": large}]), 400, "invalid_request")
        many = await http.post("/v1/jobs", json=[{"body": chat("x" * 9000)}] * 20)
        assert many.status_code == 202


async def test_a_refusal_reaches_a_client_that_still_sends_its_body(http: Client) -> None:
    url = urlsplit(str(http.base_url))

    def send(path: str, kind: str) -> int:
        # It reads no answer before it has sent everything.
        connection = HTTPConnection(str(url.hostname), url.port, timeout=PATIENCE_S)
        with closing(connection):
            connection.request("POST", path, b" " * 30_000_000, {"Content-Type": kind})
            return connection.getresponse().status

    for path, kind, status in (
        (CHAT, "text/plain", 415),
        ("/v1/files", "text/plain", 404),
        (CHAT, JSON, 413),
    ):
        assert await asyncio.to_thread(send, path, kind) == status


async def test_an_offer_of_http_2_is_ignored(http: Client, start_worker: StartWorker) -> None:
    await start_worker()

    answer = await http.post(CHAT, json=chat(), headers={"Connection": "Upgrade", "Upgrade": "h2c"})

    assert answer.status_code == 200, answer.text


async def test_a_job_that_rabbitmq_did_not_confirm_is_cancelled_and_no_address_is_told(
    http: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Publisher.publish
    published: list[str] = []

    async def unconfirmed(publisher: Publisher, job: Job, **options: Any) -> None:
        await publish(publisher, job, **options)
        published.append(job.id)
        raise PublishUnconfirmedError("the connection to amqp://guest@10.0.0.1 broke")

    monkeypatch.setattr(Publisher, "publish", unconfirmed)
    answer = await http.post(CHAT, json=chat())

    refused(answer, 503, "publish_unconfirmed")
    assert "10.0.0.1" not in answer.text

    async def is_cancelled() -> bool:
        return (await fleet.get(published[0])).state is JobState.CANCELLED

    await eventually(is_cancelled)


async def test_a_job_that_is_not_accepted_in_time_is_refused(
    fleet: Fleet, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        await answers.wait()
        raise ServiceUnreachableError("it does not answer")

    monkeypatch.setattr(Fleet, "submit", hang)
    monkeypatch.setattr(server, "ACCEPT_S", 0.1)
    async with Client(await start_gateway()) as http:
        for path, body in ((CHAT, chat()), (CHAT, chat(stream=True)), ("/v1/jobs", {"body": chat()})):
            refused(await http.post(path, json=body), 503, "service_unreachable")
    answers.set()


@pytest.mark.parametrize("hangs", ["workers", "submit"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_requests_timeout_also_limits_its_acceptance(
    fleet: Fleet, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, hangs: str, stream: bool
) -> None:
    answers = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        await answers.wait()
        raise ServiceUnreachableError("it does not answer")

    monkeypatch.setattr(Fleet, hangs, hang)
    async with Client(await start_gateway()) as http:
        answer = await http.post(CHAT, json=chat(stream=stream), headers={"Inferfleet-Timeout": "0.1"})
    answers.set()

    refused(answer, 504, "timeout")


async def test_a_key_finds_its_job_when_no_worker_serves_the_model_any_more(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    keyed = {"Idempotency-Key": pool}
    model = "simulated"

    async def is_served() -> bool:
        return any(each.pool == pool for each in await fleet.workers())

    await eventually(is_served)
    async with Client(await start_gateway()) as http:
        first = await http.post(CHAT, json=chat(model=model), headers=keyed)
        assert first.status_code == 200
    await worker.stop()

    async with Client(await start_gateway(refuse_without_workers=True)) as other:
        again = await other.post(CHAT, json=chat(model=model), headers=keyed)
        refused(await other.post(CHAT, json=chat("other"), headers=keyed), 409, "idempotency_conflict")

    assert again.headers["inferfleet-job"] == first.headers["inferfleet-job"], again.text
    assert again.json() == first.json()


async def test_a_slow_body_and_a_slow_head_are_given_up(fleet: Fleet, start_gateway: StartGateway) -> None:
    url = urlsplit((await start_gateway(read_timeout_s=0.3)).url)

    async def send(text: str) -> bytes:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(text.encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        await writer.wait_closed()
        return answer

    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b"body_timeout" in await send(f"{head}Content-Length: 100\r\n\r\n{{")
    assert await send(head) == b""
    assert await send("") == b""


async def test_too_long_a_head_is_given_up(fleet: Fleet, start_gateway: StartGateway) -> None:
    url = urlsplit((await start_gateway(read_timeout_s=10 * PATIENCE_S)).url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)

    writer.write(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 100_000)

    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def test_a_gateway_answers_so_many_requests_at_once(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    gateway = await start_gateway(max_open_requests=1)
    await start_worker()
    async with Client(gateway) as http, Client(gateway) as other:
        body = slow_chat(tokens=20_000, step_s=0.01)
        async with http.stream("POST", CHAT, json={**body, "stream": True}) as first:
            assert first.status_code == 200
            refused(await other.get("/v1/models"), 503, "too_many_open_requests")
            refused(await other.post("/rerank", json={}), 503, "too_many_open_requests")
            assert (await other.get("/health/live")).status_code == 200

        async def free() -> bool:
            return (await other.get("/v1/models")).status_code == 200

        await eventually(free)


async def test_a_pool_without_workers_accepts_and_says_so_or_refuses(
    http: Client, start_gateway: StartGateway, pool: str
) -> None:
    accepted = await http.post("/v1/jobs", json={"body": chat()})
    assert accepted.headers["inferfleet-workers"] == "0"

    async with Client(await start_gateway(refuse_without_workers=True)) as strict:
        refused(await strict.post("/v1/jobs", json={"body": chat()}), 503, "no_workers")
        refused(await strict.post(CHAT, json=chat()), 503, "no_workers")


async def test_a_model_without_workers_has_the_pool_that_the_settings_name(
    fleet: Fleet, start_gateway: StartGateway, pool: str
) -> None:
    async with Client(await start_gateway(model_pools={"org/cold": pool}, pool="other")) as http:
        accepted = await http.post("/v1/jobs", json={"body": chat(model="org/cold")})
        assert accepted.json()["pool"] == pool
        assert (await http.get("/v1/models/org/cold")).json()["workers"] == 0


async def test_a_stream_whose_job_waits_begins_with_comments(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FIRST_EVENT_S", 0.05)
    monkeypatch.setattr(waiting, "COMMENT_INTERVAL_S", 0.05)
    async with (
        Client(await start_gateway()) as http,
        http.stream("POST", CHAT, json=chat(stream=True)) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == ": waiting"
        await start_worker()
        told = [line async for line in lines if line.startswith("data: ")]

    assert told[-1] == "data: [DONE]"
    assert len(told) > 3


async def test_a_client_that_reads_no_more_is_cut_off(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    await start_worker()
    gateway = await start_gateway(read_timeout_s=0.5, max_open_requests=1)
    url = urlsplit(gateway.url)
    # More than the buffers between them hold.
    asked = chat(stream=True, max_tokens=30_000, ignore_eos=True, n=8, return_token_ids=True)
    body = json.dumps(asked).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async with Client(gateway) as other:

        async def is_full() -> bool:
            return (await other.get("/v1/models")).status_code == 503

        async def is_free() -> bool:
            return not await is_full()

        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect((url.hostname, url.port))
            silent.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.to_thread(silent.recv, 64)
            assert await is_full()
            await eventually(is_free)


# Stopping


async def test_a_stopping_gateway_ends_streams_and_says_where_to_go_on(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    await start_worker()
    one, other = await start_gateway(), await start_gateway()
    body = slow_chat(tokens=100, step_s=0.02)
    async with Client(one) as http, Client(other) as later:
        async with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            job_id = answer.headers["inferfleet-job"]
            lines = answer.aiter_lines()
            await anext(lines)
            begun = asyncio.Event()
            events = asyncio.create_task(read_events(http, f"/v1/jobs/{job_id}/events", begun=begun))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                while not (await fleet.get(job_id)).tokens:
                    await asyncio.sleep(0.01)
            await one.stop()
            told = [line async for line in lines if line]

        error = json.loads(told[-2].removeprefix("data: "))["error"]
        assert error["code"] == "gateway_stopping"
        assert told[-1] == "data: [DONE]"
        *seen, resume = await events
        assert resume[1] == "resume"
        rest = await read_events(later, f"/v1/jobs/{job_id}/events", after=resume[2]["last_event_id"])

    result = await fleet.wait(job_id, timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
    assert text_of(seen + rest) == result.text
    assert job_id in error["message"]


async def test_a_stopping_gateway_lets_its_requests_end(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    gateway = await start_gateway(drain_timeout_s=PATIENCE_S)
    async with Client(gateway) as http:
        asking = asyncio.create_task(http.post(CHAT, json=chat()))
        await unfinished(store, pool)
        stopping = asyncio.create_task(gateway.stop())
        await start_worker()

        assert (await asking).status_code == 200
        await stopping


async def test_a_waiting_request_is_told_to_come_again_and_its_job_is_cancelled(
    fleet: Fleet, start_gateway: StartGateway, store: aioredis.Redis, pool: str
) -> None:
    gateway = await start_gateway(drain_timeout_s=0.1)
    async with Client(gateway) as http:
        asking = asyncio.create_task(http.post(CHAT, json=chat()))
        (job_id,) = await unfinished(store, pool)
        await gateway.stop()

        answer = await asking
    refused(answer, 503, "gateway_stopping")
    assert (await fleet.get(job_id)).state is JobState.CANCELLED


# The process


async def test_the_command_serves_until_it_is_told_to_stop_and_logs_no_prompt(
    environment: dict[str, str], fleet: Fleet, pool: str
) -> None:
    readable, writable = os.pipe()
    with os.fdopen(writable, "wb") as stderr:
        arguments = ["gateway", "--http-port", "0", "--pool", pool]
        process = WorkerProcess(
            ForkedProcess(arguments, env=environment, stdout=stderr, stderr=stderr), await reader_of(readable)
        )
    try:
        serves = await process.logged("serving OpenAI's API on ")
        address = serves["message"].split()[-1].removesuffix("/v1")
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
            accepted = await http.post("/v1/jobs", json={"body": chat("a secret")})
            asked = await http.get(f"{accepted.headers['location']}?wait=0&secret=1")
        assert asked.json()["pool"] == pool
        line = await process.logged("request")
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/jobs", 202)
        assert await process.stop() == 0
        assert "secret" not in process.log
    finally:
        await process.close()


async def test_only_loopback_is_anonymous_unless_that_is_allowed(
    inferfleet: RunCommand, environment: dict[str, str]
) -> None:
    anywhere = await inferfleet("gateway", "--http-host", "0.0.0.0", "--http-port", "0")

    assert anywhere.code == 2
    assert "INFERFLEET_ALLOW_ANONYMOUS" in anywhere.err


async def test_a_port_that_is_taken_is_said(fleet: Fleet, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        log_format="console", log_level="INFO", allow_anonymous=True, http_host="127.0.0.1"
    )

    with pytest.raises(ConfigurationError, match="cannot listen"):
        await start_gateway(http_port=urlsplit(gateway.url).port)


async def test_an_address_of_ipv6_is_written_in_brackets(fleet: Fleet, inferfleet: RunCommand) -> None:
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = str(taken.getsockname()[1])
        for which, other in (("HTTP", "METRICS"), ("METRICS", "HTTP")):
            variables = {f"INFERFLEET_{which}_HOST": "::1", f"INFERFLEET_{which}_PORT": port}
            variables[f"INFERFLEET_{other}_PORT"] = "0"
            ended = await inferfleet("gateway", environment=variables)
            assert (ended.code, f"cannot listen on [::1]:{port} (" in ended.err) == (2, True), ended.err


async def test_the_document_describes_every_route(http: Client) -> None:
    document = (await http.get("/openapi.json")).json()

    assert document["paths"].keys() >= {CHAT, "/v1/jobs", "/v1/jobs/{job_id}/events", "/v1/models"}
    for path in (CHAT, "/v1/responses", "/v1/conversations"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for _ in range(2):
            body = (
                document["components"]["schemas"][body["$ref"].rpartition("/")[2]] if "$ref" in body else body
            )
        assert body["properties"]
    assert (await http.get("/docs")).status_code == 200
