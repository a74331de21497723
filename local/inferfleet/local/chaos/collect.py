"""Gathers the history of a run from the ledgers, Redis and RabbitMQ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferfleet.local.chaos.harness import Harness
from inferfleet.local.chaos.history import History, JobHistory, WorkerLife
from inferfleet.local.chaos.ledger import Accepted, CancelAsked, Intent, Seen, Streamed, read_ledger
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JournalEntry, Result
from inferfleet.schemas.names import job_queue, journal_key, result_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.journal_lines import parse_line

BATCH = 200


async def collect(
    harness: Harness,
    ledgers: Iterable[Path],
    *,
    lost_results: frozenset[str] = frozenset(),
    workers: Mapping[str, WorkerLife] | None = None,
    queues: Sequence[str] = (),
) -> History:
    """Read everything. No worker may run any more: what is in the queues then is left over."""
    jobs: dict[str, Job] = {}
    seen: defaultdict[str, list[Result]] = defaultdict(list)
    streams: defaultdict[str, list[JournalEntry]] = defaultdict(list)
    cancels: set[str] = set()
    for ledger in ledgers:
        for event in read_ledger(ledger):
            match event:
                case Accepted(job=job):
                    jobs[job.id] = job
                case Seen(result=result):
                    seen[result.job_id].append(result)
                case Streamed(job_id=job_id, entry=entry):
                    streams[job_id].append(entry)
                case CancelAsked(job_id=job_id):
                    cancels.add(job_id)
                case Intent():
                    pass
    journals, results = await _read_records(harness, list(jobs))
    return History(
        jobs=tuple(
            JobHistory(
                job=job,
                journal=journals[job_id],
                stored=results[job_id],
                seen=tuple(seen[job_id]),
                streams=(tuple(streams[job_id]),) if job_id in streams else (),
                cancel_asked=job_id in cancels,
                lost_result=job_id in lost_results,
            )
            for job_id, job in jobs.items()
        ),
        dead_letters=await _dead_letters(harness),
        leftover=await harness.depths(*(queues or (job_queue(harness.pool),))),
        workers=workers or {},
    )


async def _read_records(
    harness: Harness, job_ids: list[str]
) -> tuple[dict[str, tuple[JournalEntry, ...]], dict[str, Result | None]]:
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


async def _dead_letters(harness: Harness) -> tuple[str, ...]:
    settings = ProducerSettings(amqp_url=harness.services.amqp_url, redis_url=harness.services.redis_url)
    async with Fleet.connect(settings) as fleet:
        letters = await fleet.dead_letters.read(harness.pool, limit=100_000)
    return tuple(letter.message_id for letter in letters if letter.message_id is not None)
