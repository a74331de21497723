"""The records of batches, and pages of records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tests.unit.gateway_batches.conftest import order

from inferfleet.schemas import names
from inferfleet.wire.redis.batches import BatchRecords
from inferfleet.wire.redis.pages import read_page


async def test_a_short_page_reads_few_records() -> None:
    members = [f"{number:04}" for number in range(5000)]
    read: list[str] = []

    async def execute(*command: Any) -> list[bytes]:
        begin = members.index(command[2].removeprefix("(")) + 1 if command[2] != "-" else 0
        return [member.encode() for member in members[begin:][: command[-1]]]

    async def record(member: str) -> str:
        read.append(member)
        return member

    page = await read_page(
        cast("Any", SimpleNamespace(execute=execute)), "key", record, after=None, limit=2, newest_first=False
    )

    assert (page.records, page.more, len(read)) == (members[:2], True, 3)
    found = await read_page(
        cast("Any", SimpleNamespace(execute=execute)),
        *("key", record),
        after=None,
        limit=5000,
        newest_first=False,
        wanted=lambda member: member > "4990",
    )
    assert (found.records, found.more) == (members[4991:], False)


async def test_a_batch_runs_only_once_it_is_listed() -> None:
    commands: list[tuple[Any, ...]] = []

    async def execute(*command: Any) -> None:
        commands.append(command)

    records = BatchRecords(cast("Any", SimpleNamespace(execute=execute)))
    batch = order()
    await records.create(batch, ttl_s=1)

    assert {command[1] for command in commands[:2]} == {names.batch_key(batch.id)}
    assert commands[2][1] == names.tenant_batches_key(batch.tenant)
    assert commands[-1] == ("ZADD", names.BATCHES_KEY, batch.deadline_ms, batch.id)
