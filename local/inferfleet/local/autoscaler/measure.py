"""Queries RabbitMQ and Prometheus as KEDA's scalers would.

The servers are those of this machine, not those of the manifest. A failed reading is a value, too; other
modules decide what follows from it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import orjson
from aiormq.abc import AbstractChannel

from inferfleet.local.autoscaler.decision import Reading, Readings
from inferfleet.local.autoscaler.triggers import (
    Mode,
    PrometheusTrigger,
    Protocol,
    RabbitMQTrigger,
    Trigger,
    consumption_time_s,
)
from inferfleet.schemas.errors import ConfigurationError, InferfleetError, ServiceUnreachableError
from inferfleet.wire.address import without_secrets
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.management import ManagementApi
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer

TIMEOUT_S = 3.0
"""KEDA_HTTP_DEFAULT_TIMEOUT."""


class Measurer:
    """Reads triggers. Made by ``open_measurer``."""

    def __init__(
        self,
        *,
        http: aiohttp.ClientSession,
        amqp_url: str,
        management: ManagementApi | None,
        prometheus_url: str | None,
    ) -> None:
        self._http = http
        self._queues = PassiveDeclares(amqp_url)
        self._management = management
        self._prometheus_url = prometheus_url

    async def measure(self, triggers: Sequence[Trigger]) -> Readings:
        """Read all triggers concurrently. Each may fail separately."""
        return await asyncio.gather(*(self._measure(trigger) for trigger in triggers))

    async def aclose(self) -> None:
        """Close the connection to RabbitMQ."""
        await self._queues.aclose()

    async def _measure(self, trigger: Trigger) -> Reading:
        try:
            match trigger:
                case RabbitMQTrigger(protocol=Protocol.AMQP):
                    return Reading(float(await self._queues.ready(trigger.queue)))
                case RabbitMQTrigger():
                    return await self._counted(trigger)
                case PrometheusTrigger():
                    return await self._prometheus(trigger)
        except (aiohttp.ClientError, InferfleetError, OSError) as error:
            words = str(error)
            if isinstance(trigger, PrometheusTrigger):
                words = without_secrets(words, self._prometheus_url or trigger.server)
            return Reading(None, words or type(error).__name__)

    async def _counted(self, trigger: RabbitMQTrigger) -> Reading:
        if self._management is None:
            return Reading(None, "there is no address of RabbitMQ's management API")
        queues = await _queues(self._management, trigger)
        # A queue without statistics has no such fields yet. Go reads 0 then, and so must we (keda#7180).
        counts = [
            queue.messages_ready if trigger.exclude_unacknowledged else queue.messages for queue in queues
        ]
        count = float(sum(each or 0 for each in counts))
        match trigger.mode:
            case Mode.QUEUE_LENGTH:
                return Reading(count)
            case Mode.CONSUMPTION_TIME:
                return Reading(
                    consumption_time_s(
                        count,
                        published_per_s=sum(queue.message_stats.publish_details.rate for queue in queues),
                        delivered_per_s=sum(queue.message_stats.deliver_get_details.rate for queue in queues),
                        activation=trigger.activation,
                    )
                )

    async def _prometheus(self, trigger: PrometheusTrigger) -> Reading:
        server = self._prometheus_url or trigger.server
        async with self._http.get(
            f"{server.rstrip('/')}/api/v1/query", params={"query": trigger.query}
        ) as answer:
            if answer.status != 200:
                return Reading(None, f"Prometheus answers {answer.status}: {(await answer.text())[:200]}")
            body = await answer.read()
        try:
            values = [float(series["value"][1]) for series in orjson.loads(body)["data"]["result"]]
        except (LookupError, TypeError, ValueError):
            return Reading(None, "the answer is not one of Prometheus' API")
        if len(values) > 1:
            return Reading(None, f"the query gives {len(values)} series instead of one")
        value = values[0] if values else math.nan
        if math.isfinite(value):
            return Reading(value)
        return Reading(0.0) if trigger.ignore_null_values else Reading(None, "the query gives no value")


async def _queues(management: ManagementApi, trigger: RabbitMQTrigger) -> Sequence[QueueAnswer]:
    """Read the queues of a trigger as KEDA does (rabbitmq_scaler.go, 2.20).

    Raises:
        ServiceUnreachableError: RabbitMQ does not answer, or there are more queues than fit into a page.

    """
    if trigger.page_size is None:
        return [await management.queue(trigger.queue)]
    answer = await management.queues(
        {
            "page": "1",
            "use_regex": "true",
            "pagination": "false",
            "name": trigger.queue,
            "page_size": str(trigger.page_size),
        }
    )
    if answer.page_count > 1:
        raise ServiceUnreachableError(
            f"more than {trigger.page_size} queues match {trigger.queue}: set pageSize higher, up to 500"
        )
    return answer.items


class PassiveDeclares:
    """Counts ready messages over AMQP, on one connection that is reopened when it breaks."""

    def __init__(self, amqp_url: str) -> None:
        self._url = amqp_url
        self._stack = AsyncExitStack()
        self._channel: AbstractChannel | None = None

    async def ready(self, queue: str) -> int:
        """Count the ready messages in a queue.

        Raises:
            ServiceUnreachableError: RabbitMQ does not answer.
            ServiceRefusedError: There is no such queue, or RabbitMQ refuses the request.

        """
        try:
            with connection_errors(self._url):
                async with asyncio.timeout(TIMEOUT_S):
                    channel = self._channel or await self._connect()
                    return (await channel.queue_declare(queue, passive=True)).message_count or 0
        except BaseException:
            # A refused declaration closes the channel, and a cancelled one leaves a reply in flight.
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection; the next count opens it again."""
        self._channel = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def _connect(self) -> AbstractChannel:
        connection = await self._stack.enter_async_context(
            open_amqp(self._url, timeout_s=TIMEOUT_S, name="inferfleet autoscale")
        )
        self._channel = await (await connection.channel()).get_underlay_channel()
        return self._channel


@asynccontextmanager
async def open_measurer(
    triggers: Sequence[Trigger], *, amqp_url: str, management_url: str | None, prometheus_url: str | None
) -> AsyncGenerator[Measurer]:
    """Make a measurer for these triggers.

    Raises:
        ConfigurationError: A trigger counts over HTTP, and its URL is missing or invalid.

    """
    if management_url is None and needs_management(triggers):
        raise ConfigurationError(
            "the ScaledObject counts over http, which needs RabbitMQ's management API: give its address with "
            "--management-url (INFERFLEET_MANAGEMENT_URL), or take --services native or docker"
        )
    management = None
    if management_url is not None:
        management = ManagementApi(management_url, amqp_url=amqp_url, timeout_s=TIMEOUT_S)
        management.check()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
        measurer = Measurer(
            http=http, amqp_url=amqp_url, management=management, prometheus_url=prometheus_url
        )
        try:
            yield measurer
        finally:
            await measurer.aclose()


def needs_management(triggers: Sequence[Trigger]) -> bool:
    """Return whether any trigger counts over RabbitMQ's HTTP API."""
    return any(isinstance(it, RabbitMQTrigger) and it.protocol is Protocol.HTTP for it in triggers)
