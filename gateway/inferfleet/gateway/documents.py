"""The OpenAPI document. Its requests are the schemas of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from inferfleet.gateway.run_requests import ApproveCall, DenyCall, ReplayRun, StartRun
from inferfleet.producer.openai.conversations import ConversationRequest, CreateConversation
from inferfleet.producer.openai.response_fields import CreateResponse
from inferfleet.schemas.documents import MODELS
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint

_REF: Final = "#/components/schemas/{model}"

_MODELS: Final = (
    CreateResponse,
    CreateConversation,
    ConversationRequest,
    StartRun,
    ReplayRun,
    ApproveCall,
    DenyCall,
)
"""The requests that are no contract of jobs."""

STRING: Final[Mapping[str, Any]] = {"type": "string"}
OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
COUNT: Final[Mapping[str, Any]] = {"type": "integer", "minimum": 0}

REFUSED: Final[Mapping[str, Any]] = {
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
"""OpenAI's error object."""

_ERROR: Final[Mapping[str, Any]] = {
    "description": "A refusal. `code` is for programs.",
    "content": {"application/json": {"schema": REFUSED}},
}


def ref(name: str) -> dict[str, str]:
    """Refer to a type of the contract by its name there."""
    return {"$ref": _REF.format(model=name)}


def request_of(endpoint: Endpoint) -> dict[str, Any]:
    """Describe the request of an endpoint, and the types of its answers."""
    spec = ENDPOINTS[endpoint]
    types = ["application/json", *(["text/event-stream"] if spec.generated is not None else [])]
    answered: dict[str, Any] = {"description": "The answer.", "content": {each: {} for each in types}}
    return {**request_body(ref(spec.schema), spec.example), "responses": {"200": answered}}


def request_of_model(model: type[BaseModel], example: Any) -> dict[str, Any]:
    """Describe a request that is no job's."""
    return request_body(ref(model.__name__), example)


def request_of_jobs() -> dict[str, Any]:
    """Describe the request that submits jobs."""
    example = {"endpoint": Endpoint.CHAT, "body": ENDPOINTS[Endpoint.CHAT].example}
    return request_body({"anyOf": [ref("job"), {"type": "array", "items": ref("job")}]}, example)


def request_body(schema: Mapping[str, Any], example: Any) -> dict[str, Any]:
    """Describe a request in JSON."""
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def answer(schema: Mapping[str, Any], *, status: HTTPStatus = HTTPStatus.OK) -> dict[int | str, Any]:
    """Describe an answer in JSON."""
    content = {"application/json": {"schema": schema}}
    return {status.value: {"description": status.phrase, "content": content}}


def answer_or_events(schema: Mapping[str, Any]) -> dict[int | str, Any]:
    """Describe an answer in JSON, in place of which there may be a stream of events."""
    described = answer(schema)
    described[HTTPStatus.OK.value]["content"]["text/event-stream"] = {}
    return described


def answer_of_events() -> dict[int | str, Any]:
    """Describe a stream of events, of which there may be none."""
    return {
        HTTPStatus.OK.value: {"description": "The events.", "content": {"text/event-stream": {}}},
        HTTPStatus.NO_CONTENT.value: {"description": "There is nothing after that event."},
    }


def members(**schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an object that has these members."""
    return {"type": "object", "required": list(schemas), "properties": schemas}


def list_of(schema: Mapping[str, Any], **more: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a list as OpenAI has it, with ``more`` members."""
    return members(object={"const": "list"}, data={"type": "array", "items": schema}, **more)


def with_document(app: FastAPI, *, keys: bool) -> FastAPI:
    """Let an application serve its document, which is made when somebody reads it.

    ``keys`` says that callers need API keys.
    """

    @cache
    def document() -> dict[str, Any]:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        made.setdefault("components", {})["schemas"] = _schemas()
        if keys:
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = _ERROR
        return made

    app.openapi = document  # type: ignore[method-assign]
    return app


def _schemas() -> dict[str, Any]:
    models = {**MODELS, **{model.__name__: TypeAdapter[Any](model) for model in _MODELS}}
    schemas, definitions = TypeAdapter.json_schemas(
        [(name, "validation", adapter) for name, adapter in models.items()], ref_template=_REF
    )
    # The schema of a model under its own name is a reference to its definition.
    return {**{name: schema for (name, _), schema in schemas.items()}, **definitions.get("$defs", {})}
