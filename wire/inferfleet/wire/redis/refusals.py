"""Interprets refusals by Redis: whether they pass, and the error for the caller, with Redis' own message."""

from __future__ import annotations

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from inferfleet.schemas.errors import ServiceRefusedError

_PASSING = (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

_PASSING_TEXTS = ("BUSY ", "MISCONF ", "NOREPLICAS ", "UNBLOCKED ", "max number of clients reached")
"""The refusals that pass for which redis-py has no exception, and leaves the code in the text."""

_NO_WRITES = (OutOfMemoryError, ReadOnlyError)

_NO_WRITES_TEXTS = ("MISCONF ", "NOREPLICAS ")

_CLUSTER = (AskError, ClusterCrossSlotError, MovedError)

_RIGHTS_TEXTS = ("The user executing the script can't", "ACL failure in script", "NOPERM ")
"""How scripts report a missing right: in Redis 6 and 7, from 7.2 on, and where they pass it on."""

_LASTING = (*_CLUSTER, AuthenticationError, AuthorizationError, NoPermissionError)

_LASTING_TEXTS = (*_RIGHTS_TEXTS, "unknown command", "Unknown Redis command", "DB index is out of range")

_NEEDS_MEMORY = "make room or raise its maxmemory"

_ADVICE: tuple[tuple[tuple[type[Exception], ...], tuple[str, ...], str], ...] = (
    (
        (AuthenticationError, AuthorizationError),
        (),
        "it refuses the credentials; check user and password in INFERFLEET_REDIS_URL",
    ),
    (
        (NoPermissionError,),
        _RIGHTS_TEXTS,
        "docs/reference/redis.md lists the rights that the user in INFERFLEET_REDIS_URL needs",
    ),
    (
        _CLUSTER,
        (),
        "it is a node of a Redis Cluster: write INFERFLEET_REDIS_URL as redis+cluster://host:port,host:port",
    ),
    ((ClusterDownError,), (), "it is a node of a Redis Cluster that is down"),
    ((OutOfMemoryError,), (), _NEEDS_MEMORY),
    ((ReadOnlyError,), (), "it is a replica: INFERFLEET_REDIS_URL should lead to the master"),
    ((MasterDownError,), (), "it is a replica that has lost its master"),
    ((), ("MISCONF ",), "it cannot save its data to disk; its log says why"),
    ((), ("NOREPLICAS ",), "it has fewer replicas than it must write to"),
    ((), ("max number of clients reached",), "raise its maxclients, or close other clients"),
    (
        (),
        ("unknown command 'SENTINEL'",),
        "it is no Sentinel: name the Sentinels in INFERFLEET_REDIS_URL, whose usual port is 26379, or write "
        "redis://host:6379/0 for a single server",
    ),
    (
        (),
        ("cluster support disabled",),
        "it is a single server: write INFERFLEET_REDIS_URL as redis://host:6379/0",
    ),
    ((), ("unknown command", "Unknown Redis command"), "the command is disabled there, or Redis is too old"),
    ((), ("DB index is out of range",), "check the number of the database in INFERFLEET_REDIS_URL"),
)


def is_refusal(error: BaseException) -> bool:
    """Return whether Redis itself has replied this error, and so is reachable."""
    return isinstance(error, (ResponseError, *_PASSING, *_LASTING)) or passes(error)


def is_trouble(error: BaseException) -> bool:
    """Return whether the error is about Redis or the connection, not a bug of ours."""
    return isinstance(error, (RedisError, OSError))


def passes(error: BaseException) -> bool:
    """Return whether the refusal may pass by itself: a failover, no memory, a start, too many clients."""
    return isinstance(error, _PASSING) or str(error).startswith(_PASSING_TEXTS)


def only_writes(error: BaseException) -> bool:
    """Return whether Redis refuses writes for now, but answers reads."""
    return isinstance(error, _NO_WRITES) or str(error).startswith(_NO_WRITES_TEXTS)


def lasts(error: BaseException) -> bool:
    """Return whether the refusal lasts until somebody changes rights, password, mode or address.

    All other refusals concern only one command, for example a key with a value of another type.
    """
    return isinstance(error, _LASTING) or any(text in str(error) for text in _LASTING_TEXTS)


def reason(error: BaseException) -> str:
    """Return Redis' message, with the code that redis-py removes."""
    code: str | None = getattr(error, "status_code", None)
    text = str(error)
    if isinstance(error, BusyLoadingError):
        code = code or "LOADING"
    return text if not isinstance(error, RedisError) or code in {None, "ERR"} else f"{code} {text}"


def refused(error: BaseException, *, where: str = "Redis", what: str = "") -> ServiceRefusedError:
    """Make the error for the caller: what Redis refuses, why, and what to do."""
    subject = f" {what}" if what else ""
    now = " for now" if passes(error) else ""
    advice = next(
        (
            f"; {advice}"
            for kinds, texts, advice in _ADVICE
            if isinstance(error, kinds) or any(text in str(error) for text in texts)
        ),
        "",
    )
    return ServiceRefusedError(
        f"{where} refuses{subject}{now} ({reason(error)}){advice}", passing=passes(error)
    )
