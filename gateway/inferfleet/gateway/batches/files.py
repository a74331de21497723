"""The files of the gateways: Redis has their records, the storage their content."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import uuid_utils
from fastapi import Request

from inferfleet.gateway.batches.storage import Storage, StorageError
from inferfleet.gateway.batches.uploads import receive
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.background import background
from inferfleet.producer.openai.refusals import Refusal, RefusedError
from inferfleet.schemas.batch import FileRecord
from inferfleet.schemas.errors import InferfleetError
from inferfleet.wire.redis.files import FileRecords

logger = logging.getLogger(__name__)

SWEEP_S: Final = 60.0
"""How often the content of expired and deleted files is removed."""


class Files:
    """Stores, finds and deletes files."""

    def __init__(self, records: FileRecords, storage: Storage, settings: GatewaySettings) -> None:
        self.records = records
        self.storage = storage
        self._settings = settings

    @classmethod
    @asynccontextmanager
    async def opened(cls, records: FileRecords, settings: GatewaySettings) -> AsyncGenerator[Files | None]:
        """Open the storage that the settings name; ``None`` if they name none.

        Raises:
            ConfigurationError: The storage cannot be reached.

        """
        if not settings.files_url:
            yield None
            return
        storage = Storage(settings.files_url)
        try:
            await storage.apart(storage.check)
            files = cls(records, storage, settings)
            async with background(files.sweep()):
                yield files
        finally:
            storage.close()

    async def upload(self, request: Request, tenant: str) -> FileRecord:
        """Receive a file.

        Raises:
            RefusedError: The tenant has too many files; or what ``receive`` raises.

        """
        await self._check_number(tenant)
        file_id = new_file_id()
        await self.records.note(file_id)
        try:
            upload = await receive(request, self._settings, self.storage, content_of(file_id))
        except RefusedError:
            # Nothing is stored then.
            await self.records.removed(file_id)
            raise
        now_ms = self.records.now_ms()
        record = FileRecord(
            id=file_id,
            tenant=tenant,
            filename=upload.filename,
            purpose="batch",
            bytes=upload.size,
            created_ms=now_ms,
            expires_ms=now_ms + 1000 * (upload.ttl_s or self._settings.file_ttl_s),
        )
        await self.records.create(record)
        await self.records.enlist(record)
        return record

    async def store(
        self, filename: str, write: Callable[[Any], None], *, tenant: str, ttl_s: int
    ) -> FileRecord:
        """Store a file that a batch has produced. ``write`` runs in a thread. The file is not listed yet.

        Raises:
            StorageError: It cannot be stored.

        """
        file_id = new_file_id()
        await self.records.note(file_id)
        size = await self.storage.apart(self._write, content_of(file_id), write)
        now_ms = self.records.now_ms()
        record = FileRecord(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose="batch_output",
            bytes=size,
            created_ms=now_ms,
            expires_ms=now_ms + 1000 * ttl_s,
        )
        await self.records.create(record)
        return record

    async def _check_number(self, tenant: str) -> None:
        if await self.records.count(tenant) < self._settings.max_files:
            return
        # This removes those that have expired from the list.
        listed = await self.records.page(
            tenant, after=None, limit=self._settings.max_files, newest_first=False, purpose=None
        )
        if len(listed.records) == self._settings.max_files:
            raise RefusedError(
                Refusal(
                    status=HTTPStatus.FORBIDDEN,
                    code="too_many_files",
                    message=f"there are {self._settings.max_files:,} files, which is the limit "
                    "(INFERFLEET_MAX_FILES); delete some",
                    closes=True,
                )
            )

    def _write(self, name: str, write: Callable[[Any], None]) -> int:
        with self.storage.writing(name) as file:
            write(file)
            return int(file.tell())

    async def sweep(self) -> None:
        """Remove the content of files that have expired or were deleted, until cancelled."""
        while True:
            try:
                while expired := await self.records.expired():
                    for file_id in expired:
                        await self._remove(file_id)
            except InferfleetError as error:
                logger.warning("cannot remove expired files (%s)", error)
            except Exception:
                logger.exception("cannot remove expired files")
            await asyncio.sleep(SWEEP_S)

    async def _remove(self, file_id: str) -> None:
        try:
            await self.storage.apart(self.storage.remove, content_of(file_id))
        except StorageError as error:
            # The other files must not wait for this one.
            logger.warning("cannot remove the content of %s; trying again in an hour (%s)", file_id, error)
            await self.records.put_off(file_id)
        else:
            await self.records.removed(file_id)


def new_file_id() -> str:
    """Make the id of a file. Ids sort by time."""
    return f"file-{uuid_utils.uuid7().hex}"


def content_of(file_id: str) -> str:
    """Return the name under which the storage has the content of a file."""
    return f"files/{file_id}"
