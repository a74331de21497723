"""Calls the scripts about webhooks: their endpoints, and what has to be delivered to them.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies. All keys of webhooks are in one slot.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Argument, Command

_ADD = SCRIPTS["webhook_add"]
_CHANGE = SCRIPTS["webhook_change"]
_REMOVE = SCRIPTS["webhook_remove"]
_WATCH = SCRIPTS["webhook_watch"]
_CLAIM = SCRIPTS["webhook_claim"]
_REQUEUE = SCRIPTS["webhook_requeue"]
_ENTER = SCRIPTS["webhook_enter"]
_SETTLE = SCRIPTS["webhook_settle"]
_DROP = SCRIPTS["webhook_drop"]


def webhook_add(
    endpoints_key: str, endpoint_key: str, /, *fields: Argument, endpoint: str, created_ms: int, most: int
) -> Command:
    """Add an endpoint, unless its tenant has too many."""
    return ("EVALSHA", _ADD.sha, 2, endpoints_key, endpoint_key, endpoint, created_ms, most, *fields)


def webhook_change(
    endpoint_key: str,
    due_key: str,
    queue_key: str,
    /,
    *fields: Argument,
    endpoint: str,
    tenant: str,
    updated_ms: int,
    secret: str,
    old_secret_until_ms: int | str,
    enabled: int | str,
    change: str,
) -> Command:
    """Change an endpoint of a tenant."""
    return (
        "EVALSHA",
        _CHANGE.sha,
        3,
        endpoint_key,
        due_key,
        queue_key,
        endpoint,
        tenant,
        updated_ms,
        secret,
        old_secret_until_ms,
        enabled,
        change,
        *fields,
    )


def webhook_remove(
    endpoints_key: str,
    endpoint_key: str,
    events_key: str,
    due_key: str,
    queue_key: str,
    /,
    *,
    endpoint: str,
    tenant: str,
) -> Command:
    """Remove an endpoint of a tenant, and what was to be delivered to it."""
    return (
        "EVALSHA",
        _REMOVE.sha,
        5,
        endpoints_key,
        endpoint_key,
        events_key,
        due_key,
        queue_key,
        endpoint,
        tenant,
    )


def webhook_watch(endpoints_key: str, watched_key: str, /, *jobs: str, look_ms: int) -> Command:
    """Watch jobs for their ends, if their tenant has an endpoint."""
    return ("EVALSHA", _WATCH.sha, 2, endpoints_key, watched_key, look_ms, *jobs)


def webhook_claim(due_key: str, /, *entries: Argument, until_ms: float) -> Command:
    """Claim entries that are due, each with the score that the caller has read."""
    return ("EVALSHA", _CLAIM.sha, 1, due_key, until_ms, *entries)


def webhook_requeue(endpoint_key: str, due_key: str, queue_key: str, /, *, endpoint: str) -> Command:
    """Let an endpoint stand in the queue at the time of its next delivery."""
    return ("EVALSHA", _REQUEUE.sha, 3, endpoint_key, due_key, queue_key, endpoint)


def webhook_enter(
    endpoint_key: str,
    events_key: str,
    due_key: str,
    queue_key: str,
    /,
    *,
    endpoint: str,
    event_id: str,
    event_type: str,
    event: bytes,
    now_ms: int,
    most: int,
) -> Command:
    """Let an event be delivered to an endpoint that wants it."""
    return (
        "EVALSHA",
        _ENTER.sha,
        4,
        endpoint_key,
        events_key,
        due_key,
        queue_key,
        endpoint,
        event_id,
        event_type,
        event,
        now_ms,
        most,
    )


def webhook_settle(
    endpoint_key: str,
    events_key: str,
    due_key: str,
    queue_key: str,
    /,
    *,
    endpoint: str,
    event_id: str,
    tried: int,
    failure: str,
    now_ms: int,
    retry_ms: int | str,
    disable_after_ms: int,
) -> Command:
    """Record how a delivery went."""
    return (
        "EVALSHA",
        _SETTLE.sha,
        4,
        endpoint_key,
        events_key,
        due_key,
        queue_key,
        endpoint,
        event_id,
        tried,
        failure,
        now_ms,
        retry_ms,
        disable_after_ms,
    )


def webhook_drop(
    endpoint_key: str, events_key: str, due_key: str, queue_key: str, /, *, endpoint: str, now_ms: int
) -> Command:
    """Drop the undelivered events of an endpoint that has been disabled for 30 days."""
    return ("EVALSHA", _DROP.sha, 4, endpoint_key, events_key, due_key, queue_key, endpoint, now_ms)
