"""Calls the scripts about one client or worker.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_REPLY = SCRIPTS["reply"]
_WORKER_SEEN = SCRIPTS["worker_seen"]
_ACCESS = SCRIPTS["access"]


def reply(reply_key: str, /, *lines: str, length: int, ttl_s: int) -> Command:
    """Tell a client that some of its jobs have ended."""
    return ("EVALSHA", _REPLY.sha, 1, reply_key, length, ttl_s, *lines)


def worker_seen(workers_key: str, /, *, worker: str, listed_s: int) -> Command:
    """Put a worker with a heartbeat on the list, and remove workers that have had none for long."""
    return ("EVALSHA", _WORKER_SEEN.sha, 1, workers_key, worker, listed_s)


def access(any_key: str, /, *commands: str) -> Command:
    """Try commands on a key that nobody uses, to find out which of them Redis refuses."""
    return ("EVALSHA", _ACCESS.sha, 1, any_key, *commands)
