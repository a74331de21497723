"""The messages of a chat, as vLLM takes them.

vLLM takes what OpenAI's API reference allows, and more: roles of a model's own, and messages that say
nothing. These models judge and are thrown away: nothing is read from them, and fields they don't know pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Strict, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Required, TypedDict

from inferfleet.schemas.problems import WRONG_SHAPE


@dataclass(frozen=True, slots=True)
class AlsoAs:
    """Says in the published JSON Schema that a value may be spelt as another type too."""

    types: tuple[str, ...]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        return schema | {"type": [schema["type"], *self.types]}


Whole: TypeAlias = Annotated[int, AlsoAs(("string", "boolean"))]
Number: TypeAlias = Annotated[float, AlsoAs(("string", "boolean")), Field(allow_inf_nan=False)]
Flag: TypeAlias = Annotated[bool, AlsoAs(("string", "number"))]
"""Scalars that may be spelt in other ways, as vLLM reads them: ``12.0`` and ``"12"`` are whole numbers."""


def known_type(*types: str) -> Discriminator:
    """Choose the branch of a union by the field ``type``; the branch of every other type is ``other``."""

    def branch(value: Any) -> str:
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return fields["type"] if fields.get("type") in types else "other"

    return Discriminator(branch)


def other_type(*types: str) -> Any:
    """Describe the field ``type`` of what is none of the known types: it is the engine's to judge."""
    return Field(json_schema_extra={"not": {"enum": list(types)}})


def text_or_list(wanted: str) -> Discriminator:
    """Choose between the branches ``text`` and ``list``; ``wanted`` completes "must be …"."""

    def branch(value: Any) -> str | None:
        return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None

    return Discriminator(branch, custom_error_type=WRONG_SHAPE, custom_error_message=f"must be {wanted}")


class TextPart(TypedDict, total=False):
    """Text as one part of a message."""

    type: Required[Literal["text"]]
    text: Required[str]


class ImageUrl(TypedDict, total=False):
    """Where an image is: an address, or the image itself as a data URL."""

    url: Required[str]
    detail: Literal["auto", "low", "high", "original"] | None


class ImagePart(TypedDict, total=False):
    """An image as one part of a message."""

    type: Required[Literal["image_url"]]
    image_url: Required[ImageUrl]


class InputAudio(TypedDict, total=False):
    """Sound, base64-encoded."""

    data: Required[str]
    format: Required[Literal["wav", "mp3"]]


class AudioPart(TypedDict, total=False):
    """Sound as one part of a message."""

    type: Required[Literal["input_audio"]]
    input_audio: Required[InputAudio]


_PARTS = ("text", "image_url", "input_audio")


class OtherPart(TypedDict, total=False):
    """A part that only some engines know, such as vLLM's ``video_url``."""

    type: Required[Annotated[str, other_type(*_PARTS)]]


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


class FunctionCall(TypedDict, total=False):
    """The model's call of a function. ``arguments`` is JSON in a string."""

    name: Required[str]
    arguments: Required[str]


class ToolCall(TypedDict, total=False):
    """The model's call of a function tool."""

    id: Required[str]
    type: Required[Literal["function"]]
    function: Required[FunctionCall]


class PromptMessage(TypedDict, total=False):
    """What a user or system says. Empty, or nothing at all, is a chat template's to judge."""

    role: Required[Literal["user", "system", "developer"]]
    content: Content
    name: str


class AssistantMessage(TypedDict, total=False):
    """What the model said earlier: content, calls of tools, or an extension such as ``reasoning``."""

    role: Required[Literal["assistant"]]
    content: Content | None
    name: str
    tool_calls: Annotated[list[ToolCall], Strict()] | None


class FunctionMessage(TypedDict, total=False):
    """The answer of a function. Deprecated by OpenAI in favour of ``tool``."""

    role: Required[Literal["function"]]
    content: Content | None
    name: str


class OtherMessage(TypedDict, total=False):
    """The answer of a tool, or what somebody in a role of the model's own says."""

    role: Required[Annotated[str, other_type("user", "system", "developer", "assistant", "function")]]
    content: Content
    name: str
    reasoning: str | None
    tool_call_id: str | None
    tool_calls: Annotated[list[ToolCall], Strict()] | None


_KINDS = {
    "user": "prompt",
    "system": "prompt",
    "developer": "prompt",
    "assistant": "assistant",
    "function": "function",
}


def _kind_of_message(message: Any) -> str:
    role = cast("dict[str, Any]", message).get("role") if isinstance(message, dict) else None
    return _KINDS.get(role, "other") if isinstance(role, str) else "other"


Message: TypeAlias = Annotated[
    Annotated[PromptMessage, Tag("prompt")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[FunctionMessage, Tag("function")]
    | Annotated[OtherMessage, Tag("other")],
    Discriminator(_kind_of_message),
]
