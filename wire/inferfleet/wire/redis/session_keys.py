"""The keys of a session that one script touches, and the names of the calls that do."""

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
"""How long a change of a session is known as made. Nothing that was sent twice arrives later than that."""


def session_of(job: Job) -> str:
    """The id of a turn's session."""
    assert job.session_id is not None  # noqa: S101 - callers have checked
    return job.session_id


def all_keys(session_id: str) -> tuple[str, str, str, str, str]:
    """All that a session is, but for when its turns left their places."""
    return (
        session_key(session_id),
        lane_key(session_id),
        payloads_key(session_id),
        turns_key(session_id),
        state_key(session_id),
    )


def lane_keys(job: Job) -> tuple[str, str, str, str, str, str]:
    """All that moves when a turn enters its lane or leaves it."""
    session_id = session_of(job)
    return (*all_keys(session_id), left_key(session_id))


def with_call(session_id: str) -> tuple[str, str, str, str]:
    """A session's record, turns and state, and the call that changes them."""
    return (session_key(session_id), turns_key(session_id), state_key(session_id), call_key(session_id))


def call_key(session_id: str) -> str:
    """Where a call that changes a session is known as made."""
    return session_call_key(session_id, new_token())


def new_token() -> str:
    """A name for one call, by which its script knows it when it is sent twice."""
    return os.urandom(8).hex()
