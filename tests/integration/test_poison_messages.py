"""Messages of other AMQP clients whose properties cannot be read, or not be written again.

Each is among the dead letters once, with its whole body; nothing repeats, and its neighbours notice nothing.
"""

from __future__ import annotations

import struct

from tests.integration.conftest import PATIENCE_S, ForeignClient, StartWorker, answer_to, eventually
from tests.integration.raw_publisher import RawPublisher

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.producer import Fleet
from inferfleet.schemas.names import dead_queue

CONTENT_TYPE, ENCODING, HEADERS, PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 11
CORRELATION_ID, REPLY_TO, MESSAGE_ID, TIMESTAMP, TYPE = 1 << 10, 1 << 9, 1 << 7, 1 << 6, 1 << 5
EXPIRATION, USER_ID, APP_ID, CLUSTER_ID = 1 << 8, 1 << 4, 1 << 3, 1 << 2


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def nested(depth: int) -> bytes:
    """So many tables in each other."""
    table = b""
    for _ in range(depth):
        table = short(b"k") + b"F" + long(table)
    return table


POISON: dict[str, tuple[int, bytes]] = {
    "an unsigned byte": (HEADERS, long(short(b"k") + b"B\xfa")),
    "a string that is not UTF-8": (HEADERS, long(short(b"k") + b"S" + long(b"\xff\xfe\xfd"))),
    "a name that is not UTF-8": (HEADERS, long(short(b"\xff\xfe") + b"t\x01")),
    "a name of 255 bytes": (HEADERS, long(short(b"k" * 255) + b"t\x01")),
    "an empty name": (HEADERS, long(short(b"") + b"t\x01")),
    "the same name twice": (HEADERS, long((short(b"k") + b"t\x01") * 2)),
    "a time after the year 9999": (HEADERS, long(short(b"k") + b"T" + b"\xff" * 8)),
    "such a time in a list": (HEADERS, long(short(b"k") + b"A" + long(b"T" + b"\xff" * 8))),
    "a large decimal": (HEADERS, long(short(b"k") + b"D\xff\xff\xff\xff\xff")),
    "a double": (HEADERS, long(short(b"k") + b"d" + struct.pack(">d", 1e300))),
    "not a number": (HEADERS, long(short(b"k") + b"d" + struct.pack(">d", float("nan")))),
    "a void": (HEADERS, long(short(b"k") + b"V")),
    "a byte array": (HEADERS, long(short(b"k") + b"x" + long(b"\x00\xff"))),
    "a list of everything": (
        HEADERS,
        long(short(b"k") + b"A" + long(b"t\x01" + b"b\xff" + b"V" + b"A" + long(b""))),
    ),
    "tables in tables": (HEADERS, long(nested(30))),
    "a thousand tables in tables": (HEADERS, long(nested(1000))),
    "ten thousand voids": (HEADERS, long((short(b"") + b"V") * 10_000)),
    "a list of sixty thousand voids": (HEADERS, long(short(b"k") + b"A" + long(b"V" * 60_000))),
    "headers of 130,900 bytes": (HEADERS, long(short(b"k") + b"S" + long(b"y" * 130_880))),
    "headers that fill the frame": (HEADERS, long(short(b"k") + b"S" + long(b"y" * 131_039))),
    "headers of our names": (
        HEADERS,
        long(
            b"".join(
                short(name) + b"S" + long(b"nonsense")
                for name in (b"x-inferfleet-code", b"x-inferfleet-attempts", b"x-inferfleet-died-at")
            )
        ),
    ),
    "CC": (HEADERS, long(short(b"CC") + b"A" + long(b"S" + long(b"nowhere")))),
    "x-death": (
        HEADERS,
        long(short(b"x-death") + b"A" + long(b"F" + long(short(b"count") + b"l" + bytes(8)))),
    ),
    "a content type that is not UTF-8": (CONTENT_TYPE, short(b"\xff" * 255)),
    "an encoding of 255 bytes": (ENCODING, short(b"g" * 255)),
    "a priority of 255": (PRIORITY, b"\xff"),
    "a correlation id that is not UTF-8": (CORRELATION_ID, short(b"\xff")),
    "a reply address that is not UTF-8": (REPLY_TO, short(b"\xff\xfe")),
    "a reply address with braces": (REPLY_TO, short(b"}{a b")),
    "a message id that is not UTF-8": (MESSAGE_ID, short(b"\xff" * 255)),
    "an empty message id": (MESSAGE_ID, short(b"")),
    "a time far away": (TIMESTAMP, b"\xff" * 8),
    "a type that is not UTF-8": (TYPE, short(b"inferfleet.\xff")),
    "an expiration": (EXPIRATION, short(b"60000000")),
    "a user": (USER_ID, short(b"guest")),
    "an application that is not UTF-8": (APP_ID, short(b"\xff")),
    "a cluster": (CLUSTER_ID, short(b"c")),
    "headers and a message id that is not UTF-8": (
        HEADERS | MESSAGE_ID,
        long(short(b"k") + b"S" + long(b"\xff")) + short(b"\xff"),
    ),
    "flags without a meaning": (HEADERS | 0b10, long(b"")),
    "nothing at all": (0, b""),
}


async def still_works(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("and now?", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_whatever_its_properties_are_a_message_is_buried_once_and_whole(
    fleet: Fleet,
    raw: RawPublisher,
    foreign: ForeignClient,
    start_worker: StartWorker,
    services: Services,
    pool: str,
) -> None:
    await start_worker()
    sent: list[bytes] = []
    for name, (flags, properties) in POISON.items():
        body = b"no job, but %s \x00\xff" % name.encode()
        if await raw.publish(flags, properties, body):
            sent.append(body)
    if services.kind is not ServicesChoice.EMBEDDED:
        # RabbitMQ refuses very few itself; the embedded broker whatever pamqp cannot read.
        assert len(sent) > len(POISON) - 3

    async def all_buried() -> bool:
        return await foreign.waiting(dead_queue(pool)) == len(sent)

    await eventually(all_buried)
    found: list[bytes] = []
    # aiormq reads each, so the readers of others can, too.
    for _ in sent:
        letter = await foreign.channel.basic_get(dead_queue(pool), no_ack=True)
        headers = letter.header.properties.headers or {}
        assert headers["x-inferfleet-code"] == "invalid_request"
        assert letter.header.properties.expiration is None
        found.append(letter.body)
    assert sorted(found) == sorted(sent)
    assert await foreign.waiting(dead_queue(pool)) == 0
    assert await foreign.waiting() == 0
    await still_works(fleet, pool)
