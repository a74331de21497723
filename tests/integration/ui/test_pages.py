"""Each page of the web page: what it shows, and that text of others is only ever text."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from tests.integration.conftest import (
    StartWorker,
    answer_to,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.ui.conftest import HOSTILE, NO_JOB, Reader, assert_escaped

from inferfleet.gateway.ui import fleet_view
from inferfleet.producer import Fleet


async def test_the_list_shows_what_waits_and_its_filters_narrow_it(
    fleet: Fleet, reader: Reader, pool: str
) -> None:
    urgent = await fleet.submit(chat(), pool=pool, priority=9)
    normal = await fleet.submit(chat(), pool=pool, session_id=f"{pool}-talk", metadata={"team": "search"})

    page = await reader.page(f"/ui/jobs?pool={pool}")
    assert page.index(urgent.id) < page.index(normal.id)
    for condition in ("priority=4", f"session_id={pool}-talk", "metadata=team%3Dsearch"):
        page = await reader.page(f"/ui/jobs?pool={pool}&state=queued&{condition}")
        assert normal.id in page
        assert urgent.id not in page
    assert "No unfinished job meets these conditions" in await reader.page(
        f"/ui/jobs?pool={pool}&state=running"
    )
    assert "No unfinished job" in await reader.page(f"/ui/jobs?pool={pool}&until=2001-01-01T00:00")
    for wrong in (
        *("state=gone", "priority=ten", "since=yesterday", "metadata=team", "after=x"),
        *("state=failed&session_id=failed", "state=failed&metadata=a%3Dfailed", "state=failed&priority=10"),
    ):
        name, _, value = wrong.rpartition("&")[2].replace("a%3D", "").partition("=")
        told = await reader.page(f"/ui/jobs?pool={pool}&{wrong}", 400)
        assert name in told
        assert value in told or name == "after"
    opened = await reader.get("/ui/jobs", params={"id": f" {normal.id} "})
    assert opened.headers["location"] == f"/ui/jobs/{normal.id}"


async def test_the_list_shows_what_live_workers_have_ended_by_state(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_view, "FRESH_S", 0.0)
    await start_worker()
    good = await fleet.submit(chat(), pool=pool, priority=7)
    bad = await fleet.submit(chat(simulated={"fail": "engine_error"}), pool=pool, max_attempts=1)
    other = await fleet.submit(chat(), pool=pool, tenant=f"{pool}.other")
    await fleet.wait_many([good, bad, other])

    async def known() -> bool:
        return {good.id, bad.id, other.id} <= {job.id for job in (await fleet.watch.snapshot()).ended}

    await eventually(known)
    query = f"/ui/jobs?pool={pool}&state="
    pages = {state: await reader.page(f"{query}{state}") for state in ("succeeded", "failed", "cancelled")}
    assert [state for state, page in pages.items() if good.id in page] == ["succeeded"]
    assert [state for state, page in pages.items() if bad.id in page] == ["failed"]
    result = (await fleet.get(bad)).result
    assert result is not None
    assert result.error is not None
    assert f"<code>{result.error.code}</code>" in pages["failed"]
    assert not any(other.id in page for page in pages.values()), "it is of another tenant"
    assert "None of the jobs that ended last" in pages["cancelled"]
    for narrower in ("priority=4", "until=2001-01-01T00:00", f"pool={pool}-unknown"):
        assert good.id not in await reader.page(f"{query}succeeded&{narrower}")
    for wider in ("priority=7", "since=2001-01-01T00:00"):
        assert good.id in await reader.page(f"{query}succeeded&{wider}")


LONG = "x" * 5000
WRONG = (
    "",
    "%00",
    "%ff%fe",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    LONG,
    "-1",
    "NaN",
    "..%2f..",
    "%7B%7B7*7%7D%7D",
)


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
async def test_nothing_in_an_address_is_more_than_text(reader: Reader, pool: str, wrong: str) -> None:
    names = ("id", "pool", "state", "priority", "session_id", "since", "until", "metadata", "after")
    for path in (
        *(f"jobs?{name}={wrong}" for name in names),
        *(f"jobs?state=failed&{name}={wrong}" for name in names),
        *(f"runs?{name}={wrong}" for name in ("id", "queue", "state", "after")),
        *(f"{page}/{wrong}" for page in ("jobs", "sessions", "runs", "batches", "dead-letters")),
        *(f"sessions?id={wrong}", f"sessions/{pool}?every={wrong}", f"batches?after={wrong}"),
        *(f"dead-letters/{pool}?{name}={wrong}" for name in ("message", "priority")),
        *(f"rollouts/{wrong}/pause", f"rollouts/{pool}/{wrong}"),
        *(f"fleet/pools/{wrong}/pause", f"fleet/pools/{pool}/{wrong}", f"fleet/workers/{wrong}/drain"),
    ):
        answer = await reader.get(f"/ui/{path}")
        assert answer.status_code < 500, path
        assert "<script>alert" not in answer.text, path
        if answer.status_code >= 400:
            assert "<main" in answer.text, path


async def test_a_list_that_is_too_long_for_a_page_goes_on_behind_it(
    fleet: Fleet, reader: Reader, pool: str
) -> None:
    jobs = await fleet.submit_many([chat()] * 150, pool=pool)
    first = await reader.page(f"/ui/jobs?pool={pool}")
    target = first.partition('href="?')[2].partition('"')[0].replace("&amp;", "&")
    second = await reader.page(f"/ui/jobs?{target}")
    found = [[job.id for job in jobs if job.id in page] for page in (first, second)]
    assert [len(ids) for ids in found] == [100, 50]
    assert {*found[0], *found[1]} == {job.id for job in jobs}
    assert 'href="?' not in second


async def test_a_job_shows_its_answer_its_record_and_its_timeline(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(chat(HOSTILE), pool=pool)
    await fleet.wait(job)
    page = await reader.page(f"/ui/jobs/{job.id}")
    assert answer_to(job).split()[0] in page
    assert "succeeded" in page
    assert "attempt 1 started on worker-" in page
    assert "Cancel the job" not in page


async def test_a_waiting_job_says_why_and_can_be_cancelled(fleet: Fleet, reader: Reader, pool: str) -> None:
    job = await fleet.submit(chat(), pool=pool)
    page = await reader.page(f"/ui/jobs/{job.id}")
    assert "no_worker" in page
    assert f'data-events="/ui/jobs/{job.id}/events"' in page
    answer = await reader.submit(f"/ui/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/jobs/{job.id}")
    assert (await fleet.get(job)).state == "cancelled"
    assert "The job has ended without an answer" in await reader.page(f"/ui/jobs/{job.id}")


async def test_a_failed_job_says_why(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(chat(simulated={"fail": "invalid_request"}), pool=pool)
    await fleet.wait(job)
    page = await reader.page(f"/ui/jobs/{job.id}")
    assert "Why it failed" in page
    assert "invalid_request" in page


async def test_the_text_of_a_running_job_is_a_stream_that_resumes(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=40, step_s=0.02), pool=pool, stream=True)
    await until_running(fleet, job)
    path = f"/ui/jobs/{job.id}/events"
    begun = [event async for event in events_of(reader, path, until="tokens")]
    assert [kind for _, kind in begun] == ["queued", "running", "tokens"]
    rest = [event async for event in events_of(reader, path, after=begun[-1][0])]
    assert [kind for _, kind in rest][-1] == "finished"
    assert not {*begun} & {*rest}
    assert (await reader.get(path, headers={"last-event-id": rest[-1][0]})).status_code == 204


async def events_of(
    reader: Reader, path: str, *, after: str | None = None, until: str | None = None
) -> AsyncGenerator[tuple[str, str]]:
    """Read the ids and kinds of events, to one of the kind ``until``."""
    headers = {} if after is None else {"last-event-id": after}
    async with reader.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        event_id = ""
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                event_id = line.removeprefix("id: ")
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
                yield event_id, kind
                if kind == until:
                    return


async def test_there_is_no_job_of_an_unknown_id(reader: Reader) -> None:
    for path in (NO_JOB, f"{NO_JOB}/events", "nonsense", "..%2f..%2fv1"):
        await reader.page(f"/ui/jobs/{path}", 404)
    assert "There is no such page" in await reader.page("/ui/nothing", 404)


async def test_a_session_is_a_conversation(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    name = f"{pool}/<b>&talk"
    job = await fleet.submit(chat(HOSTILE), pool=pool, session_id=name)
    await fleet.wait(job)
    await fleet.session(name).patch_state({"note": HOSTILE})

    opened = await reader.get("/ui/sessions", params={"id": name})
    page = await reader.page(opened.headers["location"])
    assert_escaped(page)
    assert "<b>&talk" not in page
    assert answer_to(job).split()[0] in page
    assert job.id in page
    assert page.count("&lt;script&gt;") >= 2
    assert "There is no session" in await reader.page(f"/ui/sessions/{pool}-unknown", 404)


async def test_a_batch_shows_its_progress_and_can_be_cancelled(reader: Reader, pool: str) -> None:
    line = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}\n'
    file = await reader.post("/v1/files", data={"purpose": "batch"}, files={"file": line.encode()})
    order = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"note": HOSTILE},
    }
    made = await reader.post("/v1/batches", json=order)
    path = f"/ui/batches/{made.json()['id']}"
    assert path in await reader.page("/ui/batches")
    page = await reader.page(path)
    assert_escaped(page)
