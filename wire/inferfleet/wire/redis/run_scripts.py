"""Calls the scripts about one run of an agent, or the list of those of a queue.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Argument, Command

_CREATE = SCRIPTS["run_create"]
_CLAIM = SCRIPTS["run_claim"]
_APPEND = SCRIPTS["run_append"]
_SETTLE = SCRIPTS["run_settle"]
_TELL = SCRIPTS["run_tell"]
_LOOK = SCRIPTS["run_look"]


def run_create(
    run_key: str,
    steps_key: str,
    /,
    *steps: Argument,
    order: str,
    agent: str,
    tenant: str,
    created_ms: int,
    ttl_s: int,
) -> Command:
    """Record a run."""
    return (
        *("EVALSHA", _CREATE.sha, 2, run_key, steps_key),
        *(order, agent, tenant, created_ms, ttl_s, *steps),
    )


def run_claim(run_key: str, /, *, fence: str, runner: str, lease_ms: int) -> Command:
    """Claim a run."""
    return ("EVALSHA", _CLAIM.sha, 1, run_key, fence, runner, lease_ms)


def run_append(
    run_key: str,
    steps_key: str,
    inbox_key: str,
    /,
    *steps: Argument,
    fence: str,
    lease_ms: int,
    ttl_s: int,
    position: int,
    moved_on: int,
    cost: str,
) -> Command:
    """Append steps to a run, and renew its lease."""
    return (
        *("EVALSHA", _APPEND.sha, 3, run_key, steps_key, inbox_key),
        *(fence, lease_ms, ttl_s, position, moved_on, cost, *steps),
    )


def run_settle(
    run_key: str,
    steps_key: str,
    inbox_key: str,
    /,
    *,
    fence: str,
    new_state: str,
    told: int,
    wake_ms: int,
    waits_for: str,
    result: str,
    announced: str,
    ttl_s: int,
) -> Command:
    """Let a run wait, go on elsewhere, or end."""
    return (
        *("EVALSHA", _SETTLE.sha, 3, run_key, steps_key, inbox_key),
        *(fence, new_state, told, wake_ms, waits_for, result, announced, ttl_s),
    )


def run_tell(run_key: str, inbox_key: str, /, *, name: str, message: str, ttl_s: int) -> Command:
    """Tell a run something that it may wait for."""
    return ("EVALSHA", _TELL.sha, 2, run_key, inbox_key, name, message, ttl_s)


def run_look(open_key: str, /, *, now_ms: int, next_ms: int, most: int) -> Command:
    """Take the runs at which it is time to look."""
    return ("EVALSHA", _LOOK.sha, 1, open_key, now_ms, next_ms, most)
