"""Jobs that rank and score: answered in one piece, so the journal has no tokens of them."""

from __future__ import annotations

from typing import Any

from tests.integration.conftest import PATIENCE_S, StartWorker, until_running

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, JobState
from inferfleet.schemas.journal import TokensEntry
from inferfleet.worker.engines.simulated import expected_response

WATER: dict[str, Any] = {
    "query": "the water",
    "documents": ["a word of the sea", "call the people", "oil"],
    "top_n": 2,
}


async def test_a_ranking_is_the_result_and_the_journal_has_its_end_alone(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    job = await fleet.submit(WATER, endpoint="/v2/rerank", pool=pool, stream=True)
    assert job.endpoint is Endpoint.RERANK
    entries = [line.entry async for line in fleet.stream(job)]
    result = await fleet.wait(job, timeout_s=PATIENCE_S)

    assert result.state is JobState.SUCCEEDED
    assert result.response is not None
    assert result.response == expected_response(
        Endpoint.RERANK, WATER, job_id=job.id, model=result.response["model"], created=0
    )
    assert len(result.response["results"]) == 2
    assert result.text == ""
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (19, 0)
    assert [entry.kind for entry in entries] == ["queued", "running", "finished"]
    identity = worker.engine.identity
    assert identity is not None
    assert result.model_identity == identity.short


async def test_many_scores_are_waited_for_at_once(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker()
    bodies = [{"text_1": "the water", "text_2": document} for document in WATER["documents"]]
    jobs = await fleet.submit_many(bodies, endpoint=Endpoint.SCORE, pool=pool)
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    together = await fleet.wait(
        await fleet.submit(
            {"queries": "the water", "documents": WATER["documents"]}, endpoint=Endpoint.SCORE, pool=pool
        ),
        timeout_s=PATIENCE_S,
    )
    assert together.response is not None
    scores = [result.response["data"][0]["score"] for result in results if result.response is not None]
    assert scores == [data["score"] for data in together.response["data"]]


async def test_a_ranking_that_is_stopped_has_said_nothing(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(WATER | {"simulated": {"hang": True}}, endpoint=Endpoint.RERANK, pool=pool)
    await until_running(fleet, job)
    await fleet.cancel(job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.response) == (JobState.CANCELLED, None)
    assert not [line async for line in fleet.stream(job) if isinstance(line.entry, TokensEntry)]


async def test_what_cannot_be_ranked_fails_at_the_first_attempt(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    picture = {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    job = await fleet.submit(WATER | {"documents": [picture]}, endpoint=Endpoint.RERANK, pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert "documents: it reads only text" in result.error.message
    assert result.attempts == 1
