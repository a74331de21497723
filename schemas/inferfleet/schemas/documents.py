"""The contract as files: a JSON Schema for each wire type, and one AsyncAPI document.

They are generated from the models, so that clients in other languages can rely on them. The files are
committed; a test compares them with the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from inferfleet.schemas.asyncapi import asyncapi_document
from inferfleet.schemas.control import control
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import Job
from inferfleet.schemas.journal import journal_entry
from inferfleet.schemas.result import JobRecord, Result

ASYNCAPI_FILE: Final = "asyncapi.json"

MODELS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "job": TypeAdapter(Job),
    "result": TypeAdapter(Result),
    "journalEntry": journal_entry,
    "jobRecord": TypeAdapter(JobRecord),
    "control": control,
    "heartbeat": TypeAdapter(Heartbeat),
    **{spec.schema: spec.request for spec in ENDPOINTS.values()},
}
"""The published types, by their names in the AsyncAPI document."""

REQUIRED_ON_THE_WIRE: Final = {"job": ("id",)}
"""Fields that a model fills in for callers in Python, but that a message must have.

A message without an id would become another job at each delivery.
"""


def documents() -> dict[str, str]:
    """Make all documents, as file name to content. The same models always give the same bytes."""
    files = {name: _file(name) for name in MODELS}
    made: dict[str, Any] = {files[name]: _json_schema(name) for name in MODELS}
    made[ASYNCAPI_FILE] = asyncapi_document(files)
    return {name: _text(document) for name, document in sorted(made.items())}


def export(folder: Path) -> list[Path]:
    """Write all documents to ``folder``, and return their paths. Leave other files there alone."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, text in documents().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def drift(folder: Path) -> list[str]:
    """Name the documents that are missing in ``folder`` or differ from the models."""
    return [name for name, text in documents().items() if _read(folder / name) != text]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _file(name: str) -> str:
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
    return f"{words}.schema.json"


def _json_schema(name: str) -> dict[str, Any]:
    schema = MODELS[name].json_schema(schema_generator=_Generator)
    required = (*REQUIRED_ON_THE_WIRE.get(name, ()), *schema.get("required", ()))
    return (
        schema
        | {"$schema": _Generator.schema_dialect, "$id": f"urn:inferfleet:schema:{_file(name)}"}
        | ({"required": list(required)} if required else {})
    )


def _text(document: dict[str, Any]) -> str:
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    text = orjson.dumps(document, option=options).decode()
    # Docstrings mark code up as reStructuredText; readers of a schema expect Markdown.
    return text.replace("``", "`")


class _Generator(GenerateJsonSchema):
    """Generates plain JSON Schema: no titles that only repeat a name, no OpenAPI keywords."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        # A field with one value tells the members of a union apart, so a message must have it.
        inner = field["schema"].get("schema", {})
        constant = inner.get("type") == "literal" and len(inner["expected"]) == 1
        return constant or super().field_is_required(field, total)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        generated = super().tagged_union_schema(schema)
        # OpenAPI's keyword. AsyncAPI has a keyword of the same name with another form.
        generated.pop("discriminator", None)
        if callable(schema["discriminator"]):
            # Others need not choose a branch as we do: a value may match several.
            generated["anyOf"] = generated.pop("oneOf")
        return generated
