"""Files that cannot be stored or removed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.gateway_batches.conftest import StuckStorage

from inferfleet.gateway.batches import files
from inferfleet.gateway.batches.files import Files
from inferfleet.producer.background import background
from inferfleet.producer.openai.refusals import RefusedError, bad_request
from inferfleet.schemas.job import DEFAULT_TENANT


class Expired:
    """Files that have expired."""

    def __init__(self, *file_ids: str) -> None:
        self.file_ids = list(file_ids)
        self.swept = asyncio.Event()

    async def expired(self) -> list[str]:
        if not self.file_ids:
            self.swept.set()
        return list(self.file_ids)

    async def note(self, file_id: str) -> None:
        self.file_ids.append(file_id)

    async def count(self, _: str) -> int:
        return 0

    async def removed(self, file_id: str) -> None:
        self.file_ids.remove(file_id)

    put_off = removed


async def test_a_file_that_cannot_be_removed_holds_up_no_other() -> None:
    records, storage = Expired("bad", "good", "bad too", "good, too"), StuckStorage()
    async with background(Files(cast("Any", records), cast("Any", storage), cast("Any", None)).sweep()):
        await asyncio.wait_for(records.swept.wait(), 30)

    assert storage.removed == ["files/good", "files/good, too"]


async def test_expired_files_are_removed_whatever_has_gone_wrong_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "SWEEP_S", 0.0)
    records, storage = Expired("good"), StuckStorage()
    real, troubles = records.expired, [ValueError("no answer of Redis")]

    async def expired() -> list[str]:
        if troubles:
            raise troubles.pop()
        return await real()

    monkeypatch.setattr(records, "expired", expired)
    async with background(Files(cast("Any", records), cast("Any", storage), cast("Any", None)).sweep()):
        await asyncio.wait_for(records.swept.wait(), 30)

    assert storage.removed == ["files/good"]


async def test_an_upload_that_is_refused_leaves_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive(*_: Any) -> None:
        raise bad_request("no form")

    monkeypatch.setattr(files, "receive", receive)
    records, settings = Expired(), SimpleNamespace(max_files=1)
    with pytest.raises(RefusedError):
        await Files(cast("Any", records), cast("Any", None), cast("Any", settings)).upload(
            cast("Any", None), DEFAULT_TENANT
        )

    assert records.file_ids == []
