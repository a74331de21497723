"""Receives a file into the storage, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from inferfleet.gateway.batches.storage import PIECE_BYTES, Storage
from inferfleet.gateway.bodies import refused_unread
from inferfleet.gateway.hosts import foreign_form, is_own_origin
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.openai.refusals import RefusedError, bad_request
from inferfleet.producer.openai.requests import check_members

SLOWEST_BYTES_PER_S: Final = 16 * 1024
"""The slowest average speed of an upload, once ``read_timeout_s`` has passed."""

FIELD_BYTES: Final = 1024
FORM_BYTES: Final = 64 * 1024
"""How much longer than its file a form may be."""

MAX_NAME_CHARS: Final = 255

TTL_S: Final = range(3600, 30 * 24 * 3600 + 1)
"""For how long a caller may ask to keep a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that has been stored. ``ttl_s`` is how long to keep it; ``None`` if the caller has not said."""

    filename: str
    size: int
    ttl_s: int | None


async def receive(request: Request, settings: GatewaySettings, storage: Storage, name: str) -> Upload:
    """Store the file of a form under this name. If this raises, nothing is stored.

    Raises:
        RefusedError: The request is not such a form, or its file is too large or arrived too slowly.
        ClientDisconnect: The client has gone away.
        StorageError: The file cannot be stored.

    """
    _refuse_other_origins(request)
    form = _Form(_boundary(request), storage, name, settings)
    loop = asyncio.get_running_loop()
    declared = request.headers.get("content-length", "")
    began = loop.time()
    received = 0
    try:
        if declared.isdecimal() and int(declared) > settings.max_file_bytes + FORM_BYTES:
            raise _too_large(settings)
        async with asyncio.timeout(settings.read_timeout_s) as limit:
            async for part in request.stream():
                received += len(part)
                limit.reschedule(began + settings.read_timeout_s + received / SLOWEST_BYTES_PER_S)
                if received > settings.max_file_bytes + FORM_BYTES:
                    raise _too_large(settings)
                await form.take(part)
        upload = form.end()
        await form.store()
    except BaseException as error:
        await form.abandon()
        match error:
            case TimeoutError():
                raise refused_unread(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "body_timeout",
                    f"the file arrived too slowly; send at least {SLOWEST_BYTES_PER_S:,} bytes per second",
                ) from error
            case MultipartError():
                raise refused_unread(
                    HTTPStatus.BAD_REQUEST, "invalid_request", f"the form cannot be read: {error}"
                ) from error
            case _:
                raise
    return upload


def read_ttl(given: Mapping[str, Any], param: str) -> int | None:
    """Read OpenAI's expiration policy: seconds from when a file is created.

    Raises:
        RefusedError: It is not one.

    """
    if not given:
        return None
    check_members(given, ("anchor", "seconds"), f"{param}.")
    if given.get("anchor") != "created_at":
        raise bad_request(f"{param}.anchor: must be created_at", param=f"{param}.anchor")
    seconds = given.get("seconds")
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdecimal():
        seconds = int(seconds[:10])
    if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds not in TTL_S:
        raise bad_request(
            f"{param}.seconds: must be a whole number from {TTL_S.start} to {TTL_S.stop - 1}",
            param=f"{param}.seconds",
        )
    return seconds


class _Form:
    """Reads a form, whose fields may come in any order, and passes its file to the storage."""

    def __init__(self, boundary: str, storage: Storage, name: str, settings: GatewaySettings) -> None:
        self._parser = PushMultipartParser(boundary, max_segment_count=16)
        self._storage = storage
        self._name = name
        self._settings = settings
        self._file: Any = None
        self._under_way: asyncio.Future[None] | None = None
        self._pending = bytearray()
        self._field: bytearray | None = None
        self._segment: MultipartSegment | None = None
        self._filename: str | None = None
        self._size = 0
        self._fields: dict[str, str] = {}

    async def take(self, part: bytes) -> None:
        if not part:
            return
        for event in self._parser.parse(part):
            if isinstance(event, MultipartSegment):
                self._begin(event)
            elif event is None:
                self._end_of_segment()
            elif self._field is None:
                self._size += len(event)
                self._pending += event
            elif len(self._field) + len(event) <= FIELD_BYTES:
                self._field += event
            else:
                raise bad_request(
                    f"{self._name_of_field()}: is longer than {FIELD_BYTES:,} bytes",
                    param=self._name_of_field(),
                )
        if len(self._pending) >= PIECE_BYTES:
            await self._write()

    def end(self) -> Upload:
        self._parser.close()
        fields = self._fields
        if (purpose := fields.pop("purpose", None)) is None:
            raise bad_request("purpose: is missing", param="purpose")
        if purpose != "batch":
            raise bad_request(
                f"purpose: {purpose[:64]!r} is not batch: this gateway keeps files for batches only",
                param="purpose",
            )
        if self._filename is None:
            raise bad_request("file: is missing", param="file")
        if not self._size:
            raise bad_request("file: is empty", param="file")
        prefix = "expires_after["
        policy = {
            name.removeprefix(prefix).removesuffix("]"): fields.pop(name)
            for name in list(fields)
            if name.startswith(prefix)
        }
        if fields:
            name = next(iter(fields))
            raise bad_request(f"{name[:64]}: is not a field of this form", param=name[:64])
        return Upload(filename=self._filename, size=self._size, ttl_s=read_ttl(policy, "expires_after"))

    async def store(self) -> None:
        await self._write()
        file, self._file = self._file, None
        await self._apart(self._storage.finish, self._name, file)

    async def abandon(self) -> None:
        self._parser.close(check_complete=False)
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
        if self._file is not None:
            await self._storage.apart(self._storage.abandon, self._name, self._file)

    def _begin(self, segment: MultipartSegment) -> None:
        self._segment = segment
        if segment.name != "file":
            self._field = bytearray()
            return
        if self._filename is not None:
            raise bad_request("file: appears twice; send one file", param="file")
        self._filename = (segment.filename or "file").replace("\\", "/").rpartition("/")[2][:MAX_NAME_CHARS]

    def _end_of_segment(self) -> None:
        if self._field is not None:
            self._fields[self._name_of_field()] = self._field.decode(errors="replace")
            self._field = None

    def _name_of_field(self) -> str:
        return (self._segment and self._segment.name) or ""

    async def _write(self) -> None:
        if self._size > self._settings.max_file_bytes:
            raise _too_large(self._settings)
        content, self._pending = bytes(self._pending), bytearray()
        await self._apart(self._append, content)

    def _append(self, content: bytes) -> None:
        if self._file is None:
            self._file = self._storage.open_new(self._name)
        self._storage.write(self._name, self._file, content)

    async def _apart(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call the storage. If this is cancelled, the call goes on, and ``abandon`` waits for it."""
        self._under_way = asyncio.ensure_future(self._storage.apart(call, *arguments))
        await asyncio.shield(self._under_way)


def _too_large(settings: GatewaySettings) -> RefusedError:
    return refused_unread(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "file_too_large",
        f"the file is larger than {settings.max_file_bytes:,} bytes (INFERFLEET_MAX_FILE_BYTES)",
    )


def _boundary(request: Request) -> str:
    options: dict[str, str]
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise refused_unread(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "not_a_form",
            "send Content-Type: multipart/form-data, with the fields purpose and file",
        )
    return options["boundary"]


def _refuse_other_origins(request: Request) -> None:
    """Refuse a form that a browser sends for a page of another origin: no browser prevents that."""
    if is_own_origin(request.headers) is False:
        raise refused_unread(HTTPStatus.FORBIDDEN, "forbidden_origin", foreign_form(request.headers))
