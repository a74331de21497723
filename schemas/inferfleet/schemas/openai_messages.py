"""The messages of a chat, by role, as OpenAI's API reference has them.

These models judge and are thrown away: nothing is read from them, and fields they don't know pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from inferfleet.schemas.problems import WRONG_SHAPE


class OpenAIModel(BaseModel):
    """Strict about the types of known fields, silent about unknown ones and about what it was given."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


NonEmpty: TypeAlias = Annotated[str, Field(min_length=1)]


def known_type(*types: str) -> Discriminator:
    """Choose the branch of a union by the field ``type``; the branch of every other type is ``other``."""

    def branch(value: Any) -> str:
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return fields["type"] if fields.get("type") in types else "other"

    return Discriminator(branch)


def other_type(*types: str) -> Any:
    """Describe the field ``type`` of what is none of the known types: it is the engine's to judge."""
    return Field(min_length=1, json_schema_extra={"not": {"enum": list(types)}})


def text_or_list(wanted: str) -> Discriminator:
    """Choose between the branches ``text`` and ``list``; ``wanted`` completes "must be …"."""

    def branch(value: Any) -> str | None:
        return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None

    return Discriminator(branch, custom_error_type=WRONG_SHAPE, custom_error_message=f"must be {wanted}")


class TextPart(OpenAIModel):
    """Text as one part of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(OpenAIModel):
    """Where an image is: an address, or the image itself as a data URL."""

    url: NonEmpty
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(OpenAIModel):
    """An image as one part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(OpenAIModel):
    """Sound, base64-encoded."""

    data: NonEmpty
    format: Literal["wav", "mp3"]


class AudioPart(OpenAIModel):
    """Sound as one part of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


_PARTS = ("text", "image_url", "input_audio")


class OtherPart(OpenAIModel):
    """A part that only some engines know, such as vLLM's ``video_url``."""

    type: Annotated[str, other_type(*_PARTS)]


Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("image_url")]
    | Annotated[AudioPart, Tag("input_audio")]
    | Annotated[OtherPart, Tag("other")],
    known_type(*_PARTS),
]

Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")],
    text_or_list("a string or a list of content parts"),
]


def _says_something(parts: list[Part]) -> list[Part]:
    if all(isinstance(part, TextPart) and not part.text for part in parts):
        raise PydanticCustomError("empty_prompt", "is empty; all its parts are empty text")
    return parts


Prompt: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")]
    | Annotated[list[Part], Field(min_length=1), AfterValidator(_says_something), Tag("list")],
    text_or_list("a string or a list of content parts"),
]
"""What a user says. Unlike other messages it cannot be empty."""


class SystemMessage(OpenAIModel):
    """Instructions to the model."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(OpenAIModel):
    """What the user says."""

    role: Literal["user"]
    content: Prompt
    name: str | None = None


class FunctionCall(OpenAIModel):
    """The model's call of a function. ``arguments`` is JSON in a string."""

    name: NonEmpty
    arguments: str


class FunctionToolCall(OpenAIModel):
    """The model's call of a function tool."""

    id: NonEmpty
    type: Literal["function"]
    function: FunctionCall


class OtherToolCall(OpenAIModel):
    """A call of another kind of tool."""

    type: Annotated[str, other_type("function")]


ToolCall: TypeAlias = Annotated[
    Annotated[FunctionToolCall, Tag("function")] | Annotated[OtherToolCall, Tag("other")],
    known_type("function"),
]


class AssistantMessage(OpenAIModel):
    """What the model said earlier: content, calls of tools, or an extension such as ``reasoning``."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and not self.model_extra:
            raise PydanticCustomError("empty_message", "an assistant message needs content or tool_calls")
        return self


class ToolMessage(OpenAIModel):
    """The answer of a tool to a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: NonEmpty


class FunctionMessage(OpenAIModel):
    """The answer of a function. Deprecated by OpenAI in favour of ``tool``."""

    role: Literal["function"]
    name: NonEmpty
    content: Content | None


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
