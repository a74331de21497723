"""Files of the gateways: what is known of each, and when it expires. Their content is in a storage.

A file is noted for its expiry before its content is stored, so no content stays for ever, whatever dies.
"""

from __future__ import annotations

from typing import Any, Final

from inferfleet.schemas.batch import FileRecord
from inferfleet.schemas.names import FILES_KEY, file_key, tenant_files_key
from inferfleet.wire.redis.pages import Page, read_page
from inferfleet.wire.redis.pipeline import CommandPipeline

UNFINISHED_MS: Final = 24 * 3600 * 1000
"""How long the content of a file may take to be stored, at most."""

PUT_OFF_MS: Final = 3600 * 1000

EXPIRED_AT_ONCE: Final = 100


class FileRecords:
    """Reads and writes the records of files."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline

    def now_ms(self) -> int:
        """Return Redis' time."""
        return self._pipeline.clock.now_ms()

    async def note(self, file_id: str) -> None:
        """Note that content will be stored. It is removed after a day unless ``create`` has been called."""
        until_ms = self.now_ms() + UNFINISHED_MS
        await self._pipeline.execute("ZADD", FILES_KEY, until_ms, file_id)

    async def create(self, record: FileRecord) -> None:
        """Record a file whose content is stored. It can be read, and is not listed yet."""
        await self._pipeline.execute("ZADD", FILES_KEY, record.expires_ms, record.id)
        await self._pipeline.execute(
            "SET", file_key(record.id), record.model_dump_json(), "PXAT", record.expires_ms
        )

    async def enlist(self, record: FileRecord) -> None:
        """List a file among those of its tenant."""
        await self._pipeline.execute("ZADD", tenant_files_key(record.tenant), 0, record.id)

    async def read(self, file_id: str, *, tenant: str) -> FileRecord | None:
        """Read what is known of a file; ``None`` if the tenant has no such file."""
        value: bytes | None = await self._pipeline.execute("GET", file_key(file_id))
        record = None if value is None else FileRecord.model_validate_json(value)
        return record if record is not None and record.tenant == tenant else None

    async def page(
        self, tenant: str, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> Page[FileRecord]:
        """Read the tenant's files, from behind the id ``after``."""
        return await read_page(
            self._pipeline,
            tenant_files_key(tenant),
            lambda file_id: self.read(file_id, tenant=tenant),
            after=after,
            limit=limit,
            newest_first=newest_first,
            wanted=lambda record: purpose is None or record.purpose == purpose,
        )

    async def count(self, tenant: str) -> int:
        """Count the tenant's files; some of them may have expired."""
        return int(await self._pipeline.execute("ZCARD", tenant_files_key(tenant)))

    async def forget(self, record: FileRecord) -> None:
        """Delete a file's record. Its content becomes due for removal, like that of an expired file."""
        await self._pipeline.execute("ZADD", FILES_KEY, self.now_ms(), record.id)
        await self._pipeline.execute("DEL", file_key(record.id))
        await self._pipeline.execute("ZREM", tenant_files_key(record.tenant), record.id)

    async def expired(self) -> list[str]:
        """Return the ids of some files that have expired, or were deleted."""
        ids: Any = await self._pipeline.execute(
            *("ZRANGE", FILES_KEY, "-inf", self.now_ms(), "BYSCORE"),
            *("LIMIT", 0, EXPIRED_AT_ONCE),
        )
        return [file_id.decode() for file_id in ids]

    async def put_off(self, file_id: str) -> None:
        """Try again in an hour to remove the content of a file."""
        await self._pipeline.execute("ZADD", FILES_KEY, self.now_ms() + PUT_OFF_MS, file_id)

    async def removed(self, file_id: str) -> None:
        """Record that the content of a file is no longer stored."""
        await self._pipeline.execute("ZREM", FILES_KEY, file_id)
