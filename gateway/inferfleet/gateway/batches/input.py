"""Examines the input of a batch, and puts its lines into the order in which they run.

Lines with the same model and the same beginning of their prompts run one after the other, so that an engine's
prefix cache has what they share. The order is sorted on disk, so it takes no more memory for a long file.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import orjson
from pydantic import ValidationError
from pydantic_core import from_json

from inferfleet.producer.batch.source import CustomIds, SourceLine, read_lines, read_request
from inferfleet.schemas.batch import BatchProblem, BatchRequestLine
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import InvalidJobError

MOST_PROBLEMS: Final = 100

SORTED_AT_ONCE: Final = 65_536

KEY_BYTES: Final = 40
_RECORD: Final = struct.Struct(f">{KEY_BYTES}sQQ")
"""What a line is sorted by, its number, and where in the file it begins."""
_PLACE: Final = struct.Struct(">QQ")

BEGINNING_BYTES: Final = 1024
"""How much of a prompt counts as its beginning, besides its system messages and tools."""

_CODES: Final = {"custom_id": "invalid_custom_id", "method": "invalid_method", "url": "invalid_url"}


class Input(NamedTuple):
    """An examined input: how many lines it has, and the number of the last one; or its problems."""

    path: Path
    longest: int
    lines: int
    last_line: int
    problems: tuple[BatchProblem, ...]
    order: Path

    def in_order(self) -> Generator[SourceLine]:
        """Read the lines in the order in which they run."""
        with self.order.open("rb") as file:
            while places := file.read(_PLACE.size * 1024):
                for number, begin in _PLACE.iter_unpack(places):
                    yield self.read_again(SourceLine(number, None, begin))

    def read_again(self, line: SourceLine) -> SourceLine:
        """Read a line again, whose number and place are known."""
        return next(read_lines(self.path, longest=self.longest, since=line))


def examine(path: Path, *, endpoint: Endpoint, longest: int, most: int, folder: Path) -> Input:
    """Examine a file, whose lines must be requests to an endpoint. Temporary files go into ``folder``.

    Takes eight bytes of memory for each line.

    Raises:
        BatchError: The file cannot be read.

    """
    problems: list[BatchProblem] = []
    ids = CustomIds()
    order = _Order(folder)
    lines = last_line = 0
    for line in read_lines(path, longest=longest):
        lines, last_line = lines + 1, line.number
        if lines > most:
            problems = [_problem("too_many_lines", f"the file has more than {most:,} lines")]
            break
        try:
            request = read_request(line.text)
        except InvalidJobError as error:
            problems.append(_what_is_wrong(line, error))
        else:
            ids.add(request.custom_id)
            order.add(line, request)
            if request.url != endpoint:
                problems.append(
                    _problem(
                        "invalid_url", f"must be {endpoint}, the endpoint of the batch", line.number, "url"
                    )
                )
        if len(problems) == MOST_PROBLEMS:
            break
    else:
        repeated = ids.repeated(partial(read_lines, path, longest=longest))
        for before, number, _ in islice(repeated, MOST_PROBLEMS - len(problems)):
            problems.append(
                _problem(
                    "duplicate_custom_id", f"is also the custom_id of line {before}", number, "custom_id"
                )
            )
        problems.sort(key=lambda problem: problem.line or 0)
    if not lines:
        problems.append(_problem("empty_file", "the file has no lines"))
    return Input(path, longest, lines, last_line, tuple(problems), order.end())


def prefix_key(request: BatchRequestLine) -> bytes:
    """Return what lines are sorted by: model, system messages and tools, and the prompt's beginning."""
    body = request.body
    system: list[Any] = [body.get("tools")]
    rest: object = body.get("prompt", body.get("input"))
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in cast("list[object]", messages):
            said = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
            if said.get("role") not in ("system", "developer"):
                rest = said.get("content")
                break
            system.append(said)
    beginning = _text(rest)[:BEGINNING_BYTES]
    return (
        _hash(_text(body.get("model"))) + _hash(_text(system)) + beginning[:16].ljust(16) + _hash(beginning)
    )


class _Order:
    """Sorts what it is given on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "order"
        self._sorted = folder / "sorted"
        self._records: list[bytes] = []
        self._sizes: list[int] = []

    def add(self, line: SourceLine, request: BatchRequestLine) -> None:
        self._records.append(_RECORD.pack(prefix_key(request), line.number, line.begin))
        if len(self._records) == SORTED_AT_ONCE:
            self._sort()

    def end(self) -> Path:
        self._sort()
        with self._path.open("wb") as file:
            for record in heapq.merge(*self._runs()):
                file.write(record[KEY_BYTES:])
        self._sorted.unlink()
        return self._path

    def _sort(self) -> None:
        self._records.sort()
        with self._sorted.open("ab") as file:
            file.write(b"".join(self._records))
        self._sizes.append(len(self._records))
        self._records.clear()

    def _runs(self) -> Iterator[Iterator[bytes]]:
        begin = 0
        for size in self._sizes:
            yield self._run(begin, begin := begin + size * _RECORD.size)

    def _run(self, begin: int, end: int) -> Iterator[bytes]:
        with self._sorted.open("rb") as file:
            file.seek(begin)
            while begin < end:
                some = file.read(min(_RECORD.size * 128, end - begin))
                begin += len(some)
                for at in range(0, len(some), _RECORD.size):
                    yield some[at : at + _RECORD.size]


def _text(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="replace")
    try:
        return orjson.dumps(value)
    except TypeError:
        # It has numbers that orjson cannot write. Such lines are sorted as if they had nothing here.
        return b""


def _hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()


def _what_is_wrong(line: SourceLine, error: InvalidJobError) -> BatchProblem:
    if line.text is None:
        return _problem("line_too_long", str(error), line.number)
    try:
        value: object = from_json(line.text, allow_inf_nan=False)
    except ValueError:
        return _problem("invalid_json_line", "this line is not parseable as valid JSON", line.number)
    try:
        BatchRequestLine.model_validate(value)
    except ValidationError as invalid:
        problem = invalid.errors(include_input=False, include_url=False)[0]
        param = str(problem["loc"][0]) if problem["loc"] else None
        code = _CODES.get(param or "", "invalid_request")
        if problem["type"] == "missing":
            code = "missing_required_parameter"
        return _problem(code, str(error), line.number, param)
    return _problem("invalid_request", str(error), line.number)


def _problem(code: str, message: str, line: int | None = None, param: str | None = None) -> BatchProblem:
    return BatchProblem(code=code, message=message, line=line, param=param)
