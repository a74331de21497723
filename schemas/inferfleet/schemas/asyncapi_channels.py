"""The channels of the AsyncAPI document: exchanges and queues in RabbitMQ, keys in Redis.

This module describes as data what ``wire`` declares in code. Bindings follow AsyncAPI's AMQP binding 0.3.0,
which cannot express the arguments of a queue: they are in the extension ``x-queue-arguments``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inferfleet.schemas import names
from inferfleet.schemas.asyncapi_messages import EXAMPLE_CLIENT, EXAMPLE_ID
from inferfleet.schemas.job import DEFAULT_POOL

_POOL = {"pool": {"description": "The pool of workers that runs the job.", "default": DEFAULT_POOL}}
_WORKER = {"workerId": {"description": "Worker id."}}
_JOB = {"jobTag": {"description": "The job's id in braces.", "examples": [f"{{{EXAMPLE_ID}}}"]}}
_CLIENT = {"clientTag": {"description": "`reply_to` in braces.", "examples": [f"{{{EXAMPLE_CLIENT}}}"]}}


def amqp_channels() -> dict[str, Any]:
    """Describe the exchanges to publish to, and the queues to consume from."""
    return {
        "jobs": _exchange(
            names.JOBS_EXCHANGE,
            "direct",
            address="{pool}",
            message="job",
            description="Jobs to run. The address is the routing key.",
            parameters=_POOL,
        ),
        "announcements": _exchange(
            names.JOBS_EXCHANGE,
            "direct",
            address=names.announcements("{pool}"),
            message="control",
            description=(
                "Announcements of urgent jobs (`kind` is `urgent`), each published behind its job. "
                "The address is the routing key. A worker whose engine is full takes the job at once."
            ),
            parameters=_POOL,
        ),
        "jobQueue": _queue(
            names.job_queue("{pool}"),
            message="job",
            description=(
                "A pool's waiting jobs, most urgent first. Workers declare this queue, as shown here or as a "
                "quorum queue; if the pool has a limit, with `x-max-length` and `x-overflow: reject-publish`."
            ),
            parameters=_POOL,
            arguments={"x-queue-type": "classic", "x-max-priority": names.PRIORITY_LEVELS},
        ),
        "deadLetters": _exchange(
            names.DEAD_EXCHANGE,
            "direct",
            address="{pool}",
            message="deadLetter",
            description="Dead letters: messages that were given up. The address is the routing key.",
            parameters=_POOL,
        ),
        "deadLetterQueue": _queue(
            names.dead_queue("{pool}"),
            message="deadLetter",
            description="A pool's dead letters, for a person to inspect.",
            parameters=_POOL,
        ),
        "control": _exchange(
            names.CONTROL_EXCHANGE,
            "fanout",
            address=names.CONTROL_EXCHANGE,
            message="control",
            description="Commands. Every worker receives each command; the one that it concerns acts.",
        ),
        "controlQueue": _queue(
            names.control_queue("{workerId}"),
            message="control",
            description=(
                "A worker's own queue of commands and announcements. "
                "It is deleted when the worker disconnects."
            ),
            parameters=_WORKER,
            durable=False,
        ),
    }


def redis_channels() -> dict[str, Any]:
    """Describe the Redis keys with the answers."""
    return {
        "journal": _key(
            _tagged(names.journal_key, "jobTag"),
            message="journalLine",
            description=(
                "A stream: everything that happened to a job, in order. The last entry is `finished`. "
                "Read it with XREAD; after an interruption, continue from the id of the last line seen."
            ),
            parameters=_JOB,
        ),
        "result": _key(
            _tagged(names.result_key, "jobTag"),
            message="result",
            description="A string that appears when the job ends and never changes.",
            parameters=_JOB,
        ),
        "replies": _key(
            _tagged(names.reply_key, "clientTag"),
            message="reply",
            description=(
                "A stream with a line for each finished job of one client, so that one blocked XREAD waits "
                "for thousands of jobs. A line may arrive twice, or be lost with its worker: read the result."
            ),
            parameters=_CLIENT,
        ),
        "workers": _key(
            names.worker_key("{workerId}"),
            message="heartbeat",
            description=(
                "A hash that expires when its worker no longer renews it. The sorted set "
                f"`{names.WORKERS_KEY}` has the ids of all workers, by the time of their last renewal."
            ),
            parameters=_WORKER,
        ),
    }


def _exchange(
    name: str,
    kind: str,
    *,
    address: str,
    message: str,
    description: str,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    exchange = {"name": name, "type": kind, "durable": True, "autoDelete": False}
    binding = {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}
    return _channel("rabbitmq", address, message, description, parameters) | {"bindings": {"amqp": binding}}


def _queue(
    name: str,
    *,
    message: str,
    description: str,
    parameters: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    durable: bool = True,
) -> dict[str, Any]:
    queue = {"name": name, "durable": durable, "exclusive": not durable, "autoDelete": not durable}
    binding = {"is": "queue", "queue": queue, "bindingVersion": "0.3.0"}
    if arguments:
        binding["x-queue-arguments"] = dict(arguments)
    return _channel("rabbitmq", name, message, description, parameters) | {"bindings": {"amqp": binding}}


def _key(address: str, *, message: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return _channel("redis", address, message, description, parameters)


def _channel(
    server: str, address: str, message: str, description: str, parameters: Mapping[str, Any] | None
) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "servers": [{"$ref": f"#/servers/{server}"}],
    }
    return channel | {"parameters": dict(parameters)} if parameters else channel


def _tagged(key: Callable[[str], str], parameter: str) -> str:
    """Write a key with its hash tag, braces included, as one parameter: AsyncAPI uses braces itself."""
    return key("TAG").replace("{TAG}", f"{{{parameter}}}")
