"""Messages that no client library would write."""

from __future__ import annotations

import struct

from tests.patience import PATIENCE_S

from inferfleet.schemas.names import job_queue
from inferfleet.wire.rabbitmq.connection import open_amqp


class RawPublisher:
    """Publishes bytes that no client library would write. The broker may refuse them."""

    def __init__(self, url: str, pool: str) -> None:
        self._url = url
        self._pool = pool

    async def publish(
        self, flags: int, properties: bytes, body: bytes, *, exchange: str = "inferfleet.jobs"
    ) -> bool:
        """Publish on a connection of its own. Returns whether the broker took it."""
        async with open_amqp(self._url, timeout_s=PATIENCE_S, name="poison") as connection:
            channel = await connection.channel(publisher_confirms=False)
            number = (await channel.get_underlay_channel()).number
            connection.stream.take(number, lambda kind, payload: False)
            method = struct.pack(">HHH", 60, 40, 0) + _short(exchange) + _short(self._pool) + b"\x00"
            header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
            frames = [_frame(1, number, method), _frame(2, number, header)]
            frames += [_frame(3, number, body[at : at + 100_000]) for at in range(0, len(body), 100_000)]
            connection.stream.write(number, b"".join(frames))
            try:
                # Answered behind the message, or not at all.
                await channel.declare_queue(job_queue(self._pool), passive=True)
            except Exception:
                return False
            return True


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
