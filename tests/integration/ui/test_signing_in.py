"""Who may see which page: API keys, the cookie that keeps one, and forms of other sites."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.conftest import RunningGateway, StartGateway, StartWorker, chat, eventually
from tests.integration.ui.conftest import NO_JOB, Reader, SignIn, new_key, waiting_run

from inferfleet.agents import AgentRuns
from inferfleet.gateway import api_keys
from inferfleet.producer import Fleet

PAGES = (
    "",
    "jobs",
    f"jobs/{NO_JOB}",
    f"jobs/{NO_JOB}/events",
    "sessions",
    "sessions/talk",
    "runs",
    f"runs/{NO_JOB}",
    "batches",
    f"batches/batch_{'0' * 32}",
    "dead-letters",
    "dead-letters/default",
    "rollouts",
    "rollouts/default/pause",
)
FLEET_PAGES = (
    "fleet",
    "fleet/pools/default/pause",
    "fleet/workers/w/drain",
    "dead-letters",
    "dead-letters/default",
    "rollouts",
    "rollouts/default/pause",
)
FORMS = (
    f"jobs/{NO_JOB}/cancel",
    f"runs/{NO_JOB}/cancel",
    f"runs/{NO_JOB}/approve",
    f"runs/{NO_JOB}/deny",
    f"runs/{NO_JOB}/answer",
    f"batches/batch_{'0' * 32}/cancel",
    "dead-letters/default/replay",
    "rollouts/default/abort",
    "sign-out",
)
FLEET_FORMS = (
    "dead-letters/default/replay",
    "rollouts/default/abort",
    "fleet/pools/default/pause",
    "fleet/workers/w/drain",
)


async def test_every_answer_forbids_what_a_page_does_not_need(reader: Reader) -> None:
    for path in ("jobs", "static/style.css", "static/job.js", "static/nothing", "nothing", f"jobs/{NO_JOB}"):
        answer = await reader.get(f"/ui/{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = await reader.page("/ui/jobs")
    assert "<style" not in page
    assert " style=" not in page
    assert all("src=" in script for script in page.split("<script")[1:])


async def test_whoever_is_not_signed_in_is_asked_for_a_key(guarded: RunningGateway) -> None:
    async with Reader(guarded) as reader:
        for path in PAGES:
            answer = await reader.get(f"/ui/{path}")
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/ui/sign-in?next=%2Fui%2F"), path
        for path in FORMS:
            assert (await reader.submit(f"/ui/{path}")).headers["location"] == "/ui/sign-in"
        assert (await reader.get("/ui/static/style.css")).status_code == 200
        assert (await reader.get("/ui")).headers["location"] == "/ui/"
        # The cookie is not for the API.
        assert (await reader.get("/v1/jobs", headers={"cookie": "inferfleet_key=x"})).status_code == 401


async def test_a_key_signs_in_and_goes_on_where_it_was_asked_for(
    guarded: RunningGateway, key_file: Path
) -> None:
    key = new_key(key_file, "acme")
    async with Reader(guarded) as reader:
        refused = await reader.submit("/ui/sign-in", key=f"{key}x", next="/ui/batches")
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        assert "unknown" in refused.text
        for given, target in (
            ("/ui/batches?after=x", "/ui/batches?after=x"),
            ("//evil.example/", "/ui/"),
            ("https://evil.example/ui/", "/ui/"),
            ("/v1/jobs", "/ui/"),
        ):
            answer = await reader.submit("/ui/sign-in", key=f" {key} ", next=given)
            assert (answer.status_code, answer.headers["location"]) == (303, target)
        cookie = answer.headers["set-cookie"].lower()
        for part in ("httponly", "samesite=strict", "path=/ui"):
            assert part in cookie
        assert "secure" not in cookie
        assert "acme" in await reader.page("/ui/jobs")
        # The key is in no page.
        assert key not in await reader.page("/ui/jobs")
        await reader.submit("/ui/sign-out")
        assert (await reader.get("/ui/jobs")).status_code == 303
        behind_tls = await reader.post(
            "/ui/sign-in", data={"key": key}, headers={**reader.origin, "x-forwarded-proto": "https"}
        )
        assert "secure" in behind_tls.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://evil.example", "a page of"),
        ("null", "a page of"),
        # Another page of this machine, or a proxy that names the gateway by its own address.
        ("http://127.0.0.1:1", "forward the header Host"),
        (None, "Origin"),
    ],
)
async def test_forms_of_other_sites_are_refused(
    reader: Reader, fleet: Fleet, pool: str, origin: str | None, said: str
) -> None:
    job = await fleet.submit(chat(), pool=pool)
    headers = {} if origin is None else {"origin": origin}
    for path in (*FORMS, "sign-out", f"jobs/{job.id}/cancel"):
        answer = await reader.post(f"/ui/{path}", data={"key": "x", "confirmed": "yes"}, headers=headers)
        assert answer.status_code == 403, path
        assert said in answer.text
    assert (await fleet.get(job)).state == "queued"


async def test_a_tenant_sees_only_its_own(
    sign_in: SignIn, guarded: RunningGateway, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    mine, yours = await sign_in(f"{pool}.mine"), await sign_in(f"{pool}.yours")
    ended = await fleet.submit(chat("secret"), pool=pool, tenant=f"{pool}.yours", session_id="talk")
    worker = await start_worker()
    await fleet.wait(ended)

    async def listed() -> bool:
        return ended.id in await yours.page("/ui/jobs?state=succeeded")

    await eventually(listed)
    await worker.stop()
    waiting = await fleet.submit(chat(), pool=pool, tenant=f"{pool}.yours", session_id="talk")
    allowed = {"authorization": f"Bearer {yours.cookies['inferfleet_key']}"}
    content = {"file": b"x"}
    file = await yours.post("/v1/files", headers=allowed, data={"purpose": "batch"}, files=content)
    order = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
    batch = await yours.post("/v1/batches", headers=allowed, json=order)
    batch_id = batch.json()["id"]
    run_id = await waiting_run(fleet, pool, tenant=f"{pool}.yours")
    own = {
        f"/ui/jobs/{ended.id}": f"/ui/jobs/{NO_JOB}",
        f"/ui/jobs/{waiting.id}": f"/ui/jobs/{NO_JOB}",
        "/ui/sessions/talk": "/ui/sessions/unknown",
        f"/ui/batches/{batch_id}": f"/ui/batches/batch_{'0' * 32}",
        f"/ui/runs/{run_id}": f"/ui/runs/{NO_JOB}",
    }
    for path, unknown in own.items():
        await yours.page(path)
        foreign = (await mine.page(path, 404)).replace(path.rpartition("/")[2], "ID")
        assert foreign == (await mine.page(unknown, 404)).replace(unknown.rpartition("/")[2], "ID")
    assert (await mine.get(f"/ui/jobs/{waiting.id}/events")).status_code == 404
    assert (await mine.submit(f"/ui/jobs/{waiting.id}/cancel")).status_code == 404
    assert (await mine.submit(f"/ui/batches/{batch_id}/cancel")).status_code == 404
    for form in ("cancel", "approve", "deny", "answer"):
        assert (await mine.submit(f"/ui/runs/{run_id}/{form}")).status_code == 404
    runs = f"/ui/runs?queue={pool}"
    for path in (
        *("/ui/jobs", f"/ui/jobs?pool={pool}&session_id=talk", "/ui/jobs?state=succeeded"),
        *("/ui/batches", runs),
    ):
        page = await mine.page(path)
        assert not any(each in page for each in (ended.id, waiting.id, batch_id, run_id))
    assert waiting.id in await yours.page(f"/ui/jobs?pool={pool}&session_id=talk")
    assert batch_id in await yours.page("/ui/batches")
    assert run_id in await yours.page(runs)
    assert (await fleet.get(waiting)).state == "queued"


@pytest.mark.parametrize("tenant", ["acme", "default"])
async def test_a_key_sees_no_page_of_the_whole_fleet(sign_in: SignIn, tenant: str) -> None:
    reader = await sign_in(tenant)
    for path in FLEET_PAGES:
        assert "whole fleet" in await reader.page(f"/ui/{path}", 403)
    for path in FLEET_FORMS:
        assert (await reader.submit(f"/ui/{path}", confirmed="yes")).status_code == 403
    page = await reader.page("/ui/jobs")
    assert not any(each in page for each in ("Dead letters", "Rollouts"))


async def test_a_revoked_key_counts_no_more(sign_in: SignIn, key_file: Path) -> None:
    reader = await sign_in("acme")
    await reader.page("/ui/jobs")
    with api_keys.changed_keys(key_file) as keys:
        keys.clear()
    assert (await reader.get("/ui/jobs")).status_code == 303


async def test_a_form_of_somebody_who_is_signed_out_leads_back_to_its_page(
    guarded: RunningGateway, fleet: Fleet, pool: str
) -> None:
    run_id = await waiting_run(fleet, pool, tenant="acme")
    page = f"{guarded.url}/ui/runs/{run_id}?x=1"
    async with Reader(guarded) as reader:
        for referer, location in (
            (page, f"/ui/sign-in?next=%2Fui%2Fruns%2F{run_id}%3Fx%3D1"),
            ("https://evil.example/elsewhere", "/ui/sign-in"),
            ("http://[", "/ui/sign-in"),
        ):
            answer = await reader.post(
                f"/ui/runs/{run_id}/approve",
                data={"question": "0.0:1"},
                headers={**reader.origin, "referer": referer},
            )
            assert (answer.status_code, answer.headers["location"]) == (303, location)
    assert await AgentRuns(fleet).records.inbox(run_id) == {}


async def test_there_is_no_page_where_it_is_turned_off(start_gateway: StartGateway, fleet: Fleet) -> None:
    async with Reader(await start_gateway(ui=False)) as reader:
        for path in ("/ui", "/ui/", "/ui/jobs", "/ui/static/style.css"):
            answer = await reader.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"
