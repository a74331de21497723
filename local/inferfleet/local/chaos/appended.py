"""Every result that any Redis server has ever acknowledged, read from their append-only files.

A failover forgets what the new master did not have, and the old master deletes its files when it follows the
new one. So the files are opened as soon as they exist, and read although they were deleted. With
``appendfsync always`` they hold everything that a client was told.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis

from inferfleet.schemas.names import job_key, result_key

POLL_INTERVAL_S = 0.1
BATCH = 200

_RESULT = re.compile(
    re.escape(result_key("\0")).replace("\0", "([0-9A-Za-z_-]+)").encode() + rb"\r\n\$(\d+)\r\n"
)
_LONGEST_MATCH = 512


class AppendedResults:
    """The results in the append-only files of some Redis servers, by their data folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._files: dict[tuple[int, int], _File] = {}
        self._digests: defaultdict[str, set[bytes]] = defaultdict(set)

    async def follow(self) -> None:
        """Open new files, until cancelled."""
        try:
            while True:
                self._discover()
                await asyncio.sleep(POLL_INTERVAL_S)
        finally:
            for file in self._files.values():
                os.close(file.descriptor)

    async def lost(self, redis: aioredis.Redis, job_ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs that had a result which is not the one that Redis has."""
        await asyncio.to_thread(self._read)
        ended = [job_id for job_id in job_ids if job_id in self._digests]
        lost: set[str] = set()
        for first in range(0, len(ended), BATCH):
            some = ended[first : first + BATCH]
            stored: list[Any] = await redis.mget([result_key(job_id) for job_id in some])
            lost |= {
                job_id
                for job_id, result in zip(some, stored, strict=True)
                if self._digests[job_id] - {_digest(result or b"")}
            }
        return frozenset(lost)

    async def unknown(self, redis: aioredis.Redis, job_ids: Collection[str]) -> set[str]:
        """Return those of these jobs that had a result, and of which Redis has no record."""
        lost = await self.lost(redis, job_ids)
        return {job_id for job_id in lost if not await redis.exists(job_key(job_id))}

    def _discover(self) -> None:
        for folder in self._folders:
            for path in folder.glob("appendonlydir/*incr*"):
                # A file may be gone before it is opened only if it was there for less than an interval.
                with suppress(FileNotFoundError):
                    descriptor = os.open(path, os.O_RDONLY)
                    status = os.fstat(descriptor)
                    identity = (status.st_dev, status.st_ino)
                    if identity in self._files:
                        os.close(descriptor)
                    else:
                        self._files[identity] = _File(descriptor)

    def _read(self) -> None:
        for file in list(self._files.values()):
            while text := os.pread(file.descriptor, 1 << 24, file.offset):
                end = self._take(text)
                if end == 0:
                    break
                file.offset += end

    def _take(self, text: bytes) -> int:
        """Take the results from a part of a file. Return how much of it is done with."""
        for found in _RESULT.finditer(text):
            job_id, size = found[1].decode(), int(found[2])
            value = text[found.end() : found.end() + size]
            if len(value) < size:
                return found.start()
            self._digests[job_id].add(_digest(value))
        return max(0, len(text) - _LONGEST_MATCH)


@dataclass(slots=True)
class _File:
    descriptor: int
    offset: int = 0


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=16).digest()
