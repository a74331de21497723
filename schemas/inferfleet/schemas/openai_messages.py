"""The messages of a chat, as vLLM accepts them.

vLLM accepts what OpenAI's API reference allows, and more: roles that only one model knows, and empty
messages. These models only validate: nothing reads their fields afterwards, and unknown fields pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Required, TypeAlias, cast

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Strict, Tag, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from inferfleet.schemas.problems import WRONG_SHAPE


@dataclass(frozen=True, slots=True)
class AlsoAs:
    """Adds to the published JSON Schema that a value may also have other types."""

    types: tuple[str, ...]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        return schema | {"type": [schema["type"], *self.types]}


Whole: TypeAlias = Annotated[int, AlsoAs(("string", "boolean"))]
Number: TypeAlias = Annotated[float, AlsoAs(("string", "boolean")), Field(allow_inf_nan=False)]
Flag: TypeAlias = Annotated[bool, AlsoAs(("string", "number"))]
"""Scalars that may have other types, as vLLM reads them: ``12.0`` and ``"12"`` are integers."""


_flag: TypeAdapter[bool] = TypeAdapter(bool)


def is_set(flag: Any) -> bool:
    """Return whether a flag of a checked body is set, whatever its type: ``"false"`` and ``0`` are not."""
    return flag is not None and _flag.validate_python(flag)


def known_type(*types: str) -> Discriminator:
    """Choose the branch of a union by the field ``type``; the branch of every other type is ``other``."""

    def branch(value: Any) -> str:
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return fields["type"] if fields.get("type") in types else "other"

    return Discriminator(branch)


def other_type(*types: str) -> Any:
    """Describe the field ``type`` of an unknown type: the engine accepts or refuses it."""
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
    """The URL of an image, or the image itself as a data URL."""

    url: Required[str]
    detail: Literal["auto", "low", "high", "original"]


class ImagePart(TypedDict, total=False):
    """An image as one part of a message."""

    type: Required[Literal["image_url"]]
    image_url: Required[ImageUrl]


class InputAudio(TypedDict, total=False):
    """Audio, base64-encoded."""

    data: Required[str]
    format: Required[Literal["wav", "mp3"]]


class AudioPart(TypedDict, total=False):
    """Audio as one part of a message."""

    type: Required[Literal["input_audio"]]
    input_audio: Required[InputAudio]


class RefusalPart(TypedDict, total=False):
    """The model's refusal as one part of a message."""

    type: Required[Literal["refusal"]]
    refusal: Required[str]


class ThinkingPart(TypedDict, total=False):
    """The model's reasoning as one part of a message: vLLM's extension."""

    type: Required[Literal["thinking"]]
    thinking: Required[str]


class MediaUrl(TypedDict, total=False):
    """The URL of audio or a video."""

    url: Required[str]


class AudioUrlPart(TypedDict, total=False):
    """Audio as one part of a message, in vLLM's form."""

    type: Required[Literal["audio_url"]]
    audio_url: Required[MediaUrl]


class VideoUrlPart(TypedDict, total=False):
    """A video as one part of a message: vLLM's extension."""

    type: Required[Literal["video_url"]]
    video_url: Required[MediaUrl]


_OtherKind: TypeAlias = Literal[
    "audio_embeds",
    "image_embeds",
    "image_pil",
    "input_image",
    "prompt_embeds",
    "tool_reference",
    "video_embeds",
]


class OtherPart(TypedDict, total=False):
    """A part of another kind that vLLM knows. The model accepts or refuses its content."""

    type: Required[_OtherKind]


class LoosePart(TypedDict, total=False):
    """A text part, in any of the forms that vLLM reads in a message with an unknown role."""

    type: Required[Literal["text", "input_text", "output_text", "refusal", "thinking"] | _OtherKind]
    text: str | None


_PARTS = ("text", "image_url", "input_audio", "refusal", "thinking", "audio_url", "video_url")

Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("image_url")]
    | Annotated[AudioPart, Tag("input_audio")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ThinkingPart, Tag("thinking")]
    | Annotated[AudioUrlPart, Tag("audio_url")]
    | Annotated[VideoUrlPart, Tag("video_url")]
    | Annotated[OtherPart, Tag("other")],
    known_type(*_PARTS),
]

Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")],
    text_or_list("a string or a list of content parts"),
]

_MEDIA = ("image_url", "input_audio", "audio_url", "video_url")


def _kind_of_loose_part(part: Any) -> str:
    kind = cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else None
    return "string" if isinstance(part, str) else kind if kind in _MEDIA else "other"


LooseContent: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[
        list[
            Annotated[
                Annotated[str, Tag("string")]
                | Annotated[ImagePart, Tag("image_url")]
                | Annotated[AudioPart, Tag("input_audio")]
                | Annotated[AudioUrlPart, Tag("audio_url")]
                | Annotated[VideoUrlPart, Tag("video_url")]
                | Annotated[LoosePart, Tag("other")],
                Discriminator(_kind_of_loose_part),
            ]
        ],
        Tag("list"),
    ],
    text_or_list("a string or a list of content parts"),
]


class FunctionCall(TypedDict, total=False):
    """The model's call of a function. ``arguments`` is JSON in a string."""

    name: Required[str]
    arguments: Required[str]


class Audio(TypedDict, total=False):
    """Audio that the model generated earlier."""

    id: Required[str]


class ToolCall(TypedDict, total=False):
    """The model's call of a function tool."""

    id: Required[str]
    type: Required[Literal["function"]]
    function: Required[FunctionCall]


class PromptMessage(TypedDict, total=False):
    """A user's or system's message. The chat template accepts or refuses an empty one."""

    role: Required[Literal["user", "system", "developer"]]
    content: Content
    name: str


class AssistantMessage(TypedDict, total=False):
    """An earlier message of the model, with its tool calls."""

    role: Required[Literal["assistant"]]
    content: Content
    name: str
    tool_calls: Annotated[list[ToolCall], Strict()] | None


class SilentMessage(TypedDict, total=False):
    """An earlier message of the model without content. vLLM accepts no null for its tool calls."""

    role: Required[Literal["assistant"]]
    content: Required[None]
    audio: Audio | None
    function_call: FunctionCall | None
    name: str
    refusal: str | None
    tool_calls: Annotated[list[ToolCall], Strict()]


class CustomFields(TypedDict, total=False):
    """The fields that vLLM knows in messages with an unknown role."""

    name: str
    reasoning: str | None
    task: str | None
    tool_call_id: str | None
    tool_calls: Annotated[list[ToolCall], Strict()] | None
    tools: list[dict[str, Any]] | None


class FunctionMessage(CustomFields, total=False):
    """The result of a function. OpenAI has deprecated it in favour of ``tool``."""

    role: Required[Literal["function"]]
    content: LooseContent


class SilentFunctionMessage(TypedDict, total=False):
    """The empty result of a function."""

    role: Required[Literal["function"]]
    content: Required[None]
    name: Required[str]


class ToolMessage(TypedDict, total=False):
    """The result of a tool call."""

    role: Required[Literal["tool"]]
    content: Content
    name: str
    tool_call_id: str | None


class OtherMessage(CustomFields, total=False):
    """A message with a role that only the model knows."""

    role: Required[Annotated[str, other_type("user", "system", "developer", "assistant", "function", "tool")]]
    content: LooseContent


_KINDS = {
    "user": "prompt",
    "system": "prompt",
    "developer": "prompt",
    "assistant": "assistant",
    "function": "function",
    "tool": "tool",
}


def _kind_of_message(value: Any) -> str:
    message = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    role = message.get("role")
    kind = _KINDS.get(role, "other") if isinstance(role, str) else "other"
    silent = kind in {"assistant", "function"} and message.get("content", "") is None
    return f"silent {kind}" if silent else kind


Message: TypeAlias = Annotated[
    Annotated[PromptMessage, Tag("prompt")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[SilentMessage, Tag("silent assistant")]
    | Annotated[FunctionMessage, Tag("function")]
    | Annotated[SilentFunctionMessage, Tag("silent function")]
    | Annotated[ToolMessage, Tag("tool")]
    | Annotated[OtherMessage, Tag("other")],
    Discriminator(_kind_of_message),
]
