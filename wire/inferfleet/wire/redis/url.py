"""Checks a Redis URL before connecting.

redis-py takes any option from a URL, and lets it override the program's: a ``decode_responses`` or
``socket_timeout`` there would break the readers of replies, and a misspelt option is a traceback at the first
command. So this module lists the allowed options.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.exceptions import RedisError

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.wire.address import QUOTING

_OPTIONS: Final = ("db", "username", "password", "client_name")

_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

_TLS_OPTIONS: Final = (
    *_TLS_FILES,
    *("ssl_ca_path", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers"),
)

_KEEPALIVE_S: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""TCP keepalive probes an idle connection every 15 s, so that a NAT does not drop it. A dead connection is
noticed within 30 s."""


def connection_options(address: str) -> dict[str, Any]:
    """Return the options of a connection besides the URL itself.

    Raises:
        ConfigurationError: The URL is invalid. The message quotes no value that may be secret.

    """
    try:
        parts = urlsplit(address)
        _check_place(parts)
    except ValueError:
        # Not chained: the error may quote a part of the password.
        raise _wrong(f"is not an address like redis://:password@host:6379/0; {QUOTING}") from None
    _check_options(parts)
    if parts.scheme == "unix":
        return {}
    keepalive = {getattr(socket, name): s for name, s in _KEEPALIVE_S.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": keepalive}


def check_connection(pool: Any) -> None:
    """Make a connection without connecting it, so that an option which redis-py refuses is an error now.

    Raises:
        ConfigurationError: An option has an invalid value.

    """
    try:
        connection: Any = pool.make_connection()
        if (context := getattr(connection, "ssl_context", None)) is not None:
            context.get()
    except (TypeError, ValueError, OSError, RedisError) as error:
        raise _wrong(f"has an option that cannot be used ({error})") from error


def _check_place(parts: SplitResult) -> None:
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not parts.path.strip("/"):
            raise _wrong("does not name a socket: write it as unix:///run/redis/redis.sock?db=0")
        return
    if parts.port == 0:
        raise ValueError("no port")
    if database := parts.path.strip("/"):
        _check_database(database)


def _check_database(name: str) -> None:
    if not (name.isascii() and name.isdecimal()):
        # Behind a slash may be the rest of an unquoted password.
        shown = f"what is no number; {QUOTING}" if "@" in name else f"{name!r}, which is not a number"
        raise _wrong(f"names the database {shown}")


def _check_options(parts: SplitResult) -> None:
    known = (*_OPTIONS, *(_TLS_OPTIONS if parts.scheme == "rediss" else ()))
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _TLS_OPTIONS and name not in known:
            raise _wrong(f"has the option {name!r}, which needs rediss://")
        if name not in known:
            # An unknown name may be the rest of a password with a question mark in it.
            shown = f"{name!r}{did_you_mean(name, known)}" if name.isidentifier() else "that is no name"
            raise _wrong(f"has an option {shown}; possible are {', '.join(known)}")
        if not value:
            raise _wrong(f"has the option {name!r} without a value")
        if name == "db":
            _check_database(value)
        try:
            URL_QUERY_ARGUMENT_PARSERS.get(name, str)(value)
        except ValueError:
            raise _wrong(f"has the option {name!r} with {value!r}, which cannot be") from None
        if name in _TLS_FILES and not Path(value).is_file():
            raise _wrong(f"has the option {name!r} with {value!r}, which is not a file here")


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"INFERFLEET_REDIS_URL {what}")
