"""Calls the scripts about one process, or a list of them.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_REPLY = SCRIPTS["reply"]
_SEEN = SCRIPTS["seen"]
_ACCESS = SCRIPTS["access"]
_RESERVE = SCRIPTS["reserve"]
_GUARANTEE = SCRIPTS["guarantee"]
_RECORD = SCRIPTS["record"]


def reply(reply_key: str, /, *lines: str, length: int, ttl_s: int) -> Command:
    """Tell a client that some of its jobs have ended."""
    return ("EVALSHA", _REPLY.sha, 1, reply_key, length, ttl_s, *lines)


def seen(list_key: str, /, *, member: str, listed_s: int) -> Command:
    """Put a worker or a pool on its list, and remove those that were not seen for long."""
    return ("EVALSHA", _SEEN.sha, 1, list_key, member, listed_s)


def access(any_key: str, /, *commands: str) -> Command:
    """Try commands on a key that nobody uses, to find out which of them Redis refuses."""
    return ("EVALSHA", _ACCESS.sha, 1, any_key, *commands)


def reserve(places_key: str, /, *jobs: str, most: int, ttl_s: int, last: int) -> Command:
    """Reserve places for jobs among those of an API key, or for a batch among those of a tenant."""
    return ("EVALSHA", _RESERVE.sha, 1, places_key, most, ttl_s, last, *jobs)


def guarantee(
    guarantee_key: str, /, *, caller: str, number: int, cost_ms: float, burst_ms: int, ttl_s: int
) -> Command:
    """Let a job have its cost of what an API key is guaranteed, if the key has not used that up."""
    return ("EVALSHA", _GUARANTEE.sha, 1, guarantee_key, caller, number, cost_ms, burst_ms, ttl_s)


def record(
    recorder_key: str,
    history_key: str,
    /,
    *,
    recorder: str,
    lease_ms: int,
    sample: str,
    most: int,
    ttl_s: int,
) -> Command:
    """Take or renew the lease, and record a sample, if there is one. Another holder prevents both."""
    return (
        *("EVALSHA", _RECORD.sha, 2, recorder_key, history_key),
        *(recorder, lease_ms, sample, most, ttl_s),
    )
