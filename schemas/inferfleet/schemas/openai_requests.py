"""The three OpenAI request bodies.

Types and bounds are those of OpenAI's API description (``openapi.yaml`` in openai/openai-openapi). Where
vLLM 0.32 takes more than OpenAI, so do we, and where it takes less than OpenAI's own words allow, we
refuse at once what would fail later; both are said at the field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from inferfleet.schemas.openai_messages import (
    Message,
    NonEmpty,
    OpenAIModel,
    known_type,
    other_type,
    text_or_list,
)
from inferfleet.schemas.problems import WRONG_SHAPE

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

TokenId: TypeAlias = Annotated[int, Field(ge=0)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
TokenLimit: TypeAlias = Annotated[int, Field(ge=1)]


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

Inputs: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")]
    | Annotated[list[NonEmpty], Field(min_length=1, max_length=2048), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=2048), Tag("token lists")],
    TEXT_OR_TOKENS,
]
"""One prompt or several. OpenAI's limit of 2,048 is for the inputs of one embeddings request."""

Stop: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")] | Annotated[list[NonEmpty], Tag("list")],
    text_or_list("a string or a list of strings"),
]
"""OpenAI allows four; vLLM's engine any number, and so do we. vLLM refuses empty ones."""


class StreamOptions(OpenAIModel):
    """Options of a stream. Accepted and ignored: every job can be followed through its journal."""

    include_usage: bool | None = None


class JsonSchemaFormat(OpenAIModel):
    """The JSON Schema that the answer has to follow."""

    name: NonEmpty
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(OpenAIModel):
    """The format of the answer. ``structural_tag`` is vLLM's own."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("no_json_schema", "the type 'json_schema' needs the field json_schema")
        return self


class GenerationRequest(OpenAIModel):
    """What chats and completions share. ``stream`` is accepted and ignored: the journal streams."""

    model: str | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]+$")], Bias] | None = None
    max_tokens: TokenLimit | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    presence_penalty: Penalty | None = None
    response_format: ResponseFormat | None = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    # OpenAI's range begins at 0, which vLLM refuses: no token would be left to choose from.
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: str | None = None


class FunctionDefinition(OpenAIModel):
    """A function the model may call. OpenAI limits the spelling of names; vLLM doesn't, nor do we."""

    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(OpenAIModel):
    """A tool that is a function."""

    type: Literal["function"]
    function: FunctionDefinition


class OtherTool(OpenAIModel):
    """A tool of another kind, such as OpenAI's ``custom``."""

    type: Annotated[str, other_type("function")]


Tool: TypeAlias = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")], known_type("function")
]


class FunctionName(OpenAIModel):
    """Names a function."""

    name: NonEmpty


class NamedToolChoice(OpenAIModel):
    """Makes the model call this function."""

    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    if not isinstance(value, dict):
        return None
    return "function" if cast("dict[str, Any]", value).get("type") == "function" else "other"


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedToolChoice, Tag("function")]
    | Annotated[OtherTool, Tag("other")],
    Discriminator(
        _kind_of_choice,
        custom_error_type=WRONG_SHAPE,
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


class ChatCompletionRequest(GenerationRequest):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: TokenLimit | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: ToolChoice | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _wants_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and "logprobs" in info.data and not info.data["logprobs"]:
            raise PydanticCustomError(
                "needs_logprobs", "{value} needs logprobs: true beside it", {"value": value}
            )
        return value

    @field_validator("tool_choice")
    @classmethod
    def _wants_tools(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        if choice is None or choice == "none" or "tools" not in info.data:
            return choice
        tools: list[Tool] | None = info.data["tools"]
        if tools is None:
            raise PydanticCustomError("needs_tools", "needs tools beside it")
        if isinstance(choice, NamedToolChoice):
            names = {tool.function.name for tool in tools if isinstance(tool, FunctionTool)}
            if choice.function.name not in names:
                raise PydanticCustomError("unknown_tool", "names a function that is not among the tools")
        return choice


class CompletionRequest(GenerationRequest):
    """The body of ``/v1/completions``."""

    prompt: Inputs
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    # OpenAI stops at 5, vLLM (max_logprobs) at 20.
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None

    @field_validator("best_of")
    @classmethod
    def _at_least_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        n: int | None = info.data.get("n")
        if value is not None and n is not None and value < n:
            raise PydanticCustomError(
                "best_of_below_n", "{value} is below n, which is {n}", {"value": value, "n": n}
            )
        return value


class EmbeddingRequest(OpenAIModel):
    """The body of ``/v1/embeddings``."""

    input: Inputs
    model: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
