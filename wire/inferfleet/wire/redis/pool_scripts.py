"""Calls the scripts about one pool: its unfinished and lost jobs, its rollout, the shares of its tenants.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Argument, Command

_SWEEP = SCRIPTS["sweep"]
_OPEN_RANGE = SCRIPTS["open_range"]
_OPEN_BEHIND = SCRIPTS["open_behind"]
_FORGET_OPEN = SCRIPTS["forget_open"]
_POOL_CHANGE = SCRIPTS["pool_change"]
_ROLLOUT_CHANGE = SCRIPTS["rollout_change"]
_ROLLOUT_LEAD = SCRIPTS["rollout_lead"]
_LEASE = SCRIPTS["lease"]
_ENDED_ADD = SCRIPTS["ended_add"]
_SHARE_PLACE = SCRIPTS["share_place"]
_SHARE_ADD = SCRIPTS["share_add"]
_SHARE_GIVE_BACK = SCRIPTS["share_give_back"]


def sweep(
    sweep_key: str,
    held_key: str,
    /,
    *held: str,
    sweeper: str,
    lease_ms: int,
    held_ms: int,
    fronts: str,
    ttl_s: int,
) -> Command:
    """Report what a worker holds and was delivered, and begin to sweep the pool, if that is due."""
    return (
        "EVALSHA",
        _SWEEP.sha,
        2,
        sweep_key,
        held_key,
        sweeper,
        lease_ms,
        held_ms,
        fronts,
        ttl_s,
        *held,
    )


def open_range(open_key: str, held_key: str, /, *, from_ms: int, below_ms: int, limit: int) -> Command:
    """Read the oldest unfinished jobs of a priority."""
    return ("EVALSHA", _OPEN_RANGE.sha, 2, open_key, held_key, from_ms, below_ms, limit)


def open_behind(open_key: str, /, *, behind_ms: int, behind_id: str, limit: int) -> Command:
    """Read the oldest unfinished jobs of a priority after a place."""
    return ("EVALSHA", _OPEN_BEHIND.sha, 1, open_key, behind_ms, behind_id, limit)


def forget_open(open_key: str, /, *entries: Argument) -> Command:
    """Remove jobs from the index of unfinished jobs, each with the score that the caller has read."""
    return ("EVALSHA", _FORGET_OPEN.sha, 1, open_key, *entries)


def pool_change(pool_key: str, /, *, field: str, value: Argument, change: str) -> Command:
    """Set a field of a pool, or clear it."""
    return ("EVALSHA", _POOL_CHANGE.sha, 1, pool_key, field, value, change)


def rollout_change(
    rollout_key: str, pool_key: str, /, *, known_revision: int, state: str, rule: str, change: str
) -> Command:
    """Change the rollout of a pool, unless somebody else has changed it."""
    return ("EVALSHA", _ROLLOUT_CHANGE.sha, 2, rollout_key, pool_key, known_revision, state, rule, change)


def rollout_lead(rollout_key: str, /, *, controller: str, lease_ms: int) -> Command:
    """Take or renew the lease of the process that controls a rollout."""
    return ("EVALSHA", _ROLLOUT_LEAD.sha, 1, rollout_key, controller, lease_ms)


def lease(lease_key: str, /, *, holder: str, lease_ms: int) -> Command:
    """Take or renew a lease, or with a ``lease_ms`` of 0 give it up."""
    return ("EVALSHA", _LEASE.sha, 1, lease_key, holder, lease_ms)


def ended_add(ended_key: str, call_key: str, /, *counts: Argument, call_ttl_s: int, ttl_s: int) -> Command:
    """Add jobs that have ended to the counts of their pool."""
    return ("EVALSHA", _ENDED_ADD.sha, 2, ended_key, call_key, call_ttl_s, ttl_s, *counts)


def share_place(
    shares_key: str,
    preferred_key: str,
    /,
    *,
    tenant: str,
    job: str,
    weight: str,
    most: int,
    half_life_ms: int,
    competes: float,
    many: int,
    mean_ms: int,
    ttl_s: int,
) -> Command:
    """Prefer a job if its tenant has been served no more than its share, and has room."""
    return (
        "EVALSHA",
        _SHARE_PLACE.sha,
        2,
        shares_key,
        preferred_key,
        tenant,
        job,
        weight,
        most,
        half_life_ms,
        competes,
        many,
        mean_ms,
        ttl_s,
    )


def share_add(
    shares_key: str,
    preferred_key: str,
    call_key: str,
    /,
    *jobs: str,
    tenant: str,
    number: int,
    call_ttl_s: int,
    work: int,
    half_life_ms: int,
    ttl_s: int,
) -> Command:
    """Add jobs that have ended to what their tenant has been served."""
    return (
        "EVALSHA",
        _SHARE_ADD.sha,
        3,
        shares_key,
        preferred_key,
        call_key,
        tenant,
        number,
        call_ttl_s,
        work,
        half_life_ms,
        ttl_s,
        *jobs,
    )


def share_give_back(
    shares_key: str, preferred_key: str, /, *, tenant: str, job: str, since_ms: float
) -> Command:
    """Take a preferred job's place from it, unless it has got the place again since."""
    return ("EVALSHA", _SHARE_GIVE_BACK.sha, 2, shares_key, preferred_key, tenant, job, since_ms)
