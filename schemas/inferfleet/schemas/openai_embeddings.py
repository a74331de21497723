"""The body of ``/v1/embeddings``: OpenAI's text and tokens, or conversations, which are vLLM's extension."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Strict, Tag, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from inferfleet.schemas.openai_fields import (
    BODY_CONFIG,
    TEXT_OR_TOKENS,
    CacheSalt,
    NonEmpty,
    Signed64,
    Tokens,
    TruncatedTo,
)
from inferfleet.schemas.openai_messages import Flag, Message, Whole
from inferfleet.schemas.problems import disagreement

Inputs: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")]
    | Annotated[list[NonEmpty], Field(min_length=1), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1), Tag("token lists")],
    TEXT_OR_TOKENS,
]
"""The inputs to embed."""

Conversation: TypeAlias = Annotated[list[Message], Field(min_length=1), Strict()]


def _one_or_several(value: Any) -> str:
    match value:
        case [list(), *_]:
            return "several"
        case _:
            return "one"


Conversations: TypeAlias = Annotated[
    Annotated[Conversation, Tag("one")] | Annotated[list[Conversation], Tag("several")],
    Discriminator(_one_or_several),
]


def _removed(_: object) -> None:
    raise PydanticCustomError("removed", "vLLM no longer has it; use use_activation")


class EmbeddingOptions(TypedDict, total=False):
    """The fields that all requests for embeddings share."""

    model: str | None
    dimensions: Annotated[Whole, Field(ge=1)] | None
    encoding_format: Literal["float", "base64"]
    user: str | None

    # vLLM's extensions.
    add_special_tokens: Flag
    cache_salt: CacheSalt | None
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
    endianness: Literal["native", "big", "little"]
    # vLLM checks this before it knows that there are no media.
    media_io_kwargs: Annotated[dict[str, dict[str, Any]] | None, BeforeValidator(lambda value: value or None)]
    mm_processor_kwargs: dict[str, Any] | None
    normalize: Annotated[Any, BeforeValidator(_removed)]
    padding: Literal["max_length", "do_not_pad"] | None
    priority: Signed64
    request_id: str
    truncate_prompt_tokens: TruncatedTo | None
    truncation_side: Literal["left", "right"] | None
    use_activation: Flag | None


@with_config(BODY_CONFIG)
class EmbeddingOfInput(EmbeddingOptions, total=False):
    """The body of ``/v1/embeddings``."""

    input: Required[Inputs]


class EmbeddingOfChat(EmbeddingOptions, total=False):
    """One conversation or several to embed: vLLM's extension."""

    add_generation_prompt: Flag
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None
    continue_final_message: Flag


@with_config(BODY_CONFIG)
class EmbeddingOfMessages(EmbeddingOfChat, total=False):
    """The body of ``/v1/embeddings`` with ``messages``, as a chat has them."""

    messages: Required[Conversations]


@with_config(BODY_CONFIG)
class EmbeddingOfMessagesInput(EmbeddingOfChat, total=False):
    """The body of ``/v1/embeddings`` with messages as its input."""

    input: Required[Conversations]


def _kind_of_embedding(body: Any) -> str:
    match body:
        case {"input": [dict(), *_] | [[dict(), *_], *_]}:
            return "with messages as input"
        case {"messages": _} if "input" not in body:
            return "with messages"
        case _:
            return "with input"


def _embedding_agrees(embedding: EmbeddingOfChat) -> EmbeddingOfChat:
    if embedding.get("continue_final_message") and embedding.get("add_generation_prompt"):
        raise disagreement("continue_final_message", "needs add_generation_prompt: false beside it")
    return embedding


EmbeddingRequest: TypeAlias = Annotated[
    Annotated[EmbeddingOfInput, Tag("with input")]
    | Annotated[EmbeddingOfMessages, AfterValidator(_embedding_agrees), Tag("with messages")]
    | Annotated[EmbeddingOfMessagesInput, AfterValidator(_embedding_agrees), Tag("with messages as input")],
    Discriminator(_kind_of_embedding),
]
