"""What the gateway refuses, and how it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    StartWorker,
    chat,
)
from tests.integration.gateway.conftest import CHAT, Client, refused

from inferfleet.producer import Fleet

JSON = "application/json"
NO_JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


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
        (json.dumps(chat(inferfleet={"pool": {"a": 1}})).encode(), {}, 400, "invalid_request"),
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
        {"body": {}, "expires_at": 5},
        {"body": {}, "not_before": "5"},
        {"body": {}, "after": "x"},
        {"body": {}, "pool": ["a"]},
        {"body": {}, "metadata": {"a": 1}},
        [],
        [3],
    ],
)
async def test_a_job_that_breaks_the_contract_is_refused(http: Client, job: Any) -> None:
    if isinstance(job, dict) and job.get("body") == {}:
        job = {**job, "body": chat()}

    refused(await http.post("/v1/jobs", json=job), 400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            "/v1/jobs",
            [{"body": chat(), "endpoint": "/v1/images"}],
            "[0].endpoint: '/v1/images' is not one of",
        ),
        (
            "/v1/batches",
            {"input_file_id": "f", "endpoint": "/v1/images"},
            "endpoint: '/v1/images' is not one",
        ),
        ("/v1/batches", {"input_file_id": "f"}, "endpoint: must be one of"),
        (
            "/v1/responses",
            {"input": [{"role": "owner", "content": "x"}]},
            "input[0].role: 'owner' is not one",
        ),
        (CHAT, chat(service_tier="gold"), "service_tier: 'gold' is not one of"),
        (
            "/v1/webhook_endpoints",
            {"name": "x", "url": "https://example.com", "event_types": ["job.done"]},
            "event_types: 'job.done' is not one of",
        ),
    ],
)
async def test_a_refusal_names_the_value_that_is_none_of_the_choices(
    start_gateway: StartGateway, tmp_path: Path, path: str, body: Any, said: str
) -> None:
    async with Client(await start_gateway(files_url=str(tmp_path / "files"))) as http:
        answer = await http.post(path, json=body)

    refused(answer, 400, "invalid_request")
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["jobs", "agents/runs", "files", "batches", "webhook_endpoints"])
async def test_a_list_refuses_a_place_that_is_none_of_its_own(
    start_gateway: StartGateway, tmp_path: Path, path: str
) -> None:
    async with Client(await start_gateway(files_url=str(tmp_path / "files"))) as http:
        answer = await http.get(f"/v1/{path}", params={"after": "zz"})

    refused(answer, 400, "invalid_request")
    assert answer.json()["error"]["message"].startswith("after: 'zz' is not the ")


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
    for unknown in ({"status": "waiting"}, {"state": "succeeded"}):
        refused(await http.get("/v1/agents/runs", params=unknown), 400, "invalid_request")
    wrong = await http.get(f"/v1/jobs/{NO_JOB}/events", params={"after": "yesterday"})
    assert wrong.json()["error"]["message"] == "after: 'yesterday' is not the id of an event"


async def test_a_health_check_may_ask_without_a_body(http: Client) -> None:
    for path in ("/health/live", "/health/ready"):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


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
