"""What is wrong with a batch is said: by a refusal, or by a batch that has failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
)
from tests.integration.files_and_batches.conftest import (
    FILE,
    FORM,
    PURPOSE,
    begin,
    client_of,
    form,
    request,
    until,
)

from inferfleet.producer import Fleet
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.wire.redis.batches import BatchRecords


async def test_a_file_whose_lines_are_no_requests_fails_and_says_why(client: AsyncOpenAI) -> None:
    content = (
        request("a")
        + "no JSON\n"
        + "[]\n"
        + '{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"}\n'
        + request("c", url="/v1/embeddings")
        + request("d", url="/v1/nothing")
        + request("e", method="GET")
        + request("")
        + request("a")
        + request("f", after=["x"])
    )

    failed = await until(client, await begin(client, content), "failed")

    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.line, error.code, error.param) for error in failed.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "invalid_request", None),
        (4, "missing_required_parameter", "body"),
        (5, "invalid_url", "url"),
        (6, "invalid_url", "url"),
        (7, "invalid_method", "method"),
        (8, "invalid_custom_id", "custom_id"),
        (9, "duplicate_custom_id", "custom_id"),
        (10, "invalid_request", None),
    ]
    assert failed.failed_at is not None
    assert (failed.output_file_id, failed.error_file_id) == (None, None)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (request("a") + request("b") + request("a"), "duplicate_custom_id"),
        ("\n \n", "empty_file"),
        ("".join(request(str(number)) for number in range(6)), "too_many_lines"),
    ],
)
async def test_a_file_that_is_no_batch_as_a_whole_fails(
    start_gateway: StartGateway, fleet: Fleet, storage: Path, content: str, code: str
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_batch_lines=5)
    async with client_of(gateway) as client:
        failed = await until(client, await begin(client, content), "failed")

    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.code for error in failed.errors.data] == [code]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"input_file_id": f"file-{'0' * 32}"}, 404, "file_not_found"),
        ({"input_file_id": "x"}, 404, "file_not_found"),
        ({"input_file_id": 3}, 400, "invalid_request"),
        ({"endpoint": "/v1/responses"}, 400, "invalid_request"),
        ({"endpoint": None}, 400, "invalid_request"),
        ({"completion_window": "1 day"}, 400, "invalid_request"),
        ({"completion_window": "31d"}, 400, "invalid_request"),
        ({"completion_window": 24}, 400, "invalid_request"),
        ({"metadata": {"a": 1}}, 400, "invalid_request"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "invalid_request"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "invalid_request"),
        ({"output_expires_after": [1]}, 400, "invalid_request"),
        ({"speed": "high"}, 400, "invalid_request"),
        ({"inferfleet": {"priority": "top"}}, 400, "invalid_request"),
        ({"inferfleet": {"delay_s": 60}}, 400, "invalid_request"),
        ({"not_before": "2026-12-01T00:00:00Z"}, 400, "invalid_request"),
        ({"inferfleet": {"pool": "A B"}}, 400, "invalid_request"),
        ({"inferfleet": {"session_id": "s"}}, 400, "invalid_request"),
        ({"inferfleet": {"timeout_s": -1}}, 400, "invalid_request"),
        ({"inferfleet": {"max_attempts": "x"}}, 400, "invalid_request"),
    ],
)
async def test_a_batch_that_breaks_the_contract_is_refused(
    gateway: RunningGateway, client: AsyncOpenAI, changes: dict[str, Any], status: int, code: str
) -> None:
    file = await client.files.create(file=("x", b"x"), purpose="batch")
    order = {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **changes,
    }
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answer = await http.post("/v1/batches", json=order)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_a_gateway_without_a_storage_says_so(start_gateway: StartGateway, fleet: Fleet) -> None:
    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answers = [
            await http.get("/v1/files"),
            await http.post("/v1/files", content=form(PURPOSE, FILE), headers={"Content-Type": FORM}),
            await http.get(f"/v1/files/file-{'0' * 32}"),
            await http.get("/v1/batches"),
            await http.post("/v1/batches", json={}),
            await http.post(f"/v1/batches/batch_{'0' * 32}/cancel"),
        ]

    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
        (404, "no_storage")
    }


async def test_a_storage_that_cannot_be_reached_is_an_error_at_the_start(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for url, said in (
        (f"{tmp_path}/file/x", "cannot read"),
        (f"{tmp_path}/missing/x", f"there is no folder {tmp_path}/missing"),
        ("no-such-protocol://x", "no-such-protocol"),
        # Nobody listens at port 1.
        ("ftp://me:secret@127.0.0.1:1/x", r"cannot open ftp://… \(.*refused"),
    ):
        with pytest.raises(ConfigurationError, match=f"INFERFLEET_FILES_URL: .*{said}") as failed:
            await start_gateway(files_url=url)
        assert "secret" not in str(failed.value)


async def test_a_batch_that_redis_did_not_confirm_is_not_ordered_twice(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(*_: Any, **__: Any) -> None:
        raise ServiceUnreachableError("away")

    monkeypatch.setattr(BatchRecords, "create", create)
    with pytest.raises(openai.InternalServerError) as refused:
        await begin(client, request("a"))

    assert refused.value.code == "batch_unconfirmed"
    assert refused.value.response.headers["x-should-retry"] == "false"
