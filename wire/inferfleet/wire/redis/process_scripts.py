"""Scripts about one client or worker.

``script`` says what all of them have in common; what one does and answers, its text in ``lua`` says.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_REPLY = SCRIPTS["reply"]
_WORKER_SEEN = SCRIPTS["worker_seen"]
_ACCESS = SCRIPTS["access"]


def reply(reply_key: str, /, *lines: str, length: int, ttl_s: int) -> Command:
    """Tell a client that jobs of its have ended."""
    return ("EVALSHA", _REPLY.sha, 1, reply_key, length, ttl_s, *lines)


def worker_seen(workers_key: str, /, *, worker: str, listed_s: int) -> Command:
    """A worker has a heartbeat: put it on the list, and take off those that had none for long."""
    return ("EVALSHA", _WORKER_SEEN.sha, 1, workers_key, worker, listed_s)


def access(any_key: str, /, *commands: str) -> Command:
    """Try commands on a key that nobody uses, to learn which of them Redis refuses."""
    return ("EVALSHA", _ACCESS.sha, 1, any_key, *commands)
