"""The table of endpoints, with one entry each.

To add an endpoint, add its path to ``Endpoint``, an entry with the model of its request to ``ENDPOINTS``, and
a function to each engine that answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from inferfleet.schemas.openai_embeddings import (
    EmbeddingOfInput,
    EmbeddingOfMessages,
    EmbeddingRequest,
)
from inferfleet.schemas.openai_requests import (
    AnyChat,
    AnyCompletion,
    ChatCompletionRequest,
    CompletionRequest,
)
from inferfleet.schemas.scoring_requests import (
    SPELLINGS,
    RerankRequest,
    ScoreOfData,
    ScoreOfDocuments,
    ScoreOfItems,
    ScoreOfTexts,
    ScoreRequest,
)

if TYPE_CHECKING:
    from inferfleet.schemas.said import Said


class Endpoint(StrEnum):
    """The endpoint whose request body a job carries: OpenAI's, and two of vLLM's own."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"

    @classmethod
    def _missing_(cls, value: object) -> Endpoint | None:
        """Find the endpoint that vLLM also serves at another path."""
        return next((each for each, spec in ENDPOINTS.items() if value in spec.other_paths), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedAnswer:
    """The response of an endpoint that generates text: its ``object``, its id, and its choices.

    ``chunk_object`` is the ``object`` of the chunks of its stream.
    ``choice`` makes the endpoint's fields of a choice from what was said. ``text`` reads the text of such a
    choice, and finds none in the choices of other endpoints.
    """

    object: str
    chunk_object: str
    id_prefix: str
    choice: Callable[[Said], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class EndpointSpec:
    """What an endpoint is.

    ``body`` is the type of its request, whose JSON Schema is published as ``schema``. ``fields`` are the
    known members of a body, ``texts`` those with the caller's words, which no error may quote. ``ask`` makes
    the body for one prompt; it is ``None`` where a prompt alone is not a request. ``generated`` is ``None``
    where an answer comes in one piece and so cannot be streamed, resumed or cut short. ``sessions`` says
    whether a session may have such turns. ``model`` describes the kind of model that answers. ``example`` is
    a small body. ``other_paths`` are vLLM's other paths of the same endpoint.
    """

    body: Any
    schema: str
    fields: frozenset[str]
    texts: tuple[str, ...]
    model: str
    example: Mapping[str, Any]
    ask: Callable[[str], dict[str, Any]] | None = None
    generated: GeneratedAnswer | None = None
    sessions: bool = False
    other_paths: tuple[str, ...] = ()

    @cached_property
    def request(self) -> TypeAdapter[Any]:
        """The validator of a body. Built at the first use, because it takes about 40 ms and megabytes."""
        return TypeAdapter(self.body)


_GENERATOR: Final = "a model that generates text"
_SCORER: Final = "a reranker (a classifier with one label) or an embedding model"


def _fields(*bodies: type) -> frozenset[str]:
    return frozenset(name for body in bodies for name in body.__annotations__)


def _content(choice: Mapping[str, Any]) -> str:
    message: Mapping[str, Any] = choice.get("message") or {}
    return message.get("content") or ""


ENDPOINTS: Final[Mapping[Endpoint, EndpointSpec]] = {
    Endpoint.CHAT: EndpointSpec(
        body=ChatCompletionRequest,
        schema="chatCompletionRequest",
        fields=_fields(AnyChat),
        texts=("messages",),
        model=_GENERATOR,
        example={"messages": [{"role": "user", "content": "hello"}]},
        ask=lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
        generated=GeneratedAnswer(
            object="chat.completion",
            chunk_object="chat.completion.chunk",
            id_prefix="chatcmpl",
            choice=lambda said: {"message": said.message()},
            text=_content,
        ),
        sessions=True,
    ),
    Endpoint.COMPLETIONS: EndpointSpec(
        body=CompletionRequest,
        schema="completionRequest",
        fields=_fields(AnyCompletion),
        texts=("prompt",),
        model=_GENERATOR,
        example={"prompt": "hello"},
        ask=lambda prompt: {"prompt": prompt},
        generated=GeneratedAnswer(
            object="text_completion",
            chunk_object="text_completion",
            id_prefix="cmpl",
            choice=lambda said: {"text": said.text},
            text=lambda choice: choice.get("text") or "",
        ),
    ),
    Endpoint.EMBEDDINGS: EndpointSpec(
        body=EmbeddingRequest,
        schema="embeddingRequest",
        fields=_fields(EmbeddingOfInput, EmbeddingOfMessages),
        texts=("input", "messages"),
        model="an embedding model",
        example={"input": "hello"},
        ask=lambda prompt: {"input": prompt},
    ),
    Endpoint.RERANK: EndpointSpec(
        body=RerankRequest,
        schema="rerankRequest",
        fields=_fields(RerankRequest),
        texts=("query", "documents", "instruction"),
        model=_SCORER,
        example={"query": "hello", "documents": ["one", "two"]},
        other_paths=("/rerank", "/v2/rerank"),
    ),
    Endpoint.SCORE: EndpointSpec(
        body=ScoreRequest,
        schema="scoreRequest",
        fields=_fields(ScoreOfDocuments, ScoreOfItems, ScoreOfData, ScoreOfTexts),
        texts=(*dict.fromkeys(side for pair in SPELLINGS for side in pair), "instruction"),
        model=_SCORER,
        example={"queries": "hello", "documents": ["one", "two"]},
        other_paths=("/score",),
    ),
}


def text_of_response(response: Mapping[str, Any]) -> str:
    """Return the text of the first choice of any endpoint's response; empty if there is none."""
    for choice in (response.get("choices") or ())[:1]:
        for spec in ENDPOINTS.values():
            if spec.generated is not None and (text := spec.generated.text(choice)):
                return text
    return ""


def session_problem(endpoint: Endpoint) -> str | None:
    """Say why this job cannot be a turn of a session; ``None`` if it can."""
    if ENDPOINTS[endpoint].sessions:
        return None
    having = " and ".join(each for each, spec in ENDPOINTS.items() if spec.sessions)
    return f"session_id: only {having} has sessions, not {endpoint}"


def not_answered(endpoint: Endpoint, *, model: str, answers: Collection[Endpoint]) -> str:
    """Say why a worker cannot answer a request, and what to do about it."""
    offered = ", ".join(each for each in Endpoint if each in answers)
    return (
        f"endpoint: {endpoint} needs {ENDPOINTS[endpoint].model}, and the model {model!r} answers only "
        f"{offered}; submit the job to a pool whose workers serve such a model"
    )
