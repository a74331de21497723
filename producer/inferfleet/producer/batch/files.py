"""The files that a batch writes: its output, its error file, and the record that lets it continue.

Each line of the input ends as one line of the output or of the error file. Which lines are done is read from
these files alone, so no crash can make them disagree with another account of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson
from pydantic import ValidationError

from inferfleet.producer.batch.line_ids import TRIES, line_of, try_of
from inferfleet.schemas.batch import BatchOutputLine
from inferfleet.schemas.errors import BatchError, BatchOutputError
from inferfleet.schemas.wire_model import WireModel

ID_PREFIX: Final = "batch_req_"
"""In front of a job's id in a line of output, as in OpenAI's."""

LOCK_PAUSES_S: Final = (0.0, 0.1, 0.4)
"""The pauses before attempts to lock a file."""

COPIED_AT_ONCE: Final = 1 << 20
"""How many bytes of a file are in memory while it is copied."""


class BatchRecord(WireModel):
    """What a batch is. It is written before the first job is submitted, and whenever failed lines run again.

    ``retries`` counts how often they did: errors of earlier tries are void. ``errors`` is relative to the
    folder of the output if it is there, so that both can be moved.
    """

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
    retries: int = 0

    @property
    def first_try(self) -> int:
        """The first try of a line that is not done."""
        return self.retries * TRIES

    def error_file(self, output: Path) -> Path:
        """Return where the lines without an answer are, if the output is there."""
        return output.absolute().parent / self.errors


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


def stop_path(output: Path) -> Path:
    """Return which file tells the run of the batch with this output to stop, while it exists."""
    return output.with_name(f"{output.name}.stop")


def forget_stop(output: Path) -> None:
    """Remove the file that tells a run to stop, if it is there.

    Raises:
        BatchOutputError: It cannot be removed.

    """
    path = stop_path(output)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


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
        sync_folder(path.parent)
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
        self._synced = -1
        self._syncing = threading.Lock()
        self._lost: BatchOutputError | None = None

    @classmethod
    @contextmanager
    def opened(cls, path: Path, *, make: bool) -> Generator[LineFile]:
        """Open the file, and keep other processes from writing to it. With ``make`` it need not exist.

        Raises:
            BatchError: Another run writes to it, or it has been moved away.
            BatchOutputError: It cannot be opened.

        """
        try:
            fd = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        except OSError as error:
            if not make and isinstance(error, FileNotFoundError):
                raise BatchError(
                    f"{path} has been moved or deleted since its batch began: bring it back, or delete the "
                    ".batch file to begin anew"
                ) from error
            raise _unwritable(path, error) from error
        file = cls(path, fd)
        try:
            try:
                _lock(fd, path)
                sync_folder(path.parent)
            except OSError as error:
                raise _unwritable(path, error) from error
            yield file
        finally:
            os.close(file._fd)

    def take_up(self, batch_id: str, done: LineSet, *, first_try: int = 0) -> None:
        """Add the lines that the file has to ``done``. Drop lines that a crash has damaged or doubled.

        Also drops lines of tries before ``first_try``.

        Raises:
            BatchError: The file has lines of something else; nothing was changed after the first of them.
            BatchOutputError: The file cannot be read or written.

        """
        self.lines = 0
        kept = [range(0)]
        begin = 0
        raw = b""
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    place = range(begin, begin := begin + len(raw))
                    where = f"{self.path}, line {number}"
                    line = answered_line(raw, batch_id, first_try=first_try, place=where)
                    if line is None or not done.add(line):
                        continue
                    self.lines += 1
                    if kept[-1].stop == place.start:
                        kept[-1] = range(kept[-1].start, place.stop)
                    else:
                        kept.append(place)
            if len(kept) > 1:
                self._copy(kept)
            self._size = sum(map(len, kept))
            os.ftruncate(self._fd, self._size)
            if kept[-1].stop == begin and raw and not raw.endswith(b"\n"):
                self._write(b"\n", self._size)
                self._size += 1
        except OSError as error:
            raise _unwritable(self.path, error) from error

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

    def sync(self) -> None:
        """Return once the lines so far are on disk. Several threads may call this.

        Raises:
            BatchOutputError: They cannot be written, or could not be earlier: the kernel says so only once.

        """
        with self._syncing:
            if self._lost is None and (size := self._size) != self._synced:
                try:
                    os.fsync(self._fd)
                except OSError as error:
                    self._lost = _unwritable(self.path, error)
                self._synced = size
        if self._lost is not None:
            raise self._lost

    def _copy(self, places: list[range]) -> None:
        """Put a copy of these parts in the place of the file.

        If the parts were moved within the file, a crash meanwhile could damage whole lines.
        """
        path = self.path.resolve()
        copy = path.with_name(f"{path.name}.new")
        fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.fstat(self._fd).st_mode)
        try:
            _lock(fd, copy)
            with os.fdopen(fd, "wb", closefd=False) as file:
                for place in places:
                    for begin in place[::COPIED_AT_ONCE]:
                        count = min(COPIED_AT_ONCE, place.stop - begin)
                        file.write(os.pread(self._fd, count, begin))
            os.fsync(fd)
            copy.replace(path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        sync_folder(path.parent)

    def _write(self, raw: bytes, position: int) -> None:
        written = 0
        while written < len(raw):
            written += os.pwrite(self._fd, raw[written:], position + written)


def count_lines(path: Path, batch_id: str, done: LineSet, *, first_try: int = 0) -> int:
    """Count the lines of a batch's file that ``take_up`` keeps; none if it does not exist.

    Raises:
        BatchError: The file cannot be read, or has lines of something else.

    """
    try:
        with path.open("rb") as file:
            lines = (
                answered_line(raw, batch_id, first_try=first_try, place=f"{path}, line {number}")
                for number, raw in enumerate(file, start=1)
            )
            return sum(line is not None and done.add(line) for line in lines)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise BatchError(f"cannot read {path}: {error.strerror}") from error


def is_written(path: Path) -> bool:
    """Return whether a run writes to the file now.

    Raises:
        BatchError: The file cannot be read or locked.

    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise BatchError(f"cannot tell whether a run writes to {path}: {error.strerror}") from error
    return False


def answered_line(raw: bytes, batch_id: str, *, place: str, first_try: int = 0) -> int | None:
    """Return the number of the input line that a line of output is for; ``None`` if it is damaged or void.

    Raises:
        BatchError: The line is of another batch.

    """
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    name = cast("dict[str, object]", value).get("id") if isinstance(value, dict) else None
    job_id = str(name).removeprefix(ID_PREFIX)
    line = line_of(batch_id, job_id)
    if line is None:
        raise BatchError(f"{place} is not of this batch: remove that line, or use other files")
    return None if try_of(job_id) < first_try else line


def sync_folder(folder: Path) -> None:
    """Return once the names of a folder are on disk, where its permissions and file system allow that.

    Raises:
        OSError: The disk fails.

    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    """Keep other processes from writing to a file until it is closed.

    Raises:
        BatchError: Another process writes to it, or has put another file in its place.
        OSError: The file system has no locks.

    """
    for pause_s in LOCK_PAUSES_S:
        # Whoever asks whether a run is going on locks the file for a moment.
        time.sleep(pause_s)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return
            break
    raise BatchError(f"another run writes to {path}: wait until it has ended, or stop it with Ctrl-C")


def _unwritable(path: Path, error: OSError) -> BatchOutputError:
    return BatchOutputError(f"cannot write {path}: {error.strerror}")
