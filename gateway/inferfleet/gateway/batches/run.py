"""Runs one batch from where it stands to its end.

It may be interrupted at any moment: whoever runs the batch next finds in the storage which lines are done,
and submits the others as the same jobs as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from inferfleet.gateway.batches.files import Files, content_of
from inferfleet.gateway.batches.input import Input, examine
from inferfleet.gateway.batches.jobs import BatchJobs
from inferfleet.gateway.batches.lines import in_openais_form, state_of, unfinished
from inferfleet.gateway.batches.output import ANSWERS, ERRORS, Parts
from inferfleet.gateway.batches.scratch import scratch
from inferfleet.gateway.batches.storage import StorageError
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.background import background
from inferfleet.producer.batch.batch import LONGEST_LINE
from inferfleet.producer.batch.files import ID_PREFIX, LineSet
from inferfleet.producer.batch.line_ids import MAX_LINES, line_job_id
from inferfleet.producer.batch.lines import LineRunner, request_work
from inferfleet.producer.batch.source import SourceLine, custom_id_of
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas.batch import (
    BatchOutputLine,
    BatchProblem,
    BatchProgress,
    BatchRecord,
    BatchState,
)
from inferfleet.schemas.errors import InferfleetError, ServiceUnreachableError
from inferfleet.schemas.limits import MOST
from inferfleet.wire.redis.batches import BatchLostError
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

LEASE_S: Final = 10.0
"""How long other gateways leave a batch alone after its runner's last sign of life."""

BEAT_S: Final = 2.0
"""How often a runner renews its lease, records its progress, and learns whether to cancel the batch."""

OTHERS_TURN: Final = 100
"""How many lines are handled before other tasks get a turn."""


class BatchRun:
    """A batch that this gateway has claimed with the token ``runner``."""

    def __init__(self, record: BatchRecord, *, runner: str, gateway: Gateway, files: Files) -> None:
        self._order = record.order
        self._record = record
        self._runner = runner
        self._gateway = gateway
        self._files = files
        self._storage = files.storage
        self._records = gateway.batches
        self._batch_id = uuid_of(record.order.id)
        self._parts: Parts | None = None
        self._pools = dict(record.pools)
        self._cancelling = asyncio.Event()
        self._read = 0
        """How many lines have been read to be submitted."""
        self._expiring = record.expiring
        """Whether the deadline has passed before all lines had run."""
        self._held_until = asyncio.get_running_loop().time() + LEASE_S / 2

    async def run(self) -> None:
        """Bring the batch to its end.

        Raises:
            BatchLostError: Another gateway has the batch.
            InferfleetError: Redis, RabbitMQ or the storage has failed.

        """
        beating = asyncio.create_task(self._beat())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait([beating, working], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            else:
                beating.result()
        finally:
            await cancel_and_wait(beating, working)

    async def release(self) -> None:
        """Store the lines that wait, and let another gateway take the batch over at once."""
        if self._parts is not None:
            await self._parts.store()
        await self._records.change(self._order.id, runner=self._runner, lease_s=0, pools=self._pools)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._change(progress=self._progress(), pools=self._pools, **self._expired())
                # So that this gateway stops before another one begins.
                self._held_until = began + LEASE_S - BEAT_S
            except InferfleetError as error:
                logger.warning("cannot renew the lease of batch %s (%s)", self._order.id, error)
            await asyncio.sleep(BEAT_S)

    async def _work(self) -> None:
        if not self._record.state.terminal:
            with scratch() as folder:
                await self._advance(folder)
        await self._conclude()

    async def _advance(self, folder: Path) -> None:
        # Because of its settings, or a missing volume, no gateway may fail a batch that has begun elsewhere.
        begun = self._record.state in {BatchState.IN_PROGRESS, BatchState.FINALIZING}
        found = await self._examine(folder, begun=begun)
        if found.problems and begun:
            raise StorageError(f"this gateway cannot read its input ({found.problems[0].message})")
        if found.problems:
            if await self._change(BatchState.FAILED, problems=found.problems) is BatchState.CANCELLING:
                await self._change(BatchState.CANCELLED)
            return
        parts = Parts(
            self._storage,
            self._batch_id,
            folder=f"{folder_of(self._order.id)}/parts",
            runner=self._runner,
            lines=found.lines,
            last=found.last_line,
        )
        await parts.take_up()
        self._parts = parts
        if self._record.state is not BatchState.FINALIZING:
            await self._change(BatchState.IN_PROGRESS, progress=parts.progress)
        async with background(parts.keep_storing()):
            ends = await self._run_lines(found, parts)
        await parts.store()
        await self._finalize(found, parts, ends)

    async def _examine(self, folder: Path, *, begun: bool = False) -> Input:
        own = f"{folder_of(self._order.id)}/input"
        try:
            # The owner may delete the file while the batch runs.
            await self._storage.apart(self._storage.copy, content_of(self._order.input_file_id), own)
            path = await self._storage.apart(self._storage.at_hand, own, folder)
        except FileNotFoundError:
            problem = BatchProblem(code="file_not_found", message="the input file has been deleted")
            return Input(path=folder, longest=0, lines=0, last_line=0, problems=(problem,), order=folder)
        settings = self._gateway.settings
        return await self._storage.apart(
            partial(
                examine,
                path,
                endpoint=self._order.endpoint,
                longest=LONGEST_LINE * (MOST if begun else settings.max_body_bytes),
                most=MAX_LINES if begun else settings.max_batch_lines,
                folder=folder,
            )
        )

    async def _run_lines(self, found: Input, parts: Parts) -> BatchState:
        """Bring all lines to their end. Return the state in which the batch ends."""
        complete = parts.progress.completed + parts.progress.failed == found.lines
        if not complete and not self._cancelling.is_set() and self._remaining_s() and not self._expiring:
            complete = await self._run_until_stopped(found, parts)
        if self._cancelling.is_set():
            ends = BatchState.CANCELLED
        elif complete and not self._expiring:
            return BatchState.COMPLETED
        else:
            ends = BatchState.EXPIRED
            self._expiring = True
            await self._change(**self._expired())
        await self._give_up(found, parts, ends)
        return ends

    async def _run_until_stopped(self, found: Input, parts: Parts) -> bool:
        """Run lines until all have ended, the batch is to be cancelled, or its deadline has passed.

        Return whether all have ended.
        """
        runner = self._line_runner(found, parts, BatchState.COMPLETED)
        running = asyncio.create_task(runner.run(self._unfinished(found, parts)))
        cancelled = asyncio.create_task(self._cancelling.wait())
        overdue = asyncio.create_task(asyncio.sleep(self._remaining_s()))
        try:
            await asyncio.wait([running, cancelled, overdue], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return True
        finally:
            await cancel_and_wait(running, cancelled, overdue)
        return False

    async def _give_up(self, found: Input, parts: Parts, ends: BatchState) -> None:
        """Cancel the jobs of all lines without an answer, and write those lines to the output as given up."""
        # An earlier runner may have submitted any line; this one, only those that it has read.
        read = self._read if self._record.state is BatchState.VALIDATING else found.lines
        runner = self._line_runner(found, parts, ends)
        await runner.cancel(self._unfinished(found, parts, below=read))
        for number, line in enumerate(self._unfinished(found, parts)):
            if line is not None:
                given_up = BatchOutputLine(
                    id=ID_PREFIX + line_job_id(self._batch_id, line.number), custom_id=custom_id_of(line.text)
                )
                self._append(parts, unfinished(given_up, ends, number=line.number))
            if number % OTHERS_TURN == 0:
                # Nothing else here waits, and a file may have millions of lines: the lease has to be renewed.
                await asyncio.sleep(0)
            if parts.full:
                await parts.store()

    def _unfinished(
        self, found: Input, parts: Parts, *, below: int | None = None
    ) -> Generator[SourceLine | None]:
        """Read those of the first ``below`` lines that are not done. Yields ``None`` now and then."""
        for number, line in enumerate(found.in_order()):
            if number == below:
                return
            self._read = max(self._read, number + 1)
            if line.number not in parts.done:
                yield line
            elif number % OTHERS_TURN == 0:
                yield None

    def _line_runner(self, found: Input, parts: Parts, ends: BatchState) -> LineRunner:
        options = cast("JobOptions", self._order.options)
        deadline = datetime.fromtimestamp(self._order.deadline_ms / 1000, UTC)
        given: JobOptions = {**options, "expires_at": deadline}
        pool = given.pop("pool", None)

        def write(line: BatchOutputLine) -> None:
            self._append(parts, in_openais_form(line, ends=ends))

        def check() -> None:
            if asyncio.get_running_loop().time() > self._held_until:
                raise ServiceUnreachableError("another gateway may have claimed the batch")
            if parts.full:
                raise ServiceUnreachableError("the output cannot be stored")

        return LineRunner(
            BatchJobs(self._gateway, self._order, pool=pool, pools=self._pools, check=check),
            batch_id=self._batch_id,
            read=partial(request_work, options=given),
            read_again=found.read_again,
            write=write,
            max_in_flight=self._gateway.settings.batch_in_flight,
        )

    def _append(self, parts: Parts, line: BatchOutputLine) -> None:
        if parts.append(line):
            state = state_of(line)
            self._gateway.metrics.line_ended(state)
            # A worker may find the deadline of a line before this gateway finds that of the batch.
            self._expiring |= state == BatchState.EXPIRED

    async def _finalize(self, found: Input, parts: Parts, ends: BatchState) -> None:
        """Join the output, and end the batch as ``ends`` says, or as cancelled if it is being cancelled."""
        if ends is BatchState.COMPLETED:
            await self._change(BatchState.FINALIZING, progress=parts.progress)
        seen, stored = LineSet(found.last_line), {ANSWERS: 0, ERRORS: 0}
        ids: dict[str, str | None] = {ANSWERS: None, ERRORS: None}

        def join(kind: str, file: Any) -> None:
            stored[kind] = parts.join(kind, file, seen)

        for kind, there in ((ANSWERS, parts.progress.completed), (ERRORS, parts.progress.failed)):
            if there:
                file = await self._files.store(
                    f"{self._order.id}_{'output' if kind == ANSWERS else 'error'}.jsonl",
                    partial(join, kind),
                    tenant=self._order.tenant,
                    ttl_s=self._order.output_ttl_s,
                )
                ids[kind] = file.id
        if sum(stored.values()) != found.lines:
            # Whoever runs the batch next gets them again.
            raise StorageError(f"some of the {found.lines:,} lines are in no part of the output")
        progress = parts.progress.model_copy(update={"completed": stored[ANSWERS], "failed": stored[ERRORS]})
        last = {
            "progress": progress,
            "output_file_id": ids[ANSWERS],
            "error_file_id": ids[ERRORS],
        }
        if await self._change(ends, **last) is BatchState.CANCELLING:
            await self._change(BatchState.CANCELLED, **last)

    async def _conclude(self) -> None:
        """Do what follows the end of a batch. Whoever finds that it has not been done does it again."""
        record = await self._records.read(self._order.id, tenant=self._order.tenant)
        if record is None:
            raise BatchLostError(self._order.id)
        for file_id in (record.output_file_id, record.error_file_id):
            if file_id is not None:
                file = await self._files.records.read(file_id, tenant=self._order.tenant)
                if file is not None:
                    await self._files.records.enlist(file)
        await self._storage.apart(self._storage.remove, folder_of(self._order.id))
        # After the storage, which may fail for hours: each time an event is told, it is delivered again.
        ended = datetime.fromtimestamp(record.since_ms[record.state] / 1000, UTC)
        await self._gateway.webhooks.tell(self._order.tenant, f"batch.{record.state}", self._order.id, ended)
        await self._records.close(self._order.id)
        logger.info("batch %s is %s", record.order.id, record.state)

    async def _change(self, state: BatchState | None = None, **fields: Any) -> BatchState:
        changed = await self._records.change(
            self._order.id, runner=self._runner, lease_s=LEASE_S, state=state, **fields
        )
        if changed is BatchState.CANCELLING:
            self._cancelling.set()
        return changed

    def _expired(self) -> dict[str, Any]:
        """Return what whoever takes the batch over has to know: that not all of it has run."""
        return {"expiring": "1"} if self._expiring else {}

    def _progress(self) -> BatchProgress:
        return self._record.progress if self._parts is None else self._parts.progress

    def _remaining_s(self) -> float:
        return max(0.0, (self._order.deadline_ms - self._records.now_ms()) / 1000)


def uuid_of(batch_id: str) -> str:
    """Return the UUID of a batch, of which the ids of its jobs are made."""
    return str(UUID(batch_id.removeprefix("batch_")))


def folder_of(batch_id: str) -> str:
    """Return where in the storage a batch has its files until its end."""
    return f"batches/{batch_id}"
