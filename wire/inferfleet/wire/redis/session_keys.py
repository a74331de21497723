"""The keys of a session that a script touches, and the names of calls."""

from __future__ import annotations

import os

from inferfleet.schemas.job import Job
from inferfleet.schemas.names import (
    lane_key,
    left_key,
    payloads_key,
    session_call_key,
    session_key,
    state_key,
    turns_key,
)

CALL_TTL_S = 3600
"""How long Redis remembers that a change of a session was made. No repeated command arrives later."""


def session_of(job: Job) -> str:
    """Return the id of a turn's session."""
    assert job.session_id is not None  # noqa: S101 - callers have checked
    return job.session_id


def all_keys(session_id: str) -> tuple[str, str, str, str, str]:
    """Return all keys of a session, except the one with the times at which its turns left the lane."""
    return (
        session_key(session_id),
        lane_key(session_id),
        payloads_key(session_id),
        turns_key(session_id),
        state_key(session_id),
    )


def lane_keys(job: Job) -> tuple[str, str, str, str, str, str]:
    """Return the keys that change when a turn enters or leaves its lane."""
    session_id = session_of(job)
    return (*all_keys(session_id), left_key(session_id))


def with_call(session_id: str) -> tuple[str, str, str, str]:
    """Return the keys of a session's record, turns and state, and of the call that changes them."""
    return (session_key(session_id), turns_key(session_id), state_key(session_id), call_key(session_id))


def call_key(session_id: str) -> str:
    """Return the key that records that a call has changed a session."""
    return session_call_key(session_id, new_token())


def new_token() -> str:
    """Make a name for one call, by which its script recognizes a repetition."""
    return os.urandom(8).hex()
