"""Reranking and scoring: by a cross-encoder, which compares two texts, and by an embedding model."""

from __future__ import annotations

import pytest
import pytest_asyncio

from inferfleet.local.tiny_model import build_tiny_reranker
from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.ports import GenerationError

pytestmark = pytest.mark.asyncio(loop_scope="session")

WATER = {"query": "the water", "documents": ["one word of the sea", "call the people", "oil"]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reranker(make_engine, tiny_reranker):
    async with make_engine(model=tiny_reranker) as reranker:
        yield reranker


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder(make_engine):
    async with make_engine(runner="pooling", convert="embed") as embedder:
        yield embedder


@pytest.fixture
def rank(reranker, asking):
    return asking(reranker)


async def test_a_reranker_is_known_by_its_architecture_and_answers_nothing_else(reranker, rank):
    assert reranker.endpoints == {Endpoint.RERANK, Endpoint.SCORE}
    with pytest.raises(GenerationError, match="needs a model that generates text") as error:
        await rank({"prompt": "x"})
    assert error.value.code is FailureCode.INVALID_REQUEST


async def test_an_embedding_model_reranks_too(embedder):
    assert embedder.endpoints == {Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE}


async def test_a_model_that_only_generates_does_not(engine, ask):
    assert engine.endpoints == {Endpoint.CHAT, Endpoint.COMPLETIONS}
    with pytest.raises(GenerationError, match=r"needs a reranker .* or an embedding model") as error:
        await ask(WATER)
    assert error.value.code is FailureCode.INVALID_REQUEST


async def test_the_best_document_comes_first_with_the_score_that_it_has_alone(rank):
    answer = await rank(WATER, id="the-job")

    results = answer.response["results"]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    for result in results:
        alone = await rank({"queries": WATER["query"], "documents": WATER["documents"][result["index"]]})
        assert result["document"]["text"] == WATER["documents"][result["index"]]
        assert alone.response["data"][0]["score"] == pytest.approx(result["relevance_score"], abs=1e-5)
    assert answer.chunks == []
    assert answer.response["id"] == "score-the-job"
    assert answer.usage.prompt_tokens > 0 == answer.usage.completion_tokens


async def test_only_the_best_few_are_told_if_that_is_asked_for(rank):
    everything = await rank(WATER)
    best = await rank(WATER | {"top_n": 1})

    (one,) = best.response["results"]
    assert one["index"] == everything.response["results"][0]["index"]
    # Each of them was computed.
    assert best.usage == everything.usage


async def test_an_embedding_model_scores_by_the_angle_between_two_texts(embedder, asking):
    ask = asking(embedder)
    one, other = [data["embedding"] for data in (await ask({"input": ["the water", "oil"]})).response["data"]]

    answer = await ask({"queries": "the water", "documents": ["oil", "the water"]})

    angle, same = [data["score"] for data in answer.response["data"]]
    assert angle == pytest.approx(_product(one, other), abs=1e-4)
    assert same == pytest.approx(1, abs=1e-4)


async def test_a_classifier_of_several_labels_cannot_start_and_the_error_says_what_it_lacks(
    make_engine, tmp_path
):
    classifier = str(build_tiny_reranker(tmp_path, labels=3))

    with pytest.raises(ConfigurationError, match=r"for the task 'classify'.* needs a reranker"):
        async with make_engine(model=classifier):
            pass


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (WATER | {"query": "the " * 2000}, FailureCode.PROMPT_TOO_LONG, "1024"),
        (WATER | {"documents": []}, FailureCode.INVALID_REQUEST, "At least one"),
        (WATER | {"documents": 7}, FailureCode.INVALID_REQUEST, "documents"),
        (WATER | {"model": "other"}, FailureCode.INVALID_REQUEST, "'other'"),
        (
            WATER | {"documents": [{"content": [{"type": "text", "text": "oil"}]}]},
            FailureCode.INVALID_REQUEST,
            "MultiModalParam is not supported",
        ),
        ({"queries": ["a", "b"], "documents": "c"}, FailureCode.INVALID_REQUEST, "lengths"),
        ({"queries": "", "documents": ""}, FailureCode.INVALID_REQUEST, "empty"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_it_cannot_score_is_refused(rank, body, code, words):
    with pytest.raises(GenerationError, match=words) as error:
        await rank(body)

    assert error.value.code is code


@pytest.mark.parametrize("document", [{"content": "my own secret"}, {"my own secret": 1}])
async def test_no_refusal_quotes_a_document(rank, document):
    with pytest.raises(GenerationError) as error:
        await rank(WATER | {"documents": document})
    assert "secret" not in str(error.value)


async def test_how_a_model_pools_is_part_of_its_identity(embedder, make_engine):
    async with make_engine(
        runner="pooling", convert="embed", pooler_config={"seq_pooling_type": "MEAN"}
    ) as other:
        assert other.identity.options != embedder.identity.options
        assert other.identity.weights == embedder.identity.weights


def _product(one: list[float], other: list[float]) -> float:
    return sum(left * right for left, right in zip(one, other, strict=True))
