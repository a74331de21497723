"""What a search before it means for a submission."""

from __future__ import annotations

import pytest
from tests.integration.conftest import PATIENCE_S, ForeignClient, StartWorker, chat

from inferfleet.producer import Fleet, Index
from inferfleet.schemas import Job, Priority
from inferfleet.schemas.errors import EmbeddingTimeoutError, RetrievalError
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.passages import Retrieve


@pytest.fixture
async def facts(index: Index, pool: str, start_worker: StartWorker) -> Index:
    """An index with a document, whose pool has no worker any more."""
    worker = await start_worker()
    await index.create(pool=pool)
    await index.add([{"id": "fact", "text": "A fact."}])
    await worker.stop()
    return index


async def test_a_question_that_its_pool_does_not_take_is_no_error_of_the_job(
    fleet: Fleet, foreign: ForeignClient, facts: Index, pool: str
) -> None:
    await foreign.channel.queue_delete(job_queue(pool))
    with pytest.raises(RetrievalError, match=f"the question cannot be embedded: .*{pool}"):
        await fleet.submit("Who?", pool=pool, retrieve={"index": facts.name})


@pytest.mark.parametrize(("priority", "asked"), [(Priority.URGENT, Priority.HIGH), (1, 1)])
async def test_a_question_is_no_more_urgent_than_its_job(
    fleet: Fleet, foreign: ForeignClient, facts: Index, pool: str, priority: int, asked: int
) -> None:
    with pytest.raises(EmbeddingTimeoutError):
        await fleet.submit(
            "Who?", pool=pool, priority=priority, retrieve={"index": facts.name, "timeout_s": 0.5}
        )
    question = await foreign.channel.basic_get(job_queue(pool), no_ack=True)
    assert question.header.properties.priority == asked


async def test_turns_keep_their_order_though_some_are_searched_for(
    fleet: Fleet, index: Index, pool: str, start_worker: StartWorker
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add([{"id": "fact", "text": "A fact."}])
    asked = Retrieve(index=index.name)
    words = ["First?", "Second?", "Third?"]
    jobs = await fleet.submit_many(
        Job(pool=pool, session_id=pool, body=chat(each), retrieve=None if each == "Second?" else asked)
        for each in words
    )
    for job in jobs:
        await fleet.wait(job, timeout_s=PATIENCE_S)
    history = await fleet.session(pool).history()
    assert [message["content"] for message in history if message["role"] == "user"] == words
