"""Fields that several kinds of request bodies share: ids, prompts, salts. Their bounds are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, cast

from pydantic import AfterValidator, ConfigDict, Discriminator, Field
from pydantic_core import PydanticCustomError

from inferfleet.schemas.openai_messages import Whole
from inferfleet.schemas.problems import WRONG_SHAPE

BODY_CONFIG = ConfigDict(hide_input_in_errors=True)

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

NonEmpty: TypeAlias = Annotated[str, Field(min_length=1)]
TokenId: TypeAlias = Annotated[Whole, Field(ge=0)]
Signed64: TypeAlias = Annotated[Whole, Field(ge=INT64_MIN, le=INT64_MAX)]


def _branch_of_list(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = next(iter(cast("list[object]", value)), "")
    return "texts" if isinstance(first, str) else "token lists" if isinstance(first, list) else "tokens"


TEXT_OR_TOKENS = Discriminator(
    _branch_of_list,
    custom_error_type=WRONG_SHAPE,
    custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
)

Tokens: TypeAlias = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _plain(salt: str) -> str:
    if not _FORBIDDEN_IN_SALTS.isdisjoint(salt):
        raise PydanticCustomError("salt", "must not contain '@', '/', a backslash or NUL")
    return salt


_FORBIDDEN_IN_SALTS = frozenset("@/\\\0")
CacheSalt: TypeAlias = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]


def _leaves_a_token(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("empty_prompt", "0 leaves nothing of the prompt; omit the field")
    return tokens


TruncatedTo: TypeAlias = Annotated[Whole, Field(ge=-1, le=INT64_MAX), AfterValidator(_leaves_a_token)]
"""The number of tokens to which a prompt is cut; -1 stands for the context's length."""
