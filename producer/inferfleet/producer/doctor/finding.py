"""Findings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Jobs are lost, refused or stuck, or will be."""
    WARNING = "warning"
    """Somebody should know, and may have meant it."""


class Check(StrEnum):
    """What was found."""

    SETTING_UNKNOWN = "setting_unknown"
    CONFIGURATION = "configuration"
    REDIS_UNREACHABLE = "redis_unreachable"
    REDIS_RIGHTS = "redis_rights"
    REDIS_VERSION = "redis_version"
    REDIS_EVICTION = "redis_eviction"
    REDIS_MEMORY = "redis_memory"
    REDIS_PERSISTENCE = "redis_persistence"
    REDIS_REPLICAS = "redis_replicas"
    CLOCK = "clock"
    RABBITMQ_UNREACHABLE = "rabbitmq_unreachable"
    RABBITMQ_RIGHTS = "rabbitmq_rights"
    RABBITMQ_VERSION = "rabbitmq_version"
    RABBITMQ_BLOCKED = "rabbitmq_blocked"
    RABBITMQ_POLICY = "rabbitmq_policy"
    MANAGEMENT = "management"
    QUEUE_MISSING = "queue_missing"
    QUEUE_ARGUMENTS = "queue_arguments"
    QUEUE_LIMIT = "queue_limit"
    DEAD_QUEUE_MISSING = "dead_queue_missing"
    DEAD_LETTERS = "dead_letters"
    PAUSED = "paused"
    ROLLOUT_UNCONTROLLED = "rollout_uncontrolled"
    NO_WORKER = "no_worker"
    WORKER_LOADING = "worker_loading"
    WORKER_CUT_OFF = "worker_cut_off"
    IDENTITIES = "identities"
    UNFIT = "unfit"
    VERSIONS = "versions"
    INDEX_STALE = "index_stale"
    REQUEST_MISSING = "request_missing"
    JOB_SILENT = "job_silent"
    MESSAGES_LOST = "messages_lost"
    LANE_ORPHANED = "lane_orphaned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, and what to do about it. ``subject`` is the service, pool, worker or job."""

    check: Check
    severity: Severity
    subject: str
    what: str
    remedy: str


def error(check: Check, subject: str, what: str, remedy: str) -> Finding:
    """Make a finding that costs jobs."""
    return Finding(check=check, severity=Severity.ERROR, subject=subject, what=what, remedy=remedy)


def warning(check: Check, subject: str, what: str, remedy: str) -> Finding:
    """Make a finding that somebody should know."""
    return Finding(check=check, severity=Severity.WARNING, subject=subject, what=what, remedy=remedy)
