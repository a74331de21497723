"""The AsyncAPI 3.0 document: how a client in any language submits jobs and reads their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inferfleet.schemas import names
from inferfleet.schemas.asyncapi_channels import amqp_channels, redis_channels
from inferfleet.schemas.asyncapi_messages import messages

CONTRACT_VERSION: Final = "1.3.0"
"""The version of the contract, not of the software. Its major version is that of the message type."""

_DESCRIPTION: Final = f"""\
A fleet of inference workers behind a queue.

To submit a job with any AMQP 0-9-1 client, publish it to the exchange `{names.JOBS_EXCHANGE}` with the pool
as routing key, persistent, `mandatory`, and with publisher confirms. If the broker returns the message, no
worker ever served the pool; if it sends a negative confirm, the pool's queue is full. In both cases the job
was not accepted. A confirmed job reaches exactly one terminal result.

The body is UTF-8 JSON; workers ignore unknown fields. Give each job a new `id`, preferably a UUIDv7, and keep
it when you publish the same job again: of several messages with the same id, only one runs.

Read the answer from Redis: the journal has the tokens as they are generated, the result says how the job
ended, and the stream that `reply_to` names gets a line for each finished job.
"""


def asyncapi_document(schema_files: Mapping[str, str]) -> dict[str, Any]:
    """Make the document. ``schema_files`` maps each schema's name in the document to its file."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:inferfleet:asyncapi",
        "info": {
            "title": "inferfleet",
            "version": CONTRACT_VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": amqp_channels() | redis_channels(),
        "operations": _operations(),
        "components": {
            "messages": messages(),
            "schemas": {name: {"$ref": f"./{file}"} for name, file in schema_files.items()},
        },
    }


def _servers() -> dict[str, Any]:
    return {
        "rabbitmq": {
            "host": "{host}:{port}",
            "pathname": "/{vhost}",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "description": "As in `INFERFLEET_AMQP_URL`.",
            "variables": {
                "host": {"default": "127.0.0.1"},
                "port": {"default": "5672"},
                "vhost": {"default": "%2F", "description": "The virtual host."},
            },
        },
        "redis": {
            "host": "{host}:{port}",
            "protocol": "redis",
            "description": "As in `INFERFLEET_REDIS_URL`.",
            "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "6379"}},
        },
    }


def _operations() -> dict[str, Any]:
    published = {"amqp": {"deliveryMode": 2, "mandatory": True, "bindingVersion": "0.3.0"}}
    acknowledged = {"amqp": {"ack": True, "bindingVersion": "0.3.0"}}
    return {
        "submitJob": _operation("send", "jobs", "A producer submits a job.", published),
        "takeJob": _operation(
            "receive", "jobQueue", "A worker takes a job; its ack comes last.", acknowledged
        ),
        "deadLetterMessage": _operation("send", "deadLetters", "A worker gives a message up.", published),
        "readDeadLetters": _operation("receive", "deadLetterQueue", "A person looks at what failed."),
        "sendCommand": _operation("send", "control", "Cancel a job, drain a worker or swap its model."),
        "announceUrgentJob": _operation("send", "announcements", "A producer announces an urgent job."),
        "receiveCommands": _operation("receive", "controlQueue", "A worker hears every order."),
        "writeJournal": _operation("send", "journal", "A worker writes down what happens."),
        "followJournal": _operation("receive", "journal", "A client reads tokens as they come."),
        "commitResult": _operation("send", "result", "A worker ends a job, once."),
        "readResult": _operation("receive", "result", "A client reads the answer."),
        "reply": _operation("send", "replies", "A worker tells a client that its job finished."),
        "awaitReplies": _operation("receive", "replies", "A client waits for all its jobs at once."),
        "reportHealth": _operation("send", "workers", "A worker says that it lives."),
        "readHealth": _operation("receive", "workers", "Anyone reads the health map."),
    }


def _operation(
    action: str, channel: str, summary: str, bindings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
    }
    return operation | {"bindings": dict(bindings)} if bindings else operation
