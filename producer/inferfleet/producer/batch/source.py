"""Reads the input of a batch, a line at a time, and examines it before the first job is submitted."""

from __future__ import annotations

import codecs
import hashlib
import heapq
import sys
from array import array
from collections.abc import Callable, Generator, Iterable
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import from_json

from inferfleet.producer.batch.line_ids import MAX_LINES
from inferfleet.producer.job_making import LATER, OPTIONS_MEMBER
from inferfleet.schemas.batch import BatchRequestLine
from inferfleet.schemas.errors import BatchError, InvalidJobError
from inferfleet.schemas.problems import describe, kind

SORTED_AT_ONCE: Final = 65_536
"""How many hashes are sorted at once: a sorted list takes five times the memory of what it becomes."""

NO_TEXT: Final = (
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"PK\x03\x04", "compressed (zip)"),
    (b"\0", "binary"),
)
"""What tells from the first bytes of a file that it has no lines of text, and what it is then."""

LISTED: Final = 3
"""How many repeated ids an error names."""


class SourceLine(NamedTuple):
    """A line that is not blank, with its number, counted from 1, and where in the file it begins.

    ``text`` is ``None`` if the line is too long.
    """

    number: int
    text: bytes | None
    begin: int = 0


class Fingerprint(NamedTuple):
    """What tells whether a file has changed."""

    size: int
    sha256: str


class CustomIds:
    """Finds the ids that a file has more than once, with eight bytes of memory for each id."""

    def __init__(self) -> None:
        self._sorted: list[array[int]] = []
        self._some: list[int] = []

    def add(self, custom_id: str) -> None:
        """Add the id of a line."""
        self._some.append(_hash(custom_id))
        if len(self._some) == SORTED_AT_ONCE:
            self._sorted.append(array("Q", sorted(self._some)))
            self._some.clear()

    def repeated(self, lines: Callable[[], Iterable[SourceLine]]) -> Generator[tuple[int, int, str]]:
        """Yield the two line numbers and the id for each line that repeats an id. ``lines`` reads the file.

        Ids that only have the same hash are not repeated.
        """
        merged = heapq.merge(*self._sorted, sorted(self._some))
        hashes = {one for one, next_one in pairwise(merged) if one == next_one}
        if not hashes:
            return
        first: dict[str, int] = {}
        for number, text, _ in lines():
            try:
                custom_id = read_request(text).custom_id
            except InvalidJobError:
                continue
            if _hash(custom_id) in hashes and (before := first.setdefault(custom_id, number)) != number:
                yield before, number, custom_id


class Survey(NamedTuple):
    """What is known of an input before its batch begins: how many lines, and the number of the last."""

    fingerprint: Fingerprint
    prompts: bool
    lines: int
    last_line: int


def read_lines(
    source: Path, *, longest: int, size: int = sys.maxsize, since: SourceLine | None = None
) -> Generator[SourceLine]:
    """Read the lines of the first ``size`` bytes of a file, in constant memory; begin with ``since``.

    Raises:
        BatchError: The file cannot be read.

    """
    number, end = (since.number - 1, since.begin) if since else (0, 0)
    try:
        with source.open("rb") as file:
            file.seek(end)
            while raw := file.readline(min(longest + 1, size - end)):
                number, begin, end = number + 1, end, end + len(raw)
                whole = True
                while len(raw) > longest and not raw.endswith(b"\n"):
                    whole = False
                    if not (raw := file.readline(min(longest + 1, size - end))):
                        break
                    end += len(raw)
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if not whole:
                    yield SourceLine(number, None, begin)
                elif text := raw.strip():
                    yield SourceLine(number, text, begin)
    except OSError as error:
        raise BatchError(f"cannot read {source}: {error.strerror}") from error


def fingerprint(source: Path) -> Fingerprint:
    """Read a whole file and tell what is in it.

    Raises:
        BatchError: The file cannot be read.

    """
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Fingerprint(file.tell(), digest)
    except OSError as error:
        raise BatchError(f"cannot read {source}: {error.strerror}") from error


def survey(source: Path, *, longest: int, prompts: bool) -> Survey:
    """Examine a whole input: count its lines, and refuse what cannot become a batch.

    Without ``prompts``, the first line decides whether the lines are requests or prompts; if it is a prompt,
    no line may be a request. Takes eight bytes of memory for each line.

    Raises:
        BatchError: The file cannot be read, has no line, or no request, or two lines have the same
            ``custom_id``.

    """
    try:
        if not source.is_file() and source.exists():
            raise BatchError(f"{source} is not a file: a batch reads its input twice. Use `-` to read a pipe")
    except OSError as error:
        raise BatchError(f"cannot read {source}: {error.strerror}") from error
    before = fingerprint(source)
    declared = prompts
    lines = last_line = requests = 0
    first_text = b""
    first_problem = ""
    ids = CustomIds()
    for number, text, _ in read_lines(source, longest=longest):
        if text is not None and not first_text:
            first_text = text
            if what := next((what for start, what in NO_TEXT if start in text[:8]), ""):
                raise BatchError(f"{source} is {what}; a batch needs lines of text in UTF-8")
            prompts = prompts or not text.startswith(b"{")
        lines, last_line = lines + 1, number
        if prompts:
            if not declared and _is_request(text):
                raise BatchError(
                    f"line {number} of {source} is a request, but the first line is not. Each line must be a "
                    "whole request, with nothing before the first. If all lines are prompts, add --prompts"
                )
            continue
        try:
            ids.add(read_request(text).custom_id)
            requests += 1
        except InvalidJobError as error:
            first_problem = first_problem or f"line {number}: {error}"
    if not lines:
        raise BatchError(f"{source} has no lines")
    if last_line > MAX_LINES:
        raise BatchError(f"{source} has {last_line:,} lines; a batch may have {MAX_LINES:,}")
    if not prompts and not requests:
        raise BatchError(
            f"no line of {source} is a request; {first_problem}. Each line must be a whole request on one "
            'line: {"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}. If the '
            "lines are prompts, add --prompts"
        )
    repeated = ids.repeated(partial(read_lines, source, longest=longest))
    if problems := "; ".join(
        f"lines {before} and {number} have the same custom_id {custom_id!r}"
        for before, number, custom_id in islice(repeated, LISTED)
    ):
        raise BatchError(
            f"{source}: {problems}. Each request needs a custom_id of its own, which names its answer in the "
            "output"
        )
    return Survey(before, prompts, lines, last_line)


def read_request(text: bytes | None) -> BatchRequestLine:
    """Parse a line of OpenAI's format. The body is not checked.

    Raises:
        InvalidJobError: The line is not a request; the message quotes nothing of it.

    """
    try:
        # Not orjson, which turns integers of more than 64 bits into floats.
        value: object = from_json(_whole(text), allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJobError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InvalidJobError(f"must be an object, not {kind(value)}")
    try:
        request = BatchRequestLine.model_validate(value)
    except ValidationError as error:
        raise InvalidJobError(describe(error, data=cast("object", value))) from None
    for place, members in (("", cast("dict[str, Any]", value)), ("body.", request.body)):
        for name in (*LATER, OPTIONS_MEMBER):
            if name in members:
                raise InvalidJobError(
                    f"{place}{name}: a line of a batch has no options of its own, and starts as soon as it "
                    "can; submit it as a job"
                )
    return request


def custom_id_of(text: bytes | None) -> str | None:
    """Return the ``custom_id`` of a line that is not a request; ``None`` if it has none."""
    try:
        value: Any = from_json(text or b"")
    except ValueError:
        return None
    custom_id = cast("dict[str, Any]", value).get("custom_id") if isinstance(value, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def read_prompt(text: bytes | None) -> str:
    """Decode a line that is a prompt.

    Raises:
        InvalidJobError: The line is too long, or not UTF-8.

    """
    try:
        return _whole(text).decode()
    except UnicodeDecodeError as error:
        raise InvalidJobError(f"is not UTF-8 text ({error.reason})") from None


def _is_request(text: bytes | None) -> bool:
    """Return whether a line is a request, or some of a JSON array of them."""
    if text is None or not text.startswith((b"{", b"[")):
        return False
    elements = text.removeprefix(b"[").removesuffix(b"]").rstrip(b",")
    try:
        values: list[Any] = from_json(b"[" + elements + b"]")
    except ValueError:
        return False
    return any(isinstance(value, dict) and {"custom_id", "body"} <= value.keys() for value in values)


def _whole(text: bytes | None) -> bytes:
    if text is None:
        raise InvalidJobError("is longer than a request may be (INFERFLEET_MAX_BODY_BYTES)")
    return text


def _hash(custom_id: str) -> int:
    digest = hashlib.blake2b(custom_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
