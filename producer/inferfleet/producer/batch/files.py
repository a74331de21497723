"""The files that a batch writes: its output, its error file, and the record that lets it continue.

Each line of the input ends as one line of the output or of the error file. Which lines are done is read from
these files alone, so no crash can make them disagree with another account of it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson
from pydantic import ValidationError

from inferfleet.producer.batch.line_ids import line_of
from inferfleet.schemas.batch import BatchOutputLine
from inferfleet.schemas.errors import BatchError, BatchOutputError
from inferfleet.schemas.wire_model import WireModel

ID_PREFIX: Final = "batch_req_"
"""In front of a job's id in a line of output, as in OpenAI's."""


class BatchRecord(WireModel):
    """What a batch is. It is written once, before the first job is submitted."""

    version: Literal[1] = 1
    id: str
    source: Path
    size: int
    sha256: str
    prompts: bool
    lines: int
    last_line: int
    errors: Path
    options: dict[str, Any]


def record_path(output: Path) -> Path:
    """Return where the record of the batch with this output is."""
    return output.with_name(f"{output.name}.batch")


def read_record(output: Path) -> BatchRecord | None:
    """Read the record of the batch with this output; ``None`` if there is none.

    Raises:
        BatchError: The record cannot be read.

    """
    path = record_path(output)
    try:
        return BatchRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BatchError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BatchError(f"{path} is not the record of a batch; use another output") from error


def write_record(output: Path, record: BatchRecord) -> None:
    """Write the record of a batch, so that either all of it is on disk or nothing.

    Raises:
        BatchOutputError: It cannot be written.

    """
    path = record_path(output)
    unfinished = path.with_name(f"{path.name}.new")
    try:
        with unfinished.open("wb") as file:
            file.write(record.model_dump_json(indent=2).encode())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


class LineSet:
    """A set of line numbers, one bit each."""

    def __init__(self, last_line: int) -> None:
        self._bits = bytearray(last_line // 8 + 1)

    def add(self, line: int) -> bool:
        """Add a line. Return whether it is new."""
        byte, bit = line >> 3, 1 << (line & 7)
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        return True

    def __contains__(self, line: int) -> bool:
        return bool(self._bits[line >> 3] & 1 << (line & 7))


class LineFile:
    """A file to which whole lines are appended, by one process at a time."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.lines = 0
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._written = False

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Generator[LineFile]:
        """Open the file, or make it, and keep other processes from writing to it.

        Raises:
            BatchError: Another run writes to it.
            BatchOutputError: It cannot be opened.

        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BatchError(
                    f"another run writes to {path}: wait until it has ended, or stop it with Ctrl-C"
                ) from error
            _sync_folder(path.parent)
            yield cls(path, fd)
        finally:
            os.close(fd)

    def take_up(self, batch_id: str, done: LineSet) -> None:
        """Add the lines that the file has to ``done``. Drop lines that a crash has damaged or doubled.

        Raises:
            BatchError: The file has lines of something else; nothing was changed behind the first of them.
            BatchOutputError: The file cannot be read or written.

        """
        begin = position = 0
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    moved = begin != position
                    begin += len(raw)
                    line = _line_of(raw, batch_id, place=f"{self.path}, line {number}")
                    if line is None or not done.add(line):
                        continue
                    whole = raw if raw.endswith(b"\n") else raw + b"\n"
                    if moved or whole != raw:
                        self._write(whole, position)
                    position += len(whole)
                    self.lines += 1
            os.ftruncate(self._fd, position)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._size = position

    def append(self, line: BatchOutputLine) -> None:
        """Append a line.

        Raises:
            BatchOutputError: The line cannot be written, for example because the disk is full. What was
                written of it is overwritten, or dropped when the batch continues.

        """
        raw = line.model_dump_json().encode() + b"\n"
        try:
            self._write(raw, self._size)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._size += len(raw)
        self.lines += 1
        self._written = True

    def sync(self) -> None:
        """Return once the lines so far are on disk.

        Raises:
            BatchOutputError: They cannot be written.

        """
        if not self._written:
            return
        self._written = False
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _write(self, raw: bytes, position: int) -> None:
        written = 0
        while written < len(raw):
            written += os.pwrite(self._fd, raw[written:], position + written)


def count_lines(path: Path, batch_id: str, done: LineSet) -> int:
    """Count the lines of a batch's file without changing it; none if it does not exist.

    Raises:
        BatchError: The file cannot be read, or has lines of something else.

    """
    try:
        with path.open("rb") as file:
            lines = (
                _line_of(raw, batch_id, place=f"{path}, line {number}")
                for number, raw in enumerate(file, start=1)
            )
            return sum(line is not None and done.add(line) for line in lines)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise BatchError(f"cannot read {path}: {error.strerror}") from error


def is_written(path: Path) -> bool:
    """Return whether a run writes to the file now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _line_of(raw: bytes, batch_id: str, *, place: str) -> int | None:
    """Return the number of the input line that a line of output is for; ``None`` if the line is damaged."""
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    name = cast("dict[str, object]", value).get("id") if isinstance(value, dict) else None
    line = line_of(batch_id, str(name).removeprefix(ID_PREFIX))
    if line is None:
        raise BatchError(f"{place} is not of this batch: remove that line, or use other files")
    return line


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> BatchOutputError:
    return BatchOutputError(f"cannot write {path}: {error.strerror}")
