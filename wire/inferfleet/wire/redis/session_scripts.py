"""Calls the scripts about one session, and about the turns of a pool that wait in lanes.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_ENTER = SCRIPTS["session_enter"]
_FRONT = SCRIPTS["session_front"]
_PUBLISHED = SCRIPTS["session_published"]
_ADVANCE = SCRIPTS["session_advance"]
_BEGIN = SCRIPTS["session_begin"]
_APPEND = SCRIPTS["session_append"]
_RENEW = SCRIPTS["session_renew"]
_REPLACE_STATE = SCRIPTS["session_state"]
_CONFIGURE = SCRIPTS["session_configure"]
_IMPORT_TURNS = SCRIPTS["session_import"]
_DELETE = SCRIPTS["session_delete"]
_WAITING_TURN = SCRIPTS["waiting_turn"]


def enter(
    session_key: str,
    lane_key: str,
    payloads_key: str,
    turns_key: str,
    state_key: str,
    left_key: str,
    /,
    *,
    job: str,
    payload: bytes,
    on_busy: str,
    ttl_s: int,
    stale_ms: int,
    max_bytes: int,
    admitted: int,
    counted: int,
    known_left: bytes,
    entry: str,
    left_ttl_s: int,
    witness: str,
) -> Command:
    """Ask to run a turn in its session."""
    return (
        "EVALSHA",
        _ENTER.sha,
        6,
        session_key,
        lane_key,
        payloads_key,
        turns_key,
        state_key,
        left_key,
        job,
        payload,
        on_busy,
        ttl_s,
        stale_ms,
        max_bytes,
        admitted,
        counted,
        known_left,
        entry,
        left_ttl_s,
        witness,
    )


def front(session_key: str, payloads_key: str, /, *, job: str, take: str) -> Command:
    """Read the turn that owns a session, for the producer of another turn."""
    return ("EVALSHA", _FRONT.sha, 2, session_key, payloads_key, job, take)


def published(session_key: str, /, *, job: str, witness: str, again: int) -> Command:
    """Record that the owner has a message."""
    return ("EVALSHA", _PUBLISHED.sha, 1, session_key, job, witness, again)


def advance(
    session_key: str,
    lane_key: str,
    payloads_key: str,
    turns_key: str,
    state_key: str,
    left_key: str,
    /,
    *,
    job: str,
    default_idle_ttl_s: int,
    witness: str,
    undo: int,
    known_entry: bytes,
    left_ttl_s: int,
) -> Command:
    """Let the next turn run, because a turn has ended or its producer takes it back."""
    return (
        "EVALSHA",
        _ADVANCE.sha,
        6,
        session_key,
        lane_key,
        payloads_key,
        turns_key,
        state_key,
        left_key,
        job,
        default_idle_ttl_s,
        witness,
        undo,
        known_entry,
        left_ttl_s,
    )


def begin(
    session_key: str,
    lane_key: str,
    payloads_key: str,
    turns_key: str,
    state_key: str,
    left_key: str,
    /,
    *,
    job: str,
    fence: str,
    ttl_s: int,
    attempt: int,
    witness: str,
    known_left: bytes,
) -> Command:
    """Begin an attempt of the owner's turn: take the session's fence."""
    return (
        "EVALSHA",
        _BEGIN.sha,
        6,
        session_key,
        lane_key,
        payloads_key,
        turns_key,
        state_key,
        left_key,
        job,
        fence,
        ttl_s,
        attempt,
        witness,
        known_left,
    )


def append(
    session_key: str,
    turns_key: str,
    state_key: str,
    /,
    *,
    job: str,
    fence: str,
    turn: str,
    answer: bytes,
    now_ms: int,
    expected_version: int | str,
    state: bytes,
    ttl_s: int,
    warm: str,
) -> Command:
    """Add a complete turn to the history, and its state."""
    return (
        "EVALSHA",
        _APPEND.sha,
        3,
        session_key,
        turns_key,
        state_key,
        job,
        fence,
        turn,
        answer,
        now_ms,
        expected_version,
        state,
        ttl_s,
        warm,
    )


def renew(
    session_key: str,
    lane_key: str,
    payloads_key: str,
    turns_key: str,
    state_key: str,
    /,
    *,
    job: str,
    fence: str,
    ttl_s: int,
) -> Command:
    """Renew the session of a running turn."""
    return (
        "EVALSHA",
        _RENEW.sha,
        5,
        session_key,
        lane_key,
        payloads_key,
        turns_key,
        state_key,
        job,
        fence,
        ttl_s,
    )


def replace_state(
    session_key: str,
    turns_key: str,
    state_key: str,
    /,
    *,
    expected_version: int,
    state: bytes,
    now_ms: int,
    default_idle_ttl_s: int,
    max_bytes: int,
    token: str,
) -> Command:
    """Replace the state, if it has the version that the caller knows."""
    return (
        "EVALSHA",
        _REPLACE_STATE.sha,
        3,
        session_key,
        turns_key,
        state_key,
        expected_version,
        state,
        now_ms,
        default_idle_ttl_s,
        max_bytes,
        token,
    )


def configure(
    session_key: str,
    turns_key: str,
    state_key: str,
    call_key: str,
    /,
    *,
    idle_ttl_s: int | str,
    max_history_tokens: int | str,
    now_ms: int,
    default_idle_ttl_s: int,
    call_ttl_s: int,
) -> Command:
    """Set how long Redis keeps an idle session, and how much of its history enters a prompt."""
    return (
        "EVALSHA",
        _CONFIGURE.sha,
        4,
        session_key,
        turns_key,
        state_key,
        call_key,
        idle_ttl_s,
        max_history_tokens,
        now_ms,
        default_idle_ttl_s,
        call_ttl_s,
    )


def import_turns(
    session_key: str,
    turns_key: str,
    state_key: str,
    call_key: str,
    /,
    *turns: str,
    now_ms: int,
    ttl_s: int,
    idle_ttl_s: int | str,
    max_history_tokens: int | str,
    state: bytes | str,
    history_bytes: int,
    call_ttl_s: int,
) -> Command:
    """Create a session from turns and a state, unless it exists."""
    return (
        "EVALSHA",
        _IMPORT_TURNS.sha,
        4,
        session_key,
        turns_key,
        state_key,
        call_key,
        now_ms,
        ttl_s,
        idle_ttl_s,
        max_history_tokens,
        state,
        history_bytes,
        call_ttl_s,
        *turns,
    )


def delete(
    session_key: str,
    lane_key: str,
    payloads_key: str,
    turns_key: str,
    state_key: str,
    call_key: str,
    /,
    *,
    call_ttl_s: int,
) -> Command:
    """Delete the history and the state."""
    return (
        "EVALSHA",
        _DELETE.sha,
        6,
        session_key,
        lane_key,
        payloads_key,
        turns_key,
        state_key,
        call_key,
        call_ttl_s,
    )


def waiting_turn(pool_key: str, waiting_turns_key: str, /, *, job: str, ttl_s: int, admitted: int) -> Command:
    """Count a turn that waits in its session's lane, or is going to, unless too many wait."""
    return ("EVALSHA", _WAITING_TURN.sha, 2, pool_key, waiting_turns_key, job, ttl_s, admitted)
