"""The body of a request to OpenAI's Responses API: the members that a queue supports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
)
from pydantic_core import PydanticCustomError

from inferfleet.schemas.openai_messages import Number, Whole
from inferfleet.schemas.problems import WRONG_SHAPE

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""What a caller may keep with a response, a conversation or a batch: OpenAI's limits."""


class _Member(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, protected_namespaces=())


def _only(*allowed: str, instead: str) -> BeforeValidator:
    """Refuse values that OpenAI supports and a queue does not, and say what to do instead."""

    def check(value: object) -> object:
        if isinstance(value, str) and value not in allowed:
            raise PydanticCustomError(
                "not_supported",
                "{value} is not supported: {instead}",
                {"value": repr(value[:64]), "instead": instead},
            )
        return value

    return BeforeValidator(check)


class ResponseTool(_Member):
    """A function that the model may call."""

    type: Annotated[
        Literal["function"],
        _only("function", instead="only functions are, which your program runs; wrap this tool in one"),
    ]
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class NamedFunction(_Member):
    """Makes the model call this function."""

    type: Annotated[
        Literal["function"],
        _only(
            "function",
            instead="name a function, or use none, auto or required; to allow fewer tools, send fewer",
        ),
    ]
    name: Annotated[str, Field(min_length=1)]


def _kind_of_choice(value: Any) -> str | None:
    return (
        "word" if isinstance(value, str) else "function" if isinstance(value, (dict, NamedFunction)) else None
    )


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[NamedFunction, Tag("function")],
    Discriminator(
        _kind_of_choice,
        custom_error_type=WRONG_SHAPE,
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


class TextFormat(_Member):
    """The form of the answer. ``json_schema`` needs a ``name`` and a ``schema``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: StrictBool | None = None


class TextOptions(_Member):
    """What the text of the answer has to be like."""

    format: TextFormat | None = None
    verbosity: Annotated[
        Literal["medium"] | None, _only("medium", instead="ask for it in the instructions")
    ] = None


class ReasoningOptions(_Member):
    """How the model reasons. What it reasons is in the answer as text, so there is no summary of it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Annotated[
        Literal["auto"] | None, _only("auto", instead="the reasoning itself is in the output")
    ] = None


class ConversationName(_Member):
    """Names a conversation. Its id alone is enough."""

    id: Annotated[str, Field(min_length=1)]


def _as_object(conversation: object) -> object:
    return {"id": conversation} if isinstance(conversation, str) else conversation


def _plain(obfuscated: bool | None) -> bool | None:
    if obfuscated:
        raise PydanticCustomError("not_supported", "is not supported: leave it out, or set it to false")
    return obfuscated


class ResponseStreamOptions(_Member):
    """Options of a stream."""

    include_obfuscation: Annotated[StrictBool | None, AfterValidator(_plain)] = None


class CreateResponse(_Member):
    """The body of ``POST /v1/responses``: the members of OpenAI's that a queue supports."""

    input: Any
    model: str | None = None
    background: StrictBool | None = None
    conversation: Annotated[ConversationName | None, BeforeValidator(_as_object)] = None
    include: (
        list[
            Literal[
                "code_interpreter_call.outputs",
                "computer_call_output.output.image_url",
                "file_search_call.results",
                "message.input_image.image_url",
                "reasoning.encrypted_content",
                "web_search_call.action.sources",
                "web_search_call.results",
            ]
        ]
        | None
    ) = None
    instructions: str | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: StrictBool | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningOptions | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    text: TextOptions | None = None
    tool_choice: ToolChoice | None = None
    tools: list[ResponseTool] | None = None
    # OpenAI's range begins at 0, which vLLM refuses.
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
