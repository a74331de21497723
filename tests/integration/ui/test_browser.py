"""The web page in a real browser, wide and narrow, light and dark."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartWorker,
    answer_to,
    chat,
    eventually,
    slow_chat,
    until_tokens,
)
from tests.integration.ui.browser import LOOKS, Look, chromium
from tests.integration.ui.conftest import HOSTILE, Reader, new_key, start_rollout, waiting_run

from inferfleet.agents import AgentRuns
from inferfleet.gateway import api_keys
from inferfleet.producer import Fleet
from inferfleet.schemas.fleet_history import FleetSample
from inferfleet.schemas.names import FLEET_HISTORY_KEY
from inferfleet.schemas.run import RunResult, RunState
from inferfleet.wire.redis.ended_counts import add_counts

MANY = 10_000


@pytest.fixture(params=LOOKS)
async def look(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Look]:
    async with chromium() as browser:
        context = await browser.new_context(**LOOKS[request.param])
        context.set_default_timeout(PATIENCE_S * 1000)
        yield Look(await context.new_page(), tmp_path, request.param)
        await context.close()


async def test_an_idle_fleet(look: Look, gateway: RunningGateway, pool: str) -> None:
    pages = (
        "fleet",
        "jobs",
        "sessions",
        "runs",
        "batches",
        "rollouts",
        "dead-letters",
        f"dead-letters/{pool}",
        "nothing",
    )
    for path in pages:
        await look.page.goto(f"{gateway.url}/ui/{path}")
        look.complaints[:] = [each for each in look.complaints if "404" not in each]
        await look.examine(f"idle-{path.replace('/' + pool, '-pool')}")


async def test_the_text_of_a_job_grows_until_its_end(
    look: Look, gateway: RunningGateway, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    endless = await fleet.submit(slow_chat(HOSTILE, tokens=100_000, step_s=0.1), pool=pool, stream=True)
    await look.page.goto(f"{gateway.url}/ui/jobs/{endless.id}")
    assert await look.page.locator("#answer-note").text_content() == "Waiting to start…"
    await look.examine("job-queued")
    await start_worker()
    await until_tokens(fleet, endless, 20)
    text = look.page.locator("#answer pre.writing")
    await text.wait_for()
    await look.page.locator(".timeline .started").wait_for()
    begun = await text.text_content()
    assert begun
    await look.examine("job-running")
    grown = await text.text_content()
    assert answer_to(endless).startswith(grown)
    assert grown.startswith(begun)
    assert len(grown) > len(begun)
    await fleet.cancel(endless)
    await look.page.locator(".badge.cancelled").wait_for()

    job = await fleet.submit(
        slow_chat(HOSTILE, tokens=60, step_s=0.1), pool=pool, stream=True, session_id=f"{pool}-talk"
    )
    await look.page.goto(f"{gateway.url}/ui/jobs/{job.id}")
    await fleet.wait(job)
    await look.page.locator(".badge.succeeded").wait_for()
    assert await look.page.locator(".part pre").text_content() == answer_to(job)
    await look.examine("job-succeeded")
    await look.page.click("text=-talk")
    await look.examine("session")
    await fleet.wait(await fleet.submit(chat(), pool=pool, session_id=f"{pool}-talk"))
    await look.page.locator("section[aria-label='Turn 2']").wait_for()
    assert await look.page.locator("dt:text('Turns') + dd").text_content() == "2"
    assert await look.page.locator("script:not([src]), img[src=x]").count() == 0


async def test_a_job_whose_events_cannot_be_followed_is_shown_at_its_end(
    look: Look, gateway: RunningGateway, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await look.page.route("**/events", lambda route: route.fulfill(status=503))
    job = await fleet.submit(chat(), pool=pool)
    await look.page.goto(f"{gateway.url}/ui/jobs/{job.id}")
    await look.page.locator("#answer-note:has-text('reload the page')").wait_for()
    await start_worker()
    await look.page.locator(".badge.succeeded").wait_for()
    assert await look.page.locator(".part pre").text_content() == answer_to(job)


async def test_a_busy_fleet(
    look: Look,
    gateway: RunningGateway,
    fleet: Fleet,
    store: aioredis.Redis,
    start_worker: StartWorker,
    pool: str,
) -> None:
    for name, tokens in ((f"{pool}-worker", 200), (f"{pool}-another-worker-with-a-long-name", 60)):
        await start_worker(worker_id=name, max_running=3, engine_args={})
        asked = [slow_chat(str(number), tokens=tokens, step_s=0.05) for number in range(6)]
        await fleet.submit_many(asked, pool=pool, priority=7)
    await fleet.submit_many([slow_chat("later", tokens=40, step_s=0.05)] * 5, pool=pool)
    await store.delete(FLEET_HISTORY_KEY)
    for step in range(150):
        wave = 1 + math.sin(step / 9)
        sample = FleetSample(
            at=fleet.pipeline.clock.now() - timedelta(seconds=20 * (150 - step)),
            unfinished=int(400 * wave),
            running=int(12 * wave),
            tokens_per_s=900 * wave,
        )
        await store.rpush(FLEET_HISTORY_KEY, sample.model_dump_json())
    await look.page.goto(f"{gateway.url}/ui/")
    await look.page.locator(".badge.succeeded").first.wait_for()
    await look.examine("fleet-busy")
    await look.page.locator("text=Drain").first.click()
    await look.examine("drain")
    await look.page.go_back()
    await look.page.locator(f"tr:has-text('{pool}') >> text=Pause").first.click()
    await look.examine("pause")
    await look.page.click("button:has-text('Pause the pool')")
    await look.page.locator("text=Resume").first.wait_for()
    assert (await fleet.pool(pool)).paused_at is not None
    await look.examine("fleet-paused")


async def test_a_person_approves_a_call_of_a_run(
    look: Look, gateway: RunningGateway, fleet: Fleet, pool: str
) -> None:
    run_id = await waiting_run(fleet, pool, text=HOSTILE)
    await look.page.goto(f"{gateway.url}/ui/runs?queue={pool}")
    await look.examine("runs")
    await look.page.click(f"text={run_id}")
    await look.page.click("summary")
    await look.examine("run-waiting")
    assert await look.page.locator("script:not([src]), img[src=x]").count() == 0
    await look.page.click("button:has-text('Approve')")
    await look.page.locator(".badge.queued").wait_for()
    await look.examine("run-approved")
    records = AgentRuns(fleet).records
    result = RunResult(run_id=run_id, state=RunState.SUCCEEDED, text="paid")
    await records.claim(run_id, fence="two", runner="two", lease_s=60)
    await records.settle(run_id, RunState.SUCCEEDED, fence="two", told=1, result=result)
    await look.page.locator("[data-live='0'] .badge.succeeded").wait_for()


async def test_what_somebody_has_typed_or_opened_stays_while_the_page_is_renewed(
    look: Look, gateway: RunningGateway, fleet: Fleet, pool: str
) -> None:
    run_id = await waiting_run(fleet, pool)
    await look.page.goto(f"{gateway.url}/ui/runs/{run_id}")
    await look.page.fill("[name=reason]", "too dear")
    await look.page.click("summary")
    await look.page.fill("[name=result]", "paid")
    await look.page.click("h1")
    # Renewed nodes are others.
    await look.page.evaluate("document.querySelector('[name=reason]').classList.add('old')")
    await look.page.locator("[name=reason]:not(.old)").wait_for()
    assert await look.page.input_value("[name=reason]") == "too dear"
    assert await look.page.input_value("[name=result]") == "paid"
    assert await look.page.locator("details").evaluate("(each) => each.open")


async def test_a_page_says_that_it_is_not_up_to_date(
    look: Look, guarded: RunningGateway, key_file: Path, pool: str
) -> None:
    key = new_key(key_file, "acme")
    await look.page.goto(f"{guarded.url}/ui/jobs?pool={pool}")
    await look.page.keyboard.type(key)
    await look.page.keyboard.press("Enter")
    await look.page.locator("text=Sign out").wait_for()
    with api_keys.changed_keys(key_file) as keys:
        kept = list(keys)
        keys.clear()
    said = look.page.locator("[role=status] .problem")
    await said.filter(has_text="you are signed out").wait_for()
    await look.examine("signed-out-meanwhile")
    with api_keys.changed_keys(key_file) as keys:
        keys.extend(kept)
    await said.wait_for(state="detached")
    await guarded.stop()
    await said.filter(has_text="the gateway does not answer").wait_for()


async def test_a_rollout_is_promoted_and_aborted_after_questions(
    look: Look, gateway: RunningGateway, fleet: Fleet, pool: str
) -> None:
    canary = await start_rollout(fleet, pool)
    own = {"succeeded": 1970, "failed": 30, "first_token:110": 1500, "first_token:140": 470, "wait:90": 1970}
    await add_counts(fleet.pipeline, pool, own, call="one")
    other = {"succeeded": 96, "failed": 1, "first_token:112": 96, "wait:91": 96}
    await add_counts(fleet.pipeline, canary, other, call="two")
    await look.page.goto(f"{gateway.url}/ui/rollouts")
    card = look.page.locator(f"section[aria-labelledby='rollout-{pool}']")
    await look.examine("rollouts")
    await card.locator("text=Promote").click()
    await look.page.click("button:has-text('Promote the rollout')")
    await look.page.locator("[role=alert]").wait_for()
    look.complaints[:] = [each for each in look.complaints if "409" not in each]
    await look.examine("promote-refused")
    await look.page.locator("label:has-text('without a ready worker')").click()
    await look.page.click("button:has-text('Promote the rollout')")
    await card.locator(".badge.promoted").wait_for()
    await card.locator("text=Abort").click()
    await look.page.fill("input[name=reason]", HOSTILE)
    await look.examine("abort-asked")
    await look.page.click("button:has-text('Abort the rollout')")
    await card.locator(".badge.aborted").wait_for()
    await look.examine("rollout-aborted")
    await look.page.click("nav >> text=Fleet")
    await look.page.locator(".badge.aborted").first.wait_for()
    await look.examine("fleet-rollout")
    assert await look.page.locator("script:not([src]), img[src=x]").count() == 0


async def test_a_failed_job(
    look: Look, gateway: RunningGateway, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(chat(simulated={"fail": "engine_error"}), pool=pool, max_attempts=3)
    await fleet.wait(job)
    await look.page.goto(f"{gateway.url}/ui/jobs/{job.id}")
    await look.examine("job-failed")

    async def known() -> bool:
        return job.id in {each.id for each in (await fleet.watch.snapshot()).ended}

    await eventually(known)
    await look.page.goto(f"{gateway.url}/ui/jobs")
    await look.page.select_option("#state", "failed")
    await look.page.click("button:has-text('Filter')")
    await look.page.locator(f"text={job.id}").wait_for()
    await look.examine("jobs-failed")


async def test_dead_letters_are_submitted_again_after_a_question(
    look: Look, gateway: RunningGateway, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    jobs = [
        await fleet.submit(chat(simulated={"fail": "engine_error"}), pool=pool, max_attempts=1)
        for _ in range(3)
    ]
    await fleet.wait_many(jobs)
    await worker.stop()

    async def dead() -> bool:
        return await fleet.dead_letters.count(pool) == 3

    await eventually(dead)
    await look.page.goto(f"{gateway.url}/ui/dead-letters/{pool}")
    await look.examine("dead-letters")
    await look.page.click("text=Submit all again")
    await look.examine("replay-asked")
    assert await dead()
    await look.page.click("text=Submit them again")
    await look.page.locator("text=3 jobs were submitted").wait_for()
    await look.examine("replayed")
    assert await fleet.dead_letters.count(pool) == 0


async def test_ten_thousand_jobs(look: Look, gateway: RunningGateway, fleet: Fleet, pool: str) -> None:
    await fleet.submit_many([chat()] * MANY, pool=pool)
    await look.page.goto(f"{gateway.url}/ui/jobs?pool={pool}")
    assert await look.page.locator("tbody tr").count() == 100
    await look.examine("jobs-many")
    await look.page.click("text=Next page")
    await look.page.wait_for_url("**&after=*")
    assert await look.page.locator("tbody tr").count() == 100


async def test_a_batch(
    look: Look, gateway: RunningGateway, reader: Reader, start_worker: StartWorker
) -> None:
    lines = "".join(
        f'{{"custom_id": "{number}", "method": "POST", "url": "/v1/chat/completions", "body": '
        f'{{"messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 4}}}}\n'
        for number in range(40)
    )
    file = await reader.post("/v1/files", data={"purpose": "batch"}, files={"file": lines.encode()})
    made = await reader.post(
        "/v1/batches",
        json={
            "input_file_id": file.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"team": "search"},
        },
    )
    await look.page.goto(f"{gateway.url}/ui/batches/{made.json()['id']}")
    await look.examine("batch-waiting")
    await start_worker()
    await look.page.locator(".badge.completed").wait_for()
    await look.examine("batch-completed")
    await look.page.click("nav >> text=Batches")
    await look.examine("batches")


async def test_signing_in(look: Look, guarded: RunningGateway, key_file: Path, pool: str) -> None:
    key = new_key(key_file, "acme")
    await look.page.goto(f"{guarded.url}/ui/jobs?pool={pool}")
    await look.examine("sign-in")
    await look.page.keyboard.type(key)
    await look.page.keyboard.press("Enter")
    await look.page.locator("text=Sign out").wait_for()
    assert look.page.url == f"{guarded.url}/ui/jobs?pool={pool}"
    await look.examine("signed-in")
    (cookie,) = await look.page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/ui")
    await look.page.click("text=Sign out")
    await look.page.locator("text=API key").first.wait_for()
    assert await look.page.context.cookies() == []
