"""Keeps the output of a batch while it runs, in parts, and joins them at its end.

Each part is a file of the storage that is written once, because a bucket cannot append, and because a write
that was given up may still be under way. A line is done when a part has it: nothing else records that. Two
runners may write the same line, if one of them was taken for dead: whoever reads the parts takes the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

import orjson

from inferfleet.gateway.batches.storage import Storage, StorageError
from inferfleet.producer.batch.files import ID_PREFIX, LineSet, answered_line
from inferfleet.producer.batch.line_ids import line_of
from inferfleet.schemas.batch import BatchOutputLine, BatchProgress
from inferfleet.schemas.errors import BatchError

logger = logging.getLogger(__name__)

ANSWERS: Final = "answers"
ERRORS: Final = "errors"
KINDS: Final = (ANSWERS, ERRORS)

PART_BYTES: Final = 4 << 20
"""How long a part is at least, unless ``PART_S`` has passed."""

PART_S: Final = 5.0
"""How long lines wait for others, so that they are stored together."""

FULL_BYTES: Final = 4 * PART_BYTES
"""How many bytes may wait for the storage before the batch has to wait, too."""

TICK_S: Final = 0.2
RETRY_S: Final = 2.0


class _Waiting(NamedTuple):
    """A line that waits to be stored, and the tokens of its answer."""

    kind: str
    raw: bytes
    usage: Mapping[str, int]


class Parts:
    """The parts of a batch's output. ``done`` are the lines that are in a part, or wait to be."""

    def __init__(self, storage: Storage, batch_id: str, *, folder: str, runner: str, lines: int, last: int):
        self.done = LineSet(last)
        self.progress = BatchProgress(total=lines)
        """What is stored."""
        self._storage = storage
        self._batch_id = batch_id
        self._last = last
        self._folder = folder
        self._runner = runner
        self._number = 0
        self._waiting: list[_Waiting] = []
        self._bytes = 0
        self._since: float | None = None
        self._storing = asyncio.Lock()

    @property
    def full(self) -> bool:
        """Whether so much waits for the storage that nothing should be added."""
        return self._bytes >= FULL_BYTES

    async def take_up(self) -> None:
        """Read which lines are done.

        Raises:
            StorageError: The parts cannot be read.

        """
        self.progress = await self._storage.apart(self._read, self.done)

    def append(self, line: BatchOutputLine) -> bool:
        """Add a line, to be stored soon. Return false if it is there already."""
        number = line_of(self._batch_id, line.id.removeprefix(ID_PREFIX))
        if number is None or not self.done.add(number):
            return False
        answered = line.response is not None and line.response.status_code == HTTPStatus.OK
        raw = line.model_dump_json().encode() + b"\n"
        usage = _usage(line.response.body if line.response and answered else {})
        self._waiting.append(_Waiting(ANSWERS if answered else ERRORS, raw, usage))
        self._bytes += len(raw)
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        return True

    async def keep_storing(self) -> None:
        """Store lines as they come, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            overdue = self._since is not None and (asyncio.get_running_loop().time() - self._since >= PART_S)
            if overdue or self._bytes >= PART_BYTES:
                try:
                    await self.store()
                except StorageError as error:
                    logger.warning(
                        "cannot store a part of the output of batch %s; trying again (%s)",
                        self._batch_id,
                        error,
                    )
                    await asyncio.sleep(RETRY_S)

    async def store(self) -> None:
        """Store the lines that wait.

        Raises:
            StorageError: They cannot be stored. They keep waiting.

        """
        async with self._storing:
            some = self._waiting[:]
            since, self._since = self._since, None
            try:
                for kind in KINDS:
                    if content := b"".join(line.raw for line in some if line.kind == kind):
                        self._number += 1
                        name = f"{self._folder}/{kind}-{self._runner}-{self._number:08}"
                        await self._storage.apart(self._write, name, content)
            except StorageError:
                self._since = since
                raise
            del self._waiting[: len(some)]
            self._bytes -= sum(len(line.raw) for line in some)
            self.progress = _with_lines(self.progress, some)

    def join(self, kind: str, file: Any, seen: LineSet) -> int:
        """Write all lines of a kind that are not in ``seen`` to a file, and return how many. This blocks."""
        count = 0
        for raw, number in self._lines(kind):
            if seen.add(number):
                file.write(raw)
                count += 1
        return count

    def _read(self, done: LineSet) -> BatchProgress:
        progress = self.progress
        for kind in KINDS:
            for raw, number in self._lines(kind):
                if done.add(number):
                    usage: Mapping[str, int] = _usage_of(raw) if kind == ANSWERS else {}
                    progress = _with_lines(progress, [_Waiting(kind, b"", usage)])
        return progress

    def _lines(self, kind: str) -> Iterator[tuple[bytes, int]]:
        """Read all lines of a kind, except those that a crash has cut off, or that are not of this batch."""
        for name in self._storage.names(self._folder):
            if name.rpartition("/")[2].startswith(f"{kind}-"):
                for raw in self._storage.lines(name):
                    try:
                        number = answered_line(raw, self._batch_id, place=name)
                    except BatchError as error:
                        # Nobody can repair it, and it must not keep the batch from its end.
                        logger.warning(
                            "ignoring a line of the output of batch %s (%s)", self._batch_id, error
                        )
                        continue
                    if number is not None and number <= self._last:
                        yield (raw if raw.endswith(b"\n") else raw + b"\n"), number

    def _write(self, name: str, content: bytes) -> None:
        with self._storage.writing(name) as file:
            self._storage.write(name, file, content)


def _usage_of(raw: bytes) -> Mapping[str, int]:
    """Return the tokens of a stored answer; none if it has another form, which must not hold up its batch."""
    return _usage(_member(_member(orjson.loads(raw), "response"), "body"))


def _usage(body: object) -> Mapping[str, int]:
    """Return the numbers of an answer's usage. A server may have put anything there."""
    usage = _member(body, "usage")
    if not isinstance(usage, dict):
        return {}
    counts = cast("dict[str, object]", usage)
    return {name: count for name, count in counts.items() if type(count) is int and count >= 0}


def _member(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def _with_lines(progress: BatchProgress, lines: Sequence[_Waiting]) -> BatchProgress:
    answers = [line.usage for line in lines if line.kind == ANSWERS]
    return progress.model_copy(
        update={
            "completed": progress.completed + len(answers),
            "failed": progress.failed + len(lines) - len(answers),
            "input_tokens": progress.input_tokens + sum(each.get("prompt_tokens", 0) for each in answers),
            "output_tokens": progress.output_tokens
            + sum(each.get("completion_tokens", 0) for each in answers),
        }
    )
