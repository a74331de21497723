"""Collects the history of a run from the ledgers, Redis and RabbitMQ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from inferfleet.local.chaos.garbage import Garbage
from inferfleet.local.chaos.harness import PATIENCE_S, Harness
from inferfleet.local.chaos.history import History, JobHistory
from inferfleet.local.chaos.ledger import Accepted, CancelAsked, Intent, Seen, Streamed, read_ledger
from inferfleet.schemas import Job, JobState, JournalEntry, Result
from inferfleet.schemas.names import dead_queue, job_queue, journal_key, result_key
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.journal_lines import parse_line

BATCH = 200


async def collect(
    harness: Harness,
    ledgers: Iterable[Path],
    *,
    lost_results: frozenset[str] = frozenset(),
    queues: Sequence[str] = (),
    garbage: Garbage | None = None,
    keys_lost: bool = False,
    earlier: Mapping[str, tuple[JournalEntry, ...]] | None = None,
    index: Mapping[str, JobState | None] | None = None,
) -> History:
    """Read everything. No worker may run any more, so all messages in the queues are leftovers."""
    jobs: dict[str, Job] = {}
    seen: defaultdict[str, list[Result]] = defaultdict(list)
    streams: defaultdict[str, list[tuple[JournalEntry, ...]]] = defaultdict(list)
    cancels: set[str] = set()
    for ledger in ledgers:
        # One reader for each job in each ledger: two producers may watch the same job.
        streamed: defaultdict[str, list[JournalEntry]] = defaultdict(list)
        for event in read_ledger(ledger):
            match event:
                case Accepted(job=job):
                    jobs[job.id] = job
                case Seen(result=result):
                    seen[result.job_id].append(result)
                case Streamed(job_id=job_id, entry=entry):
                    streamed[job_id].append(entry)
                case CancelAsked(job_id=job_id):
                    cancels.add(job_id)
                case Intent():
                    pass
        for job_id, entries in streamed.items():
            streams[job_id].append(tuple(entries))
    journals, results = await read_records(harness, list(jobs))
    letters = await _dead_letters(harness)
    return History(
        jobs=tuple(
            JobHistory(
                job=job,
                journal=journals[job_id],
                stored=results[job_id],
                seen=tuple(seen[job_id]),
                streams=tuple(streams[job_id]),
                cancel_asked=job_id in cancels,
                lost_result=job_id in lost_results,
                earlier_journal=(earlier or {}).get(job_id, ()),
            )
            for job_id, job in jobs.items()
        ),
        dead_letters=tuple(letter.message_id for letter in letters if letter.message_id is not None),
        garbage_lost=await _lost(harness, garbage, letters) if garbage else (),
        keys_lost=keys_lost,
        leftover=await harness.depths(*(queues or (job_queue(harness.pool),))),
        index=index or {},
    )


async def read_records(
    harness: Harness, job_ids: list[str]
) -> tuple[dict[str, tuple[JournalEntry, ...]], dict[str, Result | None]]:
    """Read the journals and results of jobs from Redis."""
    journals: dict[str, tuple[JournalEntry, ...]] = {}
    results: dict[str, Result | None] = {}
    for first in range(0, len(job_ids), BATCH):
        some = job_ids[first : first + BATCH]
        pipeline = harness.redis.pipeline(transaction=False)
        for job_id in some:
            pipeline.xrange(journal_key(job_id))
            pipeline.get(result_key(job_id))
        answers: list[Any] = await pipeline.execute()
        for job_id, lines, result in zip(some, answers[::2], answers[1::2], strict=True):
            journals[job_id] = tuple(parse_line(fields) for _, fields in lines)
            results[job_id] = Result.model_validate_json(result) if result else None
    return journals, results


async def _dead_letters(harness: Harness) -> list[AbstractIncomingMessage]:
    """Read the dead letters directly, not through the client."""
    async with open_amqp(harness.services.amqp_url, timeout_s=PATIENCE_S, name="chaos") as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(dead_queue(harness.pool), passive=True)
        letters: list[AbstractIncomingMessage] = []
        # Never acked, so RabbitMQ requeues them when the connection ends.
        while (letter := await queue.get(fail=False)) is not None:
            letters.append(letter)
        return letters


async def _lost(
    harness: Harness, garbage: Garbage, letters: Iterable[AbstractIncomingMessage]
) -> tuple[str, ...]:
    """Return the confirmed garbage that was not dead-lettered, and the named jobs that did not fail."""
    unburied = garbage.sent - {letter.body for letter in letters}
    _, results = await read_records(harness, sorted(garbage.named))
    endless = [
        job_id for job_id, result in results.items() if result is None or result.state is not JobState.FAILED
    ]
    return (*(body.decode(errors="replace") for body in sorted(unburied)), *endless)
