"""What several shapes are made of."""

from __future__ import annotations

from typing import Any, Final

SAY: Final = "say a word of the sea"
HELLO: Final[list[dict[str, Any]]] = [{"role": "user", "content": SAY}]
GO: Final = {"role": "user", "content": "go"}

ZONES: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["a", "b"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TIME: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "get_time", "description": "d", "parameters": ZONES, "strict": True},
}
WORD: Final[dict[str, Any]] = {"type": "function", "function": {"name": "get_word"}}
THE_TIME: Final = {"type": "function", "function": {"name": "get_time"}}
CALL: Final[dict[str, Any]] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_time", "arguments": '{"zone": "a"}'},
}
TAG: Final = {
    "type": "structural_tag",
    "structures": [{"begin": "<a>", "schema": ZONES, "end": "</a>"}],
    "triggers": ["<a>"],
}


def schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "zones", "schema": ZONES, **fields}}


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
