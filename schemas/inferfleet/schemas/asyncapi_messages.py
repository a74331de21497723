"""The messages of the AsyncAPI document: bodies, headers and properties, and a worked example.

AsyncAPI's AMQP binding cannot express a message's properties: they are in the extension
``x-amqp-properties``, as a JSON Schema.
"""

from __future__ import annotations

from typing import Any, Final

from inferfleet.schemas import names
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import DEFAULT_POOL, JobState, Priority
from inferfleet.schemas.journal import ENTRY_FIELD
from inferfleet.schemas.trace import MAX_TRACESTATE_CHARS, TRACEPARENT_PATTERN

EXAMPLE_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
EXAMPLE_CLIENT: Final = "billing-1"

EXAMPLE_JOB: Final[dict[str, Any]] = {
    "id": EXAMPLE_ID,
    "pool": DEFAULT_POOL,
    "endpoint": Endpoint.CHAT.value,
    "body": {
        "messages": [{"role": "user", "content": "Write a haiku about queues."}],
        "max_tokens": 64,
        "temperature": 0,
    },
    "priority": int(Priority.HIGH),
    "stream": True,
    "metadata": {"invoice": "2026-0042"},
    "submitted_at": "2026-01-31T12:00:00Z",
}
"""The body of a message from a client in another language."""

EXAMPLE_PROPERTIES: Final[dict[str, Any]] = {
    "message_id": EXAMPLE_ID,
    "type": names.JOB_MESSAGE_TYPE,
    "content_type": "application/json",
    "delivery_mode": 2,
    "priority": int(Priority.HIGH),
    "reply_to": EXAMPLE_CLIENT,
}
"""The AMQP properties of the same message."""

_TRACE_HEADERS: Final[dict[str, Any]] = {
    "traceparent": {
        "type": "string",
        "description": "W3C trace context. Counts if the job itself has none.",
        "pattern": TRACEPARENT_PATTERN,
    },
    "tracestate": {
        "type": "string",
        "description": "W3C trace state.",
        "maxLength": MAX_TRACESTATE_CHARS,
    },
}

_DEAD_HEADERS: Final[dict[str, Any]] = {
    names.HEADER_CODE: {"type": "string", "enum": [code.value for code in FailureCode]},
    names.HEADER_MESSAGE: {"type": "string", "description": "What went wrong, for a person."},
    names.HEADER_ATTEMPTS: {"type": "integer", "minimum": 0, "description": "The number of attempts."},
    names.HEADER_WORKER: {"type": "string", "description": "The worker that gave the message up."},
    names.HEADER_DIED_AT: {"type": "string", "format": "date-time"},
}

_LEFT_OUT_HEADER: Final[dict[str, Any]] = {
    names.HEADER_LEFT_OUT: {
        "type": "string",
        "description": "The message's properties and headers that the dead letter could not carry.",
    },
}


def messages() -> dict[str, Any]:
    """Describe every message, by its name in the document."""
    return {
        "job": {
            "title": "A job",
            "contentType": "application/json",
            "headers": {"type": "object", "properties": _TRACE_HEADERS},
            "payload": _schema("job"),
            "bindings": {"amqp": {"messageType": names.JOB_MESSAGE_TYPE, "bindingVersion": "0.3.0"}},
            "x-amqp-properties": _job_properties(),
            "examples": [{"name": "chat", "summary": "A chat, streamed.", "payload": EXAMPLE_JOB}],
        },
        "deadLetter": {
            "title": "A message that was given up",
            "headers": {
                "type": "object",
                "properties": _TRACE_HEADERS | _DEAD_HEADERS | _LEFT_OUT_HEADER,
                "required": list(_DEAD_HEADERS),
            },
            "payload": {"description": "The unchanged body: a job, or anything that is not a job."},
        },
        "control": {"title": "An order to workers", "payload": _schema("control")},
        "journalLine": {
            "title": "One line of a journal",
            "description": f"One field, `{ENTRY_FIELD}`: a string that holds the entry as JSON.",
            "payload": _schema("journalEntry"),
        },
        "result": {"title": "The one terminal result of a job", "payload": _schema("result")},
        "reply": {
            "title": "A job of yours finished",
            "description": "The fields of one line. Lines without the field `job` mean nothing to a client.",
            "payload": {
                "type": "object",
                "properties": {
                    "job": {"type": "string", "format": "uuid"},
                    "state": {"enum": [state.value for state in JobState if state.terminal]},
                },
            },
        },
        "heartbeat": {
            "title": "A worker's heartbeat",
            "description": "Each property is a field of the hash, as text.",
            "payload": _schema("heartbeat"),
        },
    }


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _job_properties() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["message_id", "type", "content_type", "delivery_mode", "priority"],
        "properties": {
            "message_id": {"type": "string", "format": "uuid", "description": "The job's `id`."},
            "type": {"const": names.JOB_MESSAGE_TYPE},
            "content_type": {"const": "application/json"},
            "delivery_mode": {"const": 2, "description": "Persistent."},
            "priority": {
                "type": "integer",
                "minimum": 0,
                "maximum": names.PRIORITY_LEVELS - 1,
                "description": "The job's `priority` again: the broker sorts by this one.",
            },
            "reply_to": {
                "type": "string",
                "description": "The name of the reply stream that gets a line when the job ends.",
            },
        },
        "examples": [EXAMPLE_PROPERTIES],
    }
