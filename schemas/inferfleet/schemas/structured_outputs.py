"""The required form of an answer: OpenAI's ``response_format`` and vLLM's ``structured_outputs``.

Only the engine can say whether a schema or grammar compiles.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Required, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from inferfleet.schemas.openai_messages import Flag
from inferfleet.schemas.problems import disagreement


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "is blank")
    return text


NotBlank: TypeAlias = Annotated[str, AfterValidator(_not_blank)]


class JsonSchemaFormat(TypedDict, total=False):
    """The JSON Schema that the answer has to follow."""

    name: Required[str]
    description: str | None
    schema: dict[str, Any] | None
    strict: Flag | None


class TagStructure(TypedDict, total=False):
    """One tag, and the schema of its content."""

    begin: Required[str]
    schema: dict[str, Any] | None
    end: Required[str]


class AnyResponseFormat(TypedDict, total=False):
    """The format of the answer. ``structural_tag`` is vLLM's extension, in one of two forms."""

    type: Required[Literal["text", "json_object", "json_schema", "structural_tag"]]
    json_schema: JsonSchemaFormat | None
    structures: list[TagStructure]
    triggers: list[str]
    format: Any


def _has_its_schema(wanted: AnyResponseFormat) -> AnyResponseFormat:
    match wanted:
        case {"type": "json_schema", "json_schema": {"schema": dict()}}:
            return wanted
        case {"type": "json_schema", "json_schema": {}}:
            raise disagreement("json_schema.schema", "is missing")
        case {"type": "json_schema"}:
            raise PydanticCustomError("no_json_schema", "the type 'json_schema' needs the field json_schema")
        case {"type": "structural_tag"} if "format" not in wanted and not (
            wanted.get("structures") and wanted.get("triggers")
        ):
            raise PydanticCustomError(
                "no_structure", "the type 'structural_tag' needs a format, or structures and triggers"
            )
        case _:
            return wanted


ResponseFormat: TypeAlias = Annotated[AnyResponseFormat, AfterValidator(_has_its_schema)]


class AnyStructuredOutputs(TypedDict, total=False):
    """vLLM's own constraints for an answer. A request may have only one kind."""

    json: NotBlank | dict[str, Any] | None
    regex: str | None
    choice: Annotated[list[str], Field(min_length=1)] | None
    grammar: NotBlank | None
    json_object: Flag | None
    structural_tag: str | None
    disable_any_whitespace: Flag
    disable_additional_properties: Flag
    whitespace_pattern: str | None


_CONSTRAINTS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def _is_one(wanted: AnyStructuredOutputs) -> AnyStructuredOutputs:
    given = [name for name in _CONSTRAINTS if wanted.get(name) is not None]
    if len(given) != 1:
        raise PydanticCustomError(
            "one_constraint",
            "has {given}; exactly one of {allowed} is needed",
            {"given": " and ".join(given) or "no constraint", "allowed": ", ".join(_CONSTRAINTS)},
        )
    if wanted.get("json_object") is False:
        raise disagreement("json_object", "must be true; leave structured_outputs out instead")
    return wanted


StructuredOutputs: TypeAlias = Annotated[AnyStructuredOutputs, AfterValidator(_is_one)]


def constraint_of_format(wanted: AnyResponseFormat | None) -> str | None:
    """Name the kind of structured outputs that vLLM makes of a response format."""
    kind = None if wanted is None else wanted["type"]
    return {"text": None, "json_schema": "json"}.get(kind, kind) if kind else None


def constraint_of_outputs(wanted: AnyStructuredOutputs | None) -> str | None:
    """Name the kind of structured outputs that a request has."""
    if not wanted:
        return None
    return next((name for name in _CONSTRAINTS if wanted.get(name) is not None), None)
