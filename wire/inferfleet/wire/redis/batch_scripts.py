"""Calls the scripts by which gateways share the work on batches.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Argument, Command

_CLAIM = SCRIPTS["batch_claim"]
_CHANGE = SCRIPTS["batch_change"]
_CANCEL = SCRIPTS["batch_cancel"]


def batch_claim(batch_key: str, /, *, runner: str, lease_ms: int) -> Command:
    """Claim a batch that nobody works on."""
    return ("EVALSHA", _CLAIM.sha, 1, batch_key, runner, lease_ms)


def batch_change(
    batch_key: str, /, *fields: Argument, runner: str, lease_ms: int, new_state: str, at_ms: int
) -> Command:
    """Change a batch, and renew the lease of its runner."""
    return ("EVALSHA", _CHANGE.sha, 1, batch_key, runner, lease_ms, new_state, at_ms, *fields)


def batch_cancel(batch_key: str, /, *, at_ms: int) -> Command:
    """Cancel a batch."""
    return ("EVALSHA", _CANCEL.sha, 1, batch_key, at_ms)
