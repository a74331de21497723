"""The triggers of a ScaledObject: what they measure, and their targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast
from urllib.parse import urlsplit

from inferfleet.schemas.errors import ConfigurationError

DEFAULT_QUEUE_LENGTH = 20.0
"""KEDA's ``value`` where neither ``mode`` nor ``value`` is given (rabbitmq_scaler.go, 2.2x)."""


DEFAULT_PAGE_SIZE = 100
"""KEDA's ``pageSize``: how many queues a regular expression may match."""


class MetricType(StrEnum):
    """How the HPA compares a metric with its target: per replica, or as it is."""

    AVERAGE_VALUE = "AverageValue"
    VALUE = "Value"


class Protocol(StrEnum):
    """How KEDA queries RabbitMQ. ``amqp`` counts only ready messages, ``http`` ready and unacked ones."""

    AMQP = "amqp"
    HTTP = "http"


class Mode(StrEnum):
    """What a RabbitMQ trigger measures: messages, or the seconds until they are delivered."""

    QUEUE_LENGTH = "QueueLength"
    CONSUMPTION_TIME = "ExpectedQueueConsumptionTime"


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitMQTrigger:
    """A number of one queue. Active above ``activation``; ``target`` is in messages or seconds.

    With ``page_size`` the queue is a regular expression, and the number that of all queues that it matches,
    unless there are more.
    """

    name: str
    queue: str
    page_size: int | None = None
    protocol: Protocol
    mode: Mode = Mode.QUEUE_LENGTH
    target: float
    activation: float = 0.0
    exclude_unacknowledged: bool = False
    metric_type: MetricType = MetricType.AVERAGE_VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusTrigger:
    """The value of a query. Missing data is 0 if ``ignore_null_values``, otherwise an error."""

    name: str
    server: str
    query: str
    target: float
    activation: float = 0.0
    ignore_null_values: bool = True
    metric_type: MetricType = MetricType.AVERAGE_VALUE


Trigger = RabbitMQTrigger | PrometheusTrigger


def consumption_time_s(
    messages: float, *, published_per_s: float, delivered_per_s: float, activation: float
) -> float:
    """Return KEDA's ``ExpectedQueueConsumptionTime`` (rabbitmq_scaler.go, 2.20)."""
    if delivered_per_s == 0:
        return activation
    return (published_per_s - delivered_per_s + messages) / delivered_per_s


def parse_trigger(trigger: Mapping[str, Any], *, number: int) -> Trigger:
    """Read one entry of ``triggers``.

    Raises:
        ConfigurationError: KEDA would refuse the trigger, or it is not supported here.

    """
    kind = str(trigger.get("type", ""))
    fields = _Metadata(f"trigger {number} ({kind or 'without a type'})", trigger.get("metadata"))
    name = str(trigger.get("name") or f"s{number}-{kind}")
    text = str(trigger.get("metricType") or MetricType.AVERAGE_VALUE)
    if text not in set(MetricType):
        raise fields.wrong(f"metricType {text!r} is not one of {', '.join(MetricType)}")
    match kind:
        case "rabbitmq":
            return _rabbitmq(name, fields, MetricType(text))
        case "prometheus":
            return PrometheusTrigger(
                name=name,
                server=fields.required("serverAddress"),
                query=fields.required("query"),
                target=fields.positive("threshold"),
                activation=fields.number("activationThreshold", 0.0),
                ignore_null_values=fields.flag("ignoreNullValues", default=True),
                metric_type=MetricType(text),
            )
        case _:
            raise fields.wrong("this type cannot be run here; rabbitmq and prometheus can")


def _rabbitmq(name: str, fields: _Metadata, metric_type: MetricType) -> RabbitMQTrigger:
    protocol = _protocol(fields)
    measured = Mode.QUEUE_LENGTH
    mode, length = fields.text("mode"), fields.text("queueLength")
    if mode is None and length is None and fields.text("value") is None:
        target = DEFAULT_QUEUE_LENGTH
    elif length is not None:
        if mode is not None or fields.text("value") is not None:
            raise fields.wrong("queueLength is deprecated; use mode and value")
        target = fields.positive("queueLength")
    elif mode is None:
        raise fields.wrong("mode must be given together with value")
    elif mode not in set(Mode):
        raise fields.wrong(f"mode {mode!r} cannot be run here; {' and '.join(Mode)} can")
    else:
        measured, target = Mode(mode), fields.positive("value")
    if measured is not Mode.QUEUE_LENGTH and protocol is not Protocol.HTTP:
        raise fields.wrong(f"mode {mode} needs the http protocol")
    regex = fields.flag("useRegex", default=False)
    if regex and protocol is not Protocol.HTTP:
        raise fields.wrong("useRegex needs the http protocol")
    if regex and (operation := fields.text("operation") or "sum") != "sum":
        raise fields.wrong(f"operation {operation!r} cannot be run here; sum can")
    exclude = fields.flag("excludeUnacknowledged", default=False)
    if exclude and protocol is not Protocol.HTTP:
        raise fields.wrong("excludeUnacknowledged needs the http protocol")
    return RabbitMQTrigger(
        name=name,
        queue=fields.required("queueName"),
        page_size=int(fields.number("pageSize", DEFAULT_PAGE_SIZE)) if regex else None,
        protocol=protocol,
        mode=measured,
        target=target,
        activation=fields.number("activationValue", 0.0),
        exclude_unacknowledged=exclude,
        metric_type=metric_type,
    )


def _protocol(fields: _Metadata) -> Protocol:
    text = fields.text("protocol") or "auto"
    if text == "auto":
        scheme = urlsplit(fields.text("host") or "").scheme
        text = {"http": "http", "https": "http", "amqp": "amqp", "amqps": "amqp"}.get(scheme, "auto")
        if text == "auto":
            raise fields.wrong(
                "protocol 'auto' follows the scheme of host, which is not here: write http or amqp"
            )
    if text not in set(Protocol):
        raise fields.wrong(f"protocol {text!r} is not one of http, amqp, auto")
    return Protocol(text)


class _Metadata:
    """A trigger's ``metadata``: strings by name, as KEDA has them."""

    def __init__(self, where: str, metadata: object) -> None:
        self._where = where
        if not isinstance(metadata, Mapping):
            raise self.wrong("metadata is missing")
        self._fields = cast("Mapping[str, object]", metadata)

    def wrong(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"ScaledObject: {self._where}: {problem}")

    def text(self, name: str) -> str | None:
        value = self._fields.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.wrong(f"{name} is {value!r}; values in metadata are strings, put it in quotes")
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.wrong(f"{name} is missing")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.text(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError as error:
            raise self.wrong(f"{name} is {value!r}, not a number") from error
        if not math.isfinite(number):
            raise self.wrong(f"{name} is {value!r}, not a number to compare with")
        return number

    def positive(self, name: str) -> float:
        self.required(name)
        value = self.number(name, 0.0)
        if value <= 0:
            raise self.wrong(f"{name} is {value:g}; it must be above 0")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.text(name)
        if value is None:
            return default
        if value.lower() not in {"true", "false"}:
            raise self.wrong(f"{name} is {value!r}, not true or false")
        return value.lower() == "true"
