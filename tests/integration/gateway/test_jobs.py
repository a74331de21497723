"""Jobs, their events and sessions over HTTP, as any client sees them."""

from __future__ import annotations

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    StartWorker,
    chat,
    slow_chat,
)
from tests.integration.gateway.conftest import CHAT, Client, read_events, refused, text_of

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState

NO_JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


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
