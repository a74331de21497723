"""Pages of agents' runs: what they show of a run, and what their forms answer."""

from __future__ import annotations

import pytest
from tests.integration.ui.conftest import HOSTILE, Reader, assert_escaped, waiting_run

from inferfleet.agents import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas.run import Answer, RunResult, RunState, Verdict


async def test_a_run_shows_its_steps_and_what_it_asks_as_text(
    fleet: Fleet, reader: Reader, pool: str
) -> None:
    run_id = await waiting_run(fleet, pool, text=HOSTILE)
    listed = await reader.page(f"/ui/runs?queue={pool}&state=waiting")
    page = await reader.page(f"/ui/runs/{run_id}")
    for each in (listed, page):
        assert run_id in each
        assert_escaped(each)
    assert "May it make call 0.0 of pay?" in page
    assert 'data-live="3"' in page
    assert "<dt>Cost</dt><dd>0.0125</dd>" in page
    assert page.count('name="question" value="0.0:1"') == 3
    assert run_id not in await reader.page(f"/ui/runs?queue={pool}&state=running")
    assert "state" in await reader.page("/ui/runs?state=failed", 400)
    assert (await reader.get("/ui/runs", params={"id": run_id})).headers["location"] == f"/ui/runs/{run_id}"
    records = AgentRuns(fleet).records
    result = RunResult(run_id=run_id, state=RunState.SUCCEEDED, text=HOSTILE)
    await records.tell(run_id, "wake", "")
    await records.claim(run_id, fence="two", runner="two", lease_s=60)
    await records.settle(run_id, RunState.SUCCEEDED, fence="two", told=1, result=result)
    page = await reader.page(f"/ui/runs/{run_id}")
    assert_escaped(page)
    assert "Answer" in page
    assert 'data-live="0"' in page, "the page does not ask for news of what has ended"
    assert "May it make" not in page


@pytest.mark.parametrize(
    ("form", "fields", "answer"),
    [
        ("approve", {}, Answer(verdict=Verdict.APPROVE)),
        ("deny", {"reason": "too dear"}, Answer(verdict=Verdict.DENY, note="too dear")),
        ("answer", {"result": "paid"}, Answer(verdict=Verdict.RESULT, note="paid")),
        ("answer", {"result": ""}, Answer(verdict=Verdict.RESULT)),
    ],
)
async def test_a_form_answers_what_a_run_asks(
    fleet: Fleet, reader: Reader, pool: str, form: str, fields: dict[str, str], answer: Answer
) -> None:
    run_id = await waiting_run(fleet, pool)
    sent = await reader.submit(f"/ui/runs/{run_id}/{form}", question="0.0:1", **fields)
    assert (sent.status_code, sent.headers["location"]) == (303, f"/ui/runs/{run_id}")
    inbox = await AgentRuns(fleet).records.inbox(run_id)
    assert [Answer.model_validate_json(message) for message in inbox.values()] == [answer]
    for not_asked in ({"question": "7.0:1"}, {}):
        assert (await reader.submit(f"/ui/runs/{run_id}/approve", **not_asked)).status_code == 409


async def test_an_answer_that_is_refused_leads_back_to_the_run(
    fleet: Fleet, reader: Reader, pool: str
) -> None:
    run_id = await waiting_run(fleet, pool)
    await reader.submit(f"/ui/runs/{run_id}/approve", question="0.0:1")
    sent = await reader.post(
        f"/ui/runs/{run_id}/deny",
        data={"question": "0.0:1"},
        headers={**reader.origin, "referer": f"{reader.base_url}/ui/runs/{run_id}"},
    )
    assert sent.status_code == 409
    assert "has got another answer: approve" in sent.text
    assert f'<a href="/ui/runs/{run_id}">Back</a>' in sent.text


async def test_a_run_can_be_cancelled(fleet: Fleet, reader: Reader, pool: str) -> None:
    run_id = await waiting_run(fleet, pool)
    assert "Cancel the run" in await reader.page(f"/ui/runs/{run_id}")
    assert (await reader.submit(f"/ui/runs/{run_id}/cancel")).status_code == 303
    assert "cancel" in await AgentRuns(fleet).records.inbox(run_id)
