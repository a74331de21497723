"""Calls the scripts about one job: its record, its journal, its result and its idempotency key.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_CREATE = SCRIPTS["create"]
_STANDING = SCRIPTS["standing"]
_CLOSE = SCRIPTS["close"]
_DISCARD = SCRIPTS["discard"]
_CANCEL = SCRIPTS["cancel"]
_COPIED = SCRIPTS["copied"]
_REVIVE = SCRIPTS["revive"]
_MOVE = SCRIPTS["move"]
_DROP_REQUEST = SCRIPTS["drop_request"]
_FOLLOW = SCRIPTS["follow"]
_UNFOLLOW = SCRIPTS["unfollow"]
_LET_GO = SCRIPTS["let_go"]
_START = SCRIPTS["start"]
_RESTART = SCRIPTS["restart"]
_APPEND = SCRIPTS["append"]
_NOTE = SCRIPTS["note"]
_FINISH = SCRIPTS["finish"]
_RELEASE = SCRIPTS["release"]
_RESTORE = SCRIPTS["restore"]
_KEY_CLAIM = SCRIPTS["key_claim"]
_KEY_CHANGE = SCRIPTS["key_change"]


def create(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    submitted_ms: int,
    ttl_s: int,
    queued_entry: bytes,
    pool: str,
    priority: int,
    reply_to: str,
    call: str,
    keep: int,
    session: str,
    tenant: str,
    request: bytes,
    traceparent: str,
    submitted_to: str,
    size: str,
    not_before_ms: int | str,
    after: str,
) -> Command:
    """Create a job's record, or join the other submissions of the job."""
    return (
        "EVALSHA",
        _CREATE.sha,
        3,
        job_key,
        journal_key,
        request_key,
        submitted_ms,
        ttl_s,
        queued_entry,
        pool,
        priority,
        reply_to,
        call,
        keep,
        session,
        tenant,
        request,
        traceparent,
        submitted_to,
        size,
        not_before_ms,
        after,
    )


def standing(job_key: str, /) -> Command:
    """Read the standing of a job."""
    return ("EVALSHA", _STANDING.sha, 1, job_key)


def close(job_key: str, /, *, call: str) -> Command:
    """Close a job whose submission the broker refused, so that it can be taken back, if that is possible."""
    return ("EVALSHA", _CLOSE.sha, 1, job_key, call)


def discard(job_key: str, journal_key: str, request_key: str, /) -> Command:
    """Delete a closed job, unless it has progressed meanwhile."""
    return ("EVALSHA", _DISCARD.sha, 3, job_key, journal_key, request_key)


def cancel(
    job_key: str,
    journal_key: str,
    result_key: str,
    request_key: str,
    response_key: str,
    /,
    *,
    ended_ms: int,
    result_ttl_s: int,
    finished_entry: bytes,
    result: bytes,
    mode: str,
    end_state: str,
    of_attempt: int,
    of_tokens: int | str,
    tombstone_ttl_s: int,
    said: int,
) -> Command:
    """Cancel a job: end a queued job, or mark a running one, which its worker then ends."""
    return (
        "EVALSHA",
        _CANCEL.sha,
        5,
        job_key,
        journal_key,
        result_key,
        request_key,
        response_key,
        ended_ms,
        result_ttl_s,
        finished_entry,
        result,
        mode,
        end_state,
        of_attempt,
        of_tokens,
        tombstone_ttl_s,
        said,
    )


def copied(job_key: str, /, *, ttl_s: int) -> Command:
    """Note that a job was published again: keep its record for as long as a message may be in the queue."""
    return ("EVALSHA", _COPIED.sha, 1, job_key, ttl_s)


def revive(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    seen: str,
    call: str,
    queued_entry: bytes,
    promoted: int,
) -> Command:
    """Let a job be published again, unless it has progressed meanwhile."""
    return (
        *("EVALSHA", _REVIVE.sha, 3, job_key, journal_key, request_key),
        *(seen, call, queued_entry, promoted),
    )


def move(job_key: str, request_key: str, /, *, pool: str, request: bytes) -> Command:
    """Move an unfinished job from a canary pool to the pool to which it was submitted."""
    return ("EVALSHA", _MOVE.sha, 2, job_key, request_key, pool, request)


def drop_request(job_key: str, request_key: str, /) -> Command:
    """Delete the request of a job that has ended."""
    return ("EVALSHA", _DROP_REQUEST.sha, 2, job_key, request_key)


def follow(job_key: str, /, *, follower: str, tenant: str, most: int, call: str) -> Command:
    """Note at a job that another one runs after it."""
    return ("EVALSHA", _FOLLOW.sha, 1, job_key, follower, tenant, most, call)


def unfollow(job_key: str, /, *, follower: str, tenant: str, known_call: bytes) -> Command:
    """Forget at a job that another one runs after it, unless somebody has followed it since."""
    return ("EVALSHA", _UNFOLLOW.sha, 1, job_key, follower, tenant, known_call)


def let_go(job_key: str, request_key: str, /, *, request: bytes, size: str, ttl_s: int, call: str) -> Command:
    """Let a job wait for a worker that has waited for other jobs."""
    return ("EVALSHA", _LET_GO.sha, 2, job_key, request_key, request, size, ttl_s, call)


def start(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    started_ms: int,
    lease_ms: int,
    ttl_s: int,
    worker: str,
    at: str,
    max_attempts: int,
    expires_ms: int | str,
    resumable: int,
    pool: str,
    priority: int,
    message_reply_to: str,
    submitted_ms: int,
    fence: str,
    alone: int,
    suspect_after: int,
    max_deaths: int,
    model_identity: str,
    session: str,
    tenant: str,
    traceparent: str,
    submitted_to: str,
    not_before_ms: int | str,
) -> Command:
    """Begin an attempt: take the fence, or reply why not."""
    return (
        "EVALSHA",
        _START.sha,
        3,
        job_key,
        journal_key,
        request_key,
        started_ms,
        lease_ms,
        ttl_s,
        worker,
        at,
        max_attempts,
        expires_ms,
        resumable,
        pool,
        priority,
        message_reply_to,
        submitted_ms,
        fence,
        alone,
        suspect_after,
        max_deaths,
        model_identity,
        session,
        tenant,
        traceparent,
        submitted_to,
        not_before_ms,
    )


def restart(
    job_key: str,
    journal_key: str,
    /,
    *,
    fence: str,
    new_fence: str,
    model_identity: str,
    restarted_entry: bytes,
    running_entry: bytes,
) -> Command:
    """Restart the answer of the running attempt, which cannot resume from the tokens in the journal."""
    return (
        "EVALSHA",
        _RESTART.sha,
        2,
        job_key,
        journal_key,
        fence,
        new_fence,
        model_identity,
        restarted_entry,
        running_entry,
    )


def append(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    fence: str,
    lease_ms: int,
    offset: int,
    count: int,
    tokens_entry: bytes,
    ttl_s: int,
) -> Command:
    """Append generated tokens to the journal and renew the lease."""
    return (
        "EVALSHA",
        _APPEND.sha,
        3,
        job_key,
        journal_key,
        request_key,
        fence,
        lease_ms,
        offset,
        count,
        tokens_entry,
        ttl_s,
    )


def note(
    job_key: str,
    journal_key: str,
    /,
    *,
    fence: str,
    lease_ms: int,
    offset: int,
    count: int,
    tokens_entry: bytes,
    entry: bytes,
    number: int,
) -> Command:
    """Append generated tokens, and an entry about the running attempt's slot."""
    return (
        "EVALSHA",
        _NOTE.sha,
        2,
        job_key,
        journal_key,
        fence,
        lease_ms,
        offset,
        count,
        tokens_entry,
        entry,
        number,
    )


def finish(
    job_key: str,
    journal_key: str,
    result_key: str,
    request_key: str,
    response_key: str,
    /,
    *,
    fence: str,
    ended_ms: int,
    result_ttl_s: int,
    end_state: str,
    offset: int,
    count: int,
    tokens_entry: bytes,
    finished_entry: bytes,
    result: bytes,
    tombstone_ttl_s: int,
) -> Command:
    """Commit the result, if the attempt still has the job and there is no result."""
    return (
        "EVALSHA",
        _FINISH.sha,
        5,
        job_key,
        journal_key,
        result_key,
        request_key,
        response_key,
        fence,
        ended_ms,
        result_ttl_s,
        end_state,
        offset,
        count,
        tokens_entry,
        finished_entry,
        result,
        tombstone_ttl_s,
    )


def release(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    fence: str,
    ttl_s: int,
    offset: int,
    count: int,
    tokens_entry: bytes,
    queued_entry: bytes,
    refund: int,
    pause_ms: int,
) -> Command:
    """Put a running job back to ``queued``, for a retry or because its worker drains."""
    return (
        "EVALSHA",
        _RELEASE.sha,
        3,
        job_key,
        journal_key,
        request_key,
        fence,
        ttl_s,
        offset,
        count,
        tokens_entry,
        queued_entry,
        refund,
        pause_ms,
    )


def restore(
    job_key: str,
    journal_key: str,
    request_key: str,
    /,
    *,
    fence: str,
    attempt: int,
    lease_ms: int,
    ttl_s: int,
    worker: str,
    charged: int,
    tokens: int,
    running_entry: bytes,
    tokens_entry: bytes,
    pool: str,
    priority: int,
    reply_to: str,
    submitted_ms: int,
    started_ms: int,
    model_identity: str,
    session: str,
    tenant: str,
    request: bytes,
    traceparent: str,
    submitted_to: str,
) -> Command:
    """Write back what the worker knows of a running job after Redis has lost its data, or the latest part."""
    return (
        "EVALSHA",
        _RESTORE.sha,
        3,
        job_key,
        journal_key,
        request_key,
        fence,
        attempt,
        lease_ms,
        ttl_s,
        worker,
        charged,
        tokens,
        running_entry,
        tokens_entry,
        pool,
        priority,
        reply_to,
        submitted_ms,
        started_ms,
        model_identity,
        session,
        tenant,
        request,
        traceparent,
        submitted_to,
    )


def key_claim(idempotency_key: str, /, *, holder: str, ttl_s: int) -> Command:
    """Claim an idempotency key."""
    return ("EVALSHA", _KEY_CLAIM.sha, 1, idempotency_key, holder, ttl_s)


def key_change(idempotency_key: str, /, *, present_holder: str, new_holder: str, ttl_s: int) -> Command:
    """Change the value of an idempotency key, or free the key, unless somebody else has changed it."""
    return ("EVALSHA", _KEY_CHANGE.sha, 1, idempotency_key, present_holder, new_holder, ttl_s)
