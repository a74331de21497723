"""The OpenAPI document. Its requests are the schemas of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from inferfleet.schemas.documents import MODELS
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint

_REF: Final = "#/components/schemas/{model}"

_ERROR: Final[Mapping[str, Any]] = {
    "description": "A refusal. `code` is for programs.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": "string"},
                        },
                    }
                },
            }
        }
    },
}


def request_of(endpoint: Endpoint) -> dict[str, Any]:
    """Describe the request of an endpoint, and the types of its answers."""
    spec = ENDPOINTS[endpoint]
    types = ["application/json", *(["text/event-stream"] if spec.generated is not None else [])]
    answer: dict[str, Any] = {"description": "The answer.", "content": {each: {} for each in types}}
    return {**_body(_ref(spec.schema), spec.example), "responses": {"200": answer}}


def request_of_jobs() -> dict[str, Any]:
    """Describe the request that submits jobs."""
    example = {"endpoint": Endpoint.CHAT, "body": ENDPOINTS[Endpoint.CHAT].example}
    return _body({"anyOf": [_ref("job"), {"type": "array", "items": _ref("job")}]}, example)


def with_document(app: FastAPI) -> FastAPI:
    """Let an application serve its document, which is made when somebody reads it."""

    @cache
    def document() -> dict[str, Any]:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        made.setdefault("components", {})["schemas"] = _schemas()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = _ERROR
        return made

    app.openapi = document  # type: ignore[method-assign]
    return app


def _body(schema: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}


def _schemas() -> dict[str, Any]:
    schemas, definitions = TypeAdapter.json_schemas(
        [(name, "validation", adapter) for name, adapter in MODELS.items()], ref_template=_REF
    )
    return {**definitions.get("$defs", {}), **{name: schema for (name, _), schema in schemas.items()}}
