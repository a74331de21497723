"""A job with passages of an index: they are in its prompt, the same in every attempt, and in no session."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
)
from tests.integration.test_gateway_metrics import Metrics
from tests.integration.test_gateway_metrics import metrics as metrics

from inferfleet.producer import Fleet, Index
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.errors import (
    EmbeddingTimeoutError,
    RetrievalError,
    UnknownIndexError,
)
from inferfleet.schemas.journal import RestartedEntry, TokensEntry
from inferfleet.schemas.message import message_body
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.passages import Passage, Retrieve, with_passages
from inferfleet.worker.engines.simulated import expected_text

FACT = "Workers resume answers."
NEVER = "01890a5d-ac96-774b-bcce-b302099a8058"


@pytest.fixture
async def facts(index: Index, pool: str, start_worker: StartWorker) -> Index:
    """An index with two documents; its worker answers, too."""
    await start_worker(max_running=4, engine_args={})
    await index.create(pool=pool)
    await index.add([{"id": "fact", "text": FACT, "metadata": {"n": 1}}, {"id": "other", "text": "Other."}])
    return index


def told(job: Job) -> str:
    """What the simulated engine says to a job with its passages."""
    return expected_text(Endpoint.CHAT, with_passages(job.body, job.passages or ()))


async def test_the_passages_are_in_the_prompt_and_cited_in_the_result(
    fleet: Fleet, facts: Index, pool: str
) -> None:
    asked: Any = {"index": facts.name, "k": 1, "query": FACT}
    job = await fleet.submit("Who resumes?", pool=pool, retrieve=asked, max_tokens=8)
    assert [(each.document, each.text) for each in job.passages or ()] == [("fact", FACT)]
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.text == told(job) != expected_text(Endpoint.CHAT, job.body)
    assert [(each.document, round(each.score, 3)) for each in result.citations] == [("fact", 1.0)]
    none = await fleet.run("Who?", pool=pool, retrieve={**asked, "where": {"n": 2}}, max_tokens=8)
    assert (none.citations, none.text) == ((), expected_text(Endpoint.CHAT, chat("Who?", max_tokens=8)))


async def test_a_turn_has_passages_of_its_own_which_stay_out_of_the_session(
    fleet: Fleet, facts: Index, pool: str
) -> None:
    session = fleet.session(pool)
    for words in ("First?", "Second?"):
        job = await session.send(
            words, pool=pool, body={"max_tokens": 8}, retrieve={"index": facts.name, "k": 2}
        )
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        assert len(result.citations) == 2
    history = await session.history()
    assert [message["content"] for message in history if message["role"] == "user"] == ["First?", "Second?"]
    passages = with_passages({"messages": [history[2]]}, job.passages or ())["messages"]
    assert result.text == expected_text(
        Endpoint.CHAT, {"max_tokens": 8, "messages": [*history[:2], *passages]}
    )


async def test_an_answer_resumes_with_the_passages_that_its_job_was_recorded_with(
    connect: Connect, fleet: Fleet, index: Index, pool: str, start_worker: StartWorker
) -> None:
    first = await start_worker(engine_args={})
    await index.create(pool=pool)
    await index.add([{"id": "fact", "text": FACT}])
    body = slow_chat("Who?", tokens=40, step_s=0.05)
    options: Any = {"pool": pool, "retrieve": {"index": index.name}, "idempotency_key": pool, "stream": True}
    job = await fleet.submit(body, **options)
    tokens = fleet.stream(job)
    async for line in tokens:
        if isinstance(line.entry, TokensEntry):
            break
    await index.add([{"id": "fact", "text": "It has changed."}])
    await first.stop()
    # No worker embeds now, and the job is known all the same; nothing is searched again.
    again = await fleet.submit(body, **options)
    assert (again.id, again.passages) == (job.id, job.passages)

    await start_worker(engine_args={})
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.text == told(job)
    entries = [line.entry async for line in tokens]
    assert not [entry for entry in entries if isinstance(entry, RestartedEntry)], "it was resumed"
    assert (await fleet.submit(body, **options)).id == job.id, "also when it has ended"


async def test_of_two_messages_of_a_job_the_recorded_passages_count(
    fleet: Fleet, foreign: ForeignClient, pool: str, start_worker: StartWorker
) -> None:
    first, second = (Passage(document="d", chunk="c", score=1, text=text) for text in ("one", "two"))
    job = Job(pool=pool, body=chat(max_tokens=8), retrieve=Retrieve(index="docs"), passages=(first,))
    job = await fleet.submit(job)
    await foreign.channel.queue_purge(job_queue(pool))
    other = job.model_copy(update={"passages": (second,)})
    await foreign.publish(message_body(other), message_id=job.id)
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == told(job) != told(other)


async def test_what_cannot_be_retrieved_is_refused_and_nothing_is_accepted(
    fleet: Fleet, connect: Connect, index: Index, pool: str, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    with pytest.raises(UnknownIndexError, match=f"no index '{pool}'"):
        await fleet.submit("Who?", pool=pool, retrieve={"index": index.name})
    await index.create(pool=pool)
    await index.add([{"id": "fact", "text": FACT}])
    async with connect(keep_requests=False) as other:
        with pytest.raises(RetrievalError, match="INFERFLEET_KEEP_REQUESTS"):
            await other.submit("Who?", pool=pool, retrieve={"index": index.name})
    async with connect(max_body_bytes=200) as small:
        with pytest.raises(RetrievalError, match=r"with its 1 passages the job has .* at most 200"):
            await small.submit("Who?", pool=pool, retrieve={"index": index.name})
    await worker.stop()
    with pytest.raises(EmbeddingTimeoutError, match=r"within 0\.1 s"):
        await fleet.submit("Who?", pool=pool, retrieve={"index": index.name, "timeout_s": 0.1}, id=NEVER)
    assert (await fleet.get_many([NEVER]))[NEVER] is None


PASSAGE = Passage(document="d", chunk="c", score=1, text="t")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"retrieve": Retrieve(index="docs")}, "the submitter fetches the passages, and has not"),
        ({"passages": (PASSAGE,), "body": {"messages": [{"role": "assistant"}]}}, "the last message must be"),
    ],
)
async def test_a_foreign_job_that_cannot_have_passages_fails_and_says_why(
    fleet: Fleet,
    foreign: ForeignClient,
    pool: str,
    start_worker: StartWorker,
    changes: dict[str, Any],
    problem: str,
) -> None:
    await start_worker()
    job = Job(pool=pool, body=chat()).model_copy(update=changes)
    await foreign.publish(message_body(job), message_id=job.id)

    async def ended() -> bool:
        record = (await fleet.get_many([job.id]))[job.id]
        return record is not None and record.state.terminal

    await eventually(ended)
    failure = (await fleet.wait(job)).error
    assert failure is not None
    assert failure.code == "invalid_request"
    assert f"retrieve: {problem}" in failure.message


async def test_jobs_and_chats_over_http_retrieve_from_the_index_of_their_tenant(
    facts: Index, pool: str, start_gateway: StartGateway, metrics: Metrics
) -> None:
    gateway = await start_gateway(metrics_port=0)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        made = await http.post(
            "/v1/jobs", json={"body": chat("Who?"), "pool": pool, "retrieve": {"index": facts.name, "k": 1}}
        )
        assert made.status_code == 202, made.text
        record = (await http.get(f"/v1/jobs/{made.json()['id']}", params={"wait": 30})).json()
        assert len(record["result"]["citations"]) == 1
        options = {"pool": pool, "retrieve": {"index": "nowhere"}}
        refused = await http.post("/v1/chat/completions", json={**chat(), "inferfleet": options})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "index_not_found")
    assert await metrics.sums("searches_total", "outcome") == {"succeeded": 1}
    assert await metrics.sum("search_hits_total") == 1
    assert await metrics.sum("search_seconds_total") > 0


async def test_a_search_is_a_span_of_the_submission_that_needs_it(
    fleet: Fleet, facts: Index, pool: str, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    await fleet.submit("Who?", pool=pool, retrieve={"index": facts.name, "k": 1})
    embedding, search, send = spans.get_finished_spans()
    assert [span.name for span in (embedding, search, send)] == [
        f"send inferfleet.jobs.{pool}",
        f"retrieval {facts.name}",
        f"send inferfleet.jobs.{pool}",
    ]
    ids = {span.name: span.context and span.context.span_id for span in (search, send)}
    assert embedding.parent is not None
    assert search.parent is not None
    assert [embedding.parent.span_id, search.parent.span_id] == [ids[search.name], ids[send.name]]
    assert dict(search.attributes or {}) == {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.data_source.id": facts.name,
        "inferfleet.tenant": "default",
        "inferfleet.retrieval.hits": 1,
    }
