"""Puts the parts of a worker together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from inferfleet.schemas import Job
from inferfleet.schemas.names import warm_turns
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.confirms import UnroutableError
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.wire.redis.open_jobs import OpenJobs
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import SessionLanes
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.worker.ageing import Ageing
from inferfleet.worker.attempt import Attempts
from inferfleet.worker.attempt_log import AttemptLog
from inferfleet.worker.claim import Claims
from inferfleet.worker.ended_counts import EndedCounting
from inferfleet.worker.ended_jobs import EndedJobs
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.hooks import AllHooks, Hooks
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.lanes import LaneAdvance
from inferfleet.worker.log import about
from inferfleet.worker.metrics import WorkerMetrics
from inferfleet.worker.ports import EngineDeadError
from inferfleet.worker.preparation import Preparation
from inferfleet.worker.processor import Processor
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.republishing import Republishing
from inferfleet.worker.served_shares import ServedShares
from inferfleet.worker.settlement import Settlement
from inferfleet.worker.slots import Slots
from inferfleet.worker.sweep import Sweep
from inferfleet.worker.turns import Turns
from inferfleet.worker.urgent import UrgentJobs
from inferfleet.worker.warm_prompts import WarmPromptNotes
from inferfleet.worker.work_counting import WorkCounting

if TYPE_CHECKING:
    from inferfleet.wire.span_export import SpanExport
    from inferfleet.worker.attempt_spans import AttemptSpans

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The parts that the worker itself uses."""

    processor: Processor
    journal: JournalWriter
    sweep: Sweep
    ageing: Ageing
    spans: AttemptSpans | None
    open_jobs: OpenJobs
    urgent: UrgentJobs
    noting: list[ServedShares | WarmPromptNotes]
    """Observers that write to Redis what they see."""


def assemble(
    *,
    settings: WorkerSettings,
    engine: ReplaceableEngine,
    slots: Slots,
    fronts: Fronts,
    metrics: WorkerMetrics,
    ended_jobs: EndedJobs,
    work_counting: WorkCounting,
    ended_counts: EndedCounting,
    pipeline: CommandPipeline,
    confirm_channel: ConfirmChannel,
    spans_to: SpanExport | None,
    leaving: asyncio.Event,
    on_engine_death: Callable[[EngineDeadError], None],
) -> Parts:
    """Put the parts together. Redis commands go by ``pipeline``, messages by ``confirm_channel``."""
    records = JobRecords(
        pipeline=pipeline,
        result_ttl_s=settings.result_ttl_s,
        queued_ttl_s=settings.queued_ttl_s,
        keep_requests=settings.keep_requests,
        replicas=Replicas(pipeline, settings, patience_s=None),
    )
    session_lanes = SessionLanes(pipeline=pipeline, settings=settings, replicas=records.replicas)
    lost_messages = LostMessages(pipeline, pool=settings.pool)
    republishing = Republishing(
        settings=settings,
        lost_messages=lost_messages,
        session_lanes=session_lanes,
        confirm_channel=confirm_channel,
    )
    ageing = Ageing(
        settings=settings,
        index=lost_messages,
        session_lanes=session_lanes,
        republishing=republishing,
        metrics=metrics.attempts,
    )
    observers: list[Hooks] = [
        metrics.attempts,
        ended_jobs,
        work_counting,
        ended_counts,
        AttemptLog(prompts=settings.log_prompts),
        ageing,
    ]
    spans: AttemptSpans | None = None
    if spans_to is not None:
        # OpenTelemetry is there only where a worker traces.
        from inferfleet.worker.attempt_spans import AttemptSpans

        spans = AttemptSpans(spans_to, settings=settings, records=records)
        observers.append(spans)
    noting: list[ServedShares | WarmPromptNotes] = []
    if settings.fair_shares:
        noting.append(ServedShares(settings, pipeline))
    if settings.warm_prompt_chars and settings.warm_wait_s:
        noting.append(WarmPromptNotes(settings, pipeline, leaving))
    observers += noting
    hooks = AllHooks(observers)
    histories = SessionHistories(pipeline=pipeline, settings=settings)
    journal = JournalWriter(records=records, histories=histories, settings=settings, hooks=hooks)

    async def publish_ready(job: Job, body: bytes, reply_to: str) -> None:
        message = job_message(job, reply_to=reply_to, body=body)
        try:
            await confirm_channel.publish_job(message, pool=job.pool)
        except UnroutableError:
            # Somebody has deleted the pool. If it gets workers again, their sweep publishes the job.
            what = "cannot publish a job that runs after others: pool %s has no queue"
            logger.warning(what, job.pool, extra=about(job))

    followers = Followers(pipeline, records, queued_ttl_s=settings.queued_ttl_s, publish=publish_ready)
    lanes = LaneAdvance(
        settings=settings,
        records=records,
        session_lanes=session_lanes,
        confirm_channel=confirm_channel,
        followers=followers,
    )
    settlement = Settlement(
        settings=settings,
        records=records,
        lanes=lanes,
        journal=journal,
        confirm_channel=confirm_channel,
        slots=slots,
        hooks=hooks,
        leaving=leaving,
        followers=followers,
    )
    warm = warm_turns(settings.pool, settings.worker_id) if settings.warm_wait_s else ""
    turns = Turns(
        histories,
        SessionRecords(pipeline=pipeline, settings=settings),
        warm=lambda: "" if leaving.is_set() else warm,
    )
    preparation = Preparation(
        settings=settings, engine=engine, records=records, journal=journal, turns=turns, hooks=hooks
    )
    claims = Claims(
        settings=settings,
        engine=engine,
        records=records,
        preparation=preparation,
        turns=turns,
        slots=slots,
        fronts=fronts,
    )
    attempts = Attempts(
        settings=settings,
        engine=engine,
        claims=claims,
        preparation=preparation,
        journal=journal,
        turns=turns,
        settlement=settlement,
        slots=slots,
        hooks=hooks,
        spans=spans,
    )
    processor = Processor(
        attempts=attempts,
        settlement=settlement,
        slots=slots,
        clock=records.clock,
        leaving=leaving,
        on_engine_death=on_engine_death,
    )
    sweep = Sweep(
        settings=settings,
        lost_messages=lost_messages,
        open_jobs=records.open_jobs,
        session_lanes=session_lanes,
        lanes=lanes,
        confirm_channel=confirm_channel,
        republishing=republishing,
        fronts=fronts,
        processor=processor,
        hooks=hooks,
        followers=followers,
    )
    urgent = UrgentJobs(lost_messages, least=settings.preempt_from, slots=slots, here=processor.runs)
    return Parts(processor, journal, sweep, ageing, spans, records.open_jobs, urgent, noting)
