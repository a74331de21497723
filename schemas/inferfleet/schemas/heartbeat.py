"""The heartbeat that a worker writes every few seconds, with the jobs that ended there last."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import DEFAULT_TENANT, JobId, JobState, PoolName
from inferfleet.schemas.model_swap import ModelSwap
from inferfleet.schemas.result import Count, Seconds
from inferfleet.schemas.wire_model import WireModel
from inferfleet.schemas.work import AnswerMean, JobMean


class WorkerPhase(StrEnum):
    """The phase of a worker's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class EndedJob(WireModel):
    """A job that ended recently, without its request and answer.

    ``code`` says why it did not succeed. ``queue_wait_s`` and ``total_s`` are those of ``Timings``.
    """

    id: JobId
    pool: PoolName
    worker_id: str
    tenant: str = DEFAULT_TENANT
    priority: int
    state: JobState
    code: FailureCode | None = None
    ended_at: AwareDatetime
    queue_wait_s: Seconds | None = None
    total_s: Seconds | None = None
    tokens: Count = 0


class Heartbeat(WireModel):
    """One worker's entry in the health map. It expires when the worker stops renewing it.

    ``running`` and ``waiting`` are the engine's own counts; ``held`` counts the jobs that the worker holds
    and that wait for a slot, and ``slots`` is how many may run at a time. ``kv_cache_usage`` is a share from
    0 to 1. ``model_identity`` is the short hash of the model, empty until it is loaded: workers with
    different identities do not resume each other's answers. ``model_weights`` is the commit of the weights on
    the hub, or their fingerprint; empty if neither is known. ``adapters`` are the names of the LoRA adapters
    that jobs may name as their model, at most 1,000. ``finished_per_s`` is how many jobs ended here per
    second in the last minute, and ``tokens_per_s`` how many tokens were generated per second in the last ten.
    ``mean_job`` and ``answers`` are means of what ended here (``schemas.work``). ``ended`` has the last few
    jobs that succeeded here, and the last few that did not, the newest first. ``swap`` is the last swap of
    the model, ``None`` if the worker still has the model with which it started. ``unfit`` says why a
    worker that is ``loading`` serves nothing although its model is loaded; it is empty otherwise.
    """

    worker_id: str
    pool: PoolName
    phase: WorkerPhase
    engine: str
    model: str
    model_identity: str = ""
    model_weights: str = ""
    adapters: tuple[str, ...] = ()
    version: str
    running: Count = 0
    waiting: Count = 0
    held: Count = 0
    slots: Count = 0
    kv_cache_usage: Annotated[float, Field(ge=0, le=1)] = 0.0
    tokens_generated: Count = 0
    finished_per_s: Annotated[float, Field(ge=0)] = 0.0
    tokens_per_s: Annotated[float, Field(ge=0)] = 0.0
    mean_job: JobMean | None = None
    answers: tuple[AnswerMean, ...] = ()
    ended: tuple[EndedJob, ...] = ()
    swap: ModelSwap | None = None
    unfit: str = ""
    started_at: AwareDatetime
    seen_at: AwareDatetime
