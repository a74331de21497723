"""An engine of its own for embeddings; and, since it is cheap to lose, the death of an engine core."""

from __future__ import annotations

import asyncio
import math
import multiprocessing

import pytest
import pytest_asyncio
from openai.types import CreateEmbeddingResponse
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.worker.ports import EngineDeadError, GenerationError

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder(make_engine, engine):
    """Two engines at once in one process: the shared one runs too."""
    before = {child.pid for child in multiprocessing.active_children()}
    async with make_engine(runner="pooling", convert="embed") as embedder:
        (core,) = (child for child in multiprocessing.active_children() if child.pid not in before)
        yield embedder, core


@pytest.fixture
def embed(embedder, asking):
    return asking(embedder[0])


async def test_the_openai_sdk_accepts_an_embedding(embed):
    answer = await embed({"input": "hello", "model": "tiny"})

    (data,) = CreateEmbeddingResponse.model_validate(answer.response).data
    assert len(data.embedding) == 128
    assert math.isclose(math.hypot(*data.embedding), 1, rel_tol=1e-4)
    assert answer.chunks == []
    assert answer.usage.prompt_tokens > 0 == answer.usage.completion_tokens


async def test_several_inputs_get_a_vector_each_in_their_order(embed):
    alone = [(await embed({"input": text})).response["data"][0]["embedding"] for text in ("one", "two")]

    together = await embed({"input": ["one", "two"]})

    vectors = [data["embedding"] for data in together.response["data"]]
    for vector, expected in zip(vectors, alone, strict=True):
        assert vector == pytest.approx(expected, abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)


async def test_a_vector_can_come_as_base64(embed):
    answer = await embed({"input": "hello", "encoding_format": "base64"})

    assert isinstance(answer.response["data"][0]["embedding"], str)


async def test_it_generates_nothing(embedder, embed):
    assert embedder[0].endpoints == {Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE}
    with pytest.raises(GenerationError, match="/v1/completions needs a model that generates text") as error:
        await embed({"prompt": "x"})
    assert error.value.code is FailureCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input": "word " * 3000}, FailureCode.PROMPT_TOO_LONG),
        ({"input": [300] * 1025}, FailureCode.PROMPT_TOO_LONG),
        ({"input": []}, FailureCode.INVALID_REQUEST),
        ({"input": {"no": "text"}}, FailureCode.INVALID_REQUEST),
        ({"input": "x", "dimensions": 3}, FailureCode.INVALID_REQUEST),
        ({"input": "x", "encoding_format": "bytes"}, FailureCode.INVALID_REQUEST),
        ({"input": "x", "model": "other"}, FailureCode.INVALID_REQUEST),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_it_cannot_embed_is_refused(embed, body, code):
    with pytest.raises(GenerationError) as error:
        await embed(body)

    assert error.value.code is code


async def test_when_the_engine_core_dies_every_request_hears_it(embedder, embed, a_generation):
    engine, core = embedder
    running = engine.generate(a_generation({"input": [[300 + number % 100] * 1000 for number in range(100)]}))
    first_event = asyncio.create_task(anext(running))
    async with asyncio.timeout(PATIENCE_S):
        while not engine.stats().running:
            await asyncio.sleep(0.001)

    core.kill()

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(EngineDeadError):
            await first_event
        with pytest.raises(EngineDeadError):
            await embed({"input": "hello"})
    await engine.stop()
