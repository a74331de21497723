"""The bodies of ``/v1/rerank`` and ``/v1/score``, as vLLM accepts them. OpenAI has neither endpoint.

A model compares two texts: a query with each of the documents. Inputs that are not text
(``{"content": [...]}``) pass, for models that read images; other models refuse them.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final, Literal, Required, TypeAlias, cast

from pydantic import AfterValidator, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict

from inferfleet.schemas.openai_fields import BODY_CONFIG, CacheSalt, Signed64, TruncatedTo
from inferfleet.schemas.openai_messages import Flag, ImagePart, TextPart, VideoUrlPart, Whole
from inferfleet.schemas.problems import WRONG_SHAPE, disagreement


class ImageEmbedsPart(TypedDict, total=False):
    """The embedding of an image."""

    type: Required[Literal["image_embeds"]]
    image_embeds: str | dict[str, str] | None


class Media(TypedDict):
    """A query or document with images."""

    content: list[
        Annotated[TextPart | ImagePart | ImageEmbedsPart | VideoUrlPart, Field(discriminator="type")]
    ]


def _kind_of_text(value: Any) -> str | None:
    match value:
        case str():
            return "text"
        case dict():
            return "media"
        case list():
            return "list"
        case _:
            return None


Text: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[Media, Tag("media")],
    Discriminator(
        _kind_of_text,
        custom_error_type=WRONG_SHAPE,
        custom_error_message="must be a string or an object with content parts",
    ),
]

Texts: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Media, Tag("media")]
    | Annotated[list[Text], Field(min_length=1), Tag("list")],
    Discriminator(
        _kind_of_text,
        custom_error_type=WRONG_SHAPE,
        custom_error_message="must be a string, an object with content parts or a list of these",
    ),
]


class ScoringOptions(TypedDict, total=False):
    """The fields that both endpoints share."""

    model: str | None
    user: str | None
    cache_salt: CacheSalt | None
    chat_template_kwargs: dict[str, Any] | None
    instruction: str | None
    max_tokens_per_doc: Annotated[Whole, Field(ge=0)]
    max_tokens_per_query: Annotated[Whole, Field(ge=0)]
    mm_processor_kwargs: dict[str, Any] | None
    padding: Literal["max_length", "do_not_pad"] | None
    priority: Signed64
    request_id: str
    truncate_prompt_tokens: TruncatedTo | None
    truncation_side: Literal["left", "right"] | None
    use_activation: Flag | None


@with_config(BODY_CONFIG)
class RerankRequest(ScoringOptions, total=False):
    """The body of ``/v1/rerank``. ``top_n`` limits the results; 0 is no limit."""

    query: Required[Text]
    documents: Required[Texts]
    top_n: Annotated[Whole, Field(ge=0)]


@with_config(BODY_CONFIG)
class ScoreOfDocuments(ScoringOptions, total=False):
    """The body of ``/v1/score``: one query for all documents, or one query per document."""

    queries: Required[Texts]
    documents: Required[Texts]


@with_config(BODY_CONFIG)
class ScoreOfItems(ScoringOptions, total=False):
    """The body of ``/v1/score``, in its second spelling."""

    queries: Required[Texts]
    items: Required[Texts]


@with_config(BODY_CONFIG)
class ScoreOfData(ScoringOptions, total=False):
    """The body of ``/v1/score``, in its third spelling."""

    data_1: Required[Texts]
    data_2: Required[Texts]


@with_config(BODY_CONFIG)
class ScoreOfTexts(ScoringOptions, total=False):
    """The body of ``/v1/score``, in its fourth spelling."""

    text_1: Required[Texts]
    text_2: Required[Texts]


SPELLINGS: Final = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)
"""The names of the two sides of ``/v1/score``. If a body has several pairs, the first one counts."""


def spelling_of(body: Any) -> tuple[str, str]:
    """Return the pair of names of which a body of ``/v1/score`` has both, or at least one."""
    for least in (2, 1):
        for pair in SPELLINGS:
            if sum(side in body for side in pair) >= least:
                return pair
    return SPELLINGS[0]


def _count(texts: Any) -> int:
    return len(cast("list[object]", texts)) if isinstance(texts, list) else 1


def _pairs(pair: tuple[str, str], body: Any) -> Any:
    first, second = (_count(body[side]) for side in pair)
    if first not in {1, second}:
        raise disagreement(
            pair[1],
            "has {second}, and {side} has {first}; give as many of both, or only one in {side}",
            first=first,
            second=second,
            side=pair[0],
        )
    return body


ScoreRequest: TypeAlias = Annotated[
    Annotated[ScoreOfDocuments, AfterValidator(partial(_pairs, SPELLINGS[0])), Tag("queries, documents")]
    | Annotated[ScoreOfItems, AfterValidator(partial(_pairs, SPELLINGS[1])), Tag("queries, items")]
    | Annotated[ScoreOfData, AfterValidator(partial(_pairs, SPELLINGS[2])), Tag("data_1, data_2")]
    | Annotated[ScoreOfTexts, AfterValidator(partial(_pairs, SPELLINGS[3])), Tag("text_1, text_2")],
    Discriminator(lambda body: ", ".join(spelling_of(body))),
]
