"""Request bodies of many shapes, each to be answered, or refused, as vLLM's own server does it.

A body that is refused is here because one of the two might take it. Bodies whose answers are compared are
greedy or seeded, and short.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.engine.shapes.chats import CHATS, CONVERSATIONS
from tests.engine.shapes.generating import COMPLETIONS, GENERATING
from tests.engine.shapes.parts import HELLO
from tests.engine.shapes.pooling import (
    BY_EMBEDDINGS,
    CHAT_EMBEDDINGS,
    EMBEDDINGS,
    RERANKS,
    SCORES,
    SCORING,
    SPELT,
)

from inferfleet.schemas import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request body, with a name that says what is special about it.

    ``model`` is the kind of model that it is for: one that generates, one that embeds, or one that ranks.
    """

    name: str
    endpoint: Endpoint
    body: dict[str, Any]
    model: str


def all_shapes() -> list[Shape]:
    """Make every body of the tables beside, each with its endpoint and a name of its own."""
    chats = {
        **GENERATING,
        **CHATS,
        **{f"messages {name}": {"messages": messages} for name, messages in CONVERSATIONS.items()},
    }
    completions = GENERATING | COMPLETIONS
    reranks, scores = SCORING | RERANKS, SCORING | SCORES
    return [
        *(_shape("chat", Endpoint.CHAT, name, CHAT | fields) for name, fields in chats.items()),
        *(
            _shape("completion", Endpoint.COMPLETIONS, name, COMPLETION | fields)
            for name, fields in completions.items()
        ),
        *(
            _shape("embedding", Endpoint.EMBEDDINGS, name, EMBEDDING | fields)
            for name, fields in EMBEDDINGS.items()
        ),
        *(_shape("embedding", Endpoint.EMBEDDINGS, name, fields) for name, fields in CHAT_EMBEDDINGS.items()),
        *(_shape("rerank", Endpoint.RERANK, name, RERANK | fields) for name, fields in reranks.items()),
        *(_shape("score", Endpoint.SCORE, name, SCORE | fields) for name, fields in scores.items()),
        *(_shape("score", Endpoint.SCORE, f"spelt {name}", body) for name, body in SPELT.items()),
        *(
            _shape(f"{kind} by embeddings", endpoint, name, body | fields[name], model="embeds")
            for kind, endpoint, body, fields in (
                ("rerank", Endpoint.RERANK, RERANK, reranks),
                ("score", Endpoint.SCORE, SCORE, scores),
            )
            for name in BY_EMBEDDINGS
            if name in fields
        ),
    ]


CHAT: Final[dict[str, Any]] = {"messages": HELLO, "max_tokens": 12, "temperature": 0}
COMPLETION: Final[dict[str, Any]] = {"prompt": "one word of", "max_tokens": 12, "temperature": 0}
EMBEDDING: Final[dict[str, Any]] = {"input": "one word"}
DOCUMENTS: Final = ["one word of the sea", "call the people", "oil"]
RERANK: Final[dict[str, Any]] = {"query": "the water", "documents": DOCUMENTS}
SCORE: Final[dict[str, Any]] = {"queries": "the water", "documents": DOCUMENTS}

MODELS: Final = {
    Endpoint.CHAT: "generates",
    Endpoint.COMPLETIONS: "generates",
    Endpoint.EMBEDDINGS: "embeds",
    Endpoint.RERANK: "ranks",
    Endpoint.SCORE: "ranks",
}
"""What a model does that answers an endpoint, if a shape does not say otherwise."""


LISTS: Final[list[Any]] = [[], [1], ["x"], [None], ["1"], [1.0], [-1], [True], [[1]], [{}]]
OBJECTS: Final[list[Any]] = [{}, {"x": 1}, {"1": 1}, {"x": "y"}, {"1": "x"}, {"x": {}}, {"x": None}]
VALUES: Final[dict[str, Any]] = {
    **{repr(value): value for value in (None, True, False, 0, 1, -1, -2, 2, 21, 1.0, 0.5, 2**63)},
    **{repr(value): value for value in ("1", "0", "-1", "1.0", "0.5", "x", "", "true", "no", "nan", " 1 ")},
    **{repr(value): value for value in LISTS},
    **{repr(value): value for value in OBJECTS},
}


def sweep(fields: Mapping[Endpoint, Collection[str]], *, but: Collection[str]) -> list[Shape]:
    """Make a body for each value in each field of each endpoint, for the shortest answer there is."""
    bodies = {
        Endpoint.CHAT: CHAT | {"max_tokens": 1},
        Endpoint.COMPLETIONS: COMPLETION | {"max_tokens": 1},
        Endpoint.EMBEDDINGS: EMBEDDING,
        Endpoint.RERANK: RERANK,
        Endpoint.SCORE: SCORE,
    }
    return [
        _shape(f"{endpoint} {field}", endpoint, name, bodies[endpoint] | {field: value})
        for endpoint, names in fields.items()
        for field in sorted(set(names) - set(but))
        for name, value in VALUES.items()
    ]


def _shape(
    kind: str, endpoint: Endpoint, name: str, body: dict[str, Any], *, model: str | None = None
) -> Shape:
    return Shape(name=f"{kind}: {name}", endpoint=endpoint, body=body, model=model or MODELS[endpoint])
