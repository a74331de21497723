"""Files, as in OpenAI's API: what batches read and write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from starlette.types import Receive, Scope, Send

from inferfleet.gateway.batches.files import Files, content_of
from inferfleet.gateway.batches.storage import Storage
from inferfleet.gateway.batches.uploads import TTL_S
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.documents import COUNT, STRING, answer, list_of, members
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.json_answer import json_answer
from inferfleet.gateway.waiting import until_gone
from inferfleet.producer.openai.lists import list_page
from inferfleet.producer.openai.refusals import RefusedError, bad_request, not_found
from inferfleet.schemas.batch import FileRecord
from inferfleet.wire.tasks import cancel_and_wait

_ID: Final = re.compile(r"file-[0-9a-f]{32}", re.ASCII)

Limit = Annotated[int, Query(ge=1, le=10_000, description="The most files to list.")]
After = Annotated[str | None, Query(description="The last id of the previous page.")]
Purpose = Annotated[str | None, Query(description="Only files with this purpose.")]


_FORM: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "minLength": 1},
        "purpose": {"enum": ["batch"]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": TTL_S.start, "maximum": TTL_S.stop - 1},
    },
    "additionalProperties": False,
}
_UPLOAD: Final[Mapping[str, Any]] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
}
_FILE: Final = members(
    id=STRING, object={"const": "file"}, bytes=COUNT, created_at=COUNT, expires_at=COUNT, filename=STRING
)
_CONTENT: Final[Mapping[int | str, dict[str, Any]]] = {
    HTTPStatus.OK.value: {"description": "The file.", "content": {"application/octet-stream": {}}}
}
_DELETED: Final = members(id=STRING, object={"const": "file"}, deleted={"const": True})


def file_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1/files", tags=["Files and batches"])

    @router.post("", openapi_extra=dict(_UPLOAD), responses=answer(_FILE))
    async def upload(request: Request) -> Response:
        """Upload a file, at most ``INFERFLEET_MAX_FILE_BYTES`` long, with the requests of a batch."""
        record = await files_of(gateway).upload(request, caller_of(request).tenant)
        return json_answer(_described(record))

    @router.get("", responses=answer(list_of(_FILE)))
    async def list_files(
        request: Request,
        after: After = None,
        limit: Limit = 10_000,
        order: Literal["asc", "desc"] = "desc",
        purpose: Purpose = None,
    ) -> Response:
        """List files by the time of their creation."""
        files = files_of(gateway)
        if after is not None and not _ID.fullmatch(after):
            raise bad_request(f"after: {after[:64]!r} is not the id of a file", param="after")
        page = await files.records.page(
            caller_of(request).tenant,
            after=after,
            limit=limit,
            newest_first=order == "desc",
            purpose=purpose,
        )
        return json_answer(list_page(list(map(_described, page.records)), more=page.more))

    @router.get("/{file_id}", responses=answer(_FILE))
    async def retrieve(request: Request, file_id: str) -> Response:
        """Return what is known of a file, without its content."""
        return json_answer(_described(await find_file(gateway, file_id, caller_of(request).tenant)))

    @router.get("/{file_id}/content", response_class=Response, responses=dict(_CONTENT))
    async def content(request: Request, file_id: str) -> Response:
        """Download a file."""
        record = await find_file(gateway, file_id, caller_of(request).tenant)
        storage = files_of(gateway).storage
        pieces = storage.read(content_of(record.id))
        try:
            first: bytes = await storage.apart(_next, pieces)
        except FileNotFoundError as error:
            raise _unknown(file_id) from error
        return ContentResponse(
            record, first, pieces, storage=storage, stalled_s=gateway.settings.read_timeout_s
        )

    @router.delete("/{file_id}", responses=answer(_DELETED))
    async def delete(request: Request, file_id: str) -> Response:
        """Delete a file. A batch that has begun has a copy of its input."""
        record = await find_file(gateway, file_id, caller_of(request).tenant)
        await files_of(gateway).records.forget(record)
        return json_answer({"id": record.id, "object": "file", "deleted": True})

    return router


def files_of(gateway: Gateway) -> Files:
    """Return the files of a gateway.

    Raises:
        RefusedError: The gateway has no storage for them.

    """
    if gateway.files is None:
        raise not_found(
            "this gateway has no storage for files and batches (INFERFLEET_FILES_URL)", code="no_storage"
        )
    return gateway.files


async def find_file(gateway: Gateway, file_id: str, tenant: str, *, param: str | None = None) -> FileRecord:
    """Find a file of a tenant.

    Raises:
        RefusedError: The tenant has no such file.

    """
    files = files_of(gateway)
    record = await files.records.read(file_id, tenant=tenant) if _ID.fullmatch(file_id) else None
    if record is None:
        raise _unknown(file_id, param=param)
    return record


class ContentResponse(Response):
    """Sends a file piece by piece, until its end, or until the client disconnects or stops reading."""

    def __init__(
        self,
        record: FileRecord,
        first: bytes,
        rest: Iterator[bytes],
        *,
        storage: Storage,
        stalled_s: float,
    ) -> None:
        self.status_code = HTTPStatus.OK
        self.background = None
        self.init_headers(
            {
                "content-type": "application/octet-stream",
                "content-length": str(record.bytes),
                "content-disposition": f"attachment; filename*=UTF-8''{quote(record.filename, safe='')}",
                "x-content-type-options": "nosniff",
            }
        )
        self._first = first
        self._rest = rest
        self._storage = storage
        self._stalled_s = stalled_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        sending = asyncio.create_task(self._send_all(send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await cancel_and_wait(sending, gone)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        piece = self._first
        while piece:
            async with asyncio.timeout(self._stalled_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await self._storage.apart(_next, self._rest)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _next(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")


def _described(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": record.created_ms // 1000,
        "expires_at": record.expires_ms // 1000,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def _unknown(file_id: str, *, param: str | None = None) -> RefusedError:
    return not_found(f"there is no file {file_id[:64]!r}", code="file_not_found", param=param)
