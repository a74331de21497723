"""Reads a Redis URL that names more than one server: the Sentinels of a master, or nodes of a cluster.

``redis+sentinel://user:password@host:26379,host:26379/service/0`` and
``redis+cluster://user:password@host:6379,host:6379``; ``rediss+…`` for TLS. The options are those of a single
server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.wire.address import one_each

SETTING: Final = "INFERFLEET_REDIS_URL"

SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
"""The login at the Sentinels, which have users of their own."""

_SERVICE: Final = re.compile(r"[\w.-]+", re.ASCII)
_SENTINEL_PORT: Final = 26379


class TopologyKind(StrEnum):
    """How several servers serve as one store."""

    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Topology:
    """Several servers. ``urls`` has a URL for each host, as if it were a single server."""

    kind: TopologyKind
    urls: tuple[str, ...] = field(repr=False)
    service: str = ""
    """The name of the master at the Sentinels."""
    login: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """The user name and password at the Sentinels."""


def topology_of(address: str) -> Topology | None:
    """Read a URL; ``None`` if it names a single server.

    Raises:
        ConfigurationError: The URL is invalid. The message quotes nothing that may be secret.

    """
    scheme, _, rest = address.partition("://")
    tls, plus, name = scheme.lower().partition("+")
    each = one_each(address, setting=SETTING)
    if not plus:
        if len(each) > 1:
            raise ConfigurationError(
                f"{SETTING} names {len(each)} hosts: that needs {tls}+sentinel:// or {tls}+cluster://"
            )
        return None
    if name not in tuple(TopologyKind):
        # Not quoted: without a scheme it may be a part of the password.
        raise ConfigurationError(
            f"{SETTING} has another scheme than redis+sentinel and redis+cluster, or these with rediss"
        )
    kind = TopologyKind(name)
    parts = [urlsplit(one) for one in each]
    if any(not part.hostname for part in parts):
        raise ConfigurationError(f"{SETTING} names no host: write it as {scheme}://host:port,host:port")
    path = parts[0].path.strip("/").split("/")
    if kind is TopologyKind.SENTINEL:
        service, database = path[0], "/".join(path[1:])
        if not _SERVICE.fullmatch(service):
            raise ConfigurationError(
                f"{SETTING} names no service of the Sentinels: write it as {scheme}://host:26379/service/0"
            )
    else:
        service, database = "", "/".join(path)
        if database not in {"", "0"} or dict(parse_qsl(rest.partition("?")[2])).get("db", "0") != "0":
            raise ConfigurationError(f"{SETTING}: a Redis Cluster has no other database than 0")
    options = parse_qsl(parts[0].query, keep_blank_values=True)
    login = {name.removeprefix("sentinel_"): value for name, value in options if name in SENTINEL_OPTIONS}
    if login and kind is not TopologyKind.SENTINEL:
        raise ConfigurationError(f"{SETTING}: {' and '.join(SENTINEL_OPTIONS)} need {tls}+sentinel://")
    query = urlencode([(name, value) for name, value in options if name not in SENTINEL_OPTIONS])
    urls: list[str] = []
    for part in parts:
        # Without a port of its own, a host has the usual one of its kind.
        usual = f":{_SENTINEL_PORT}" if kind is TopologyKind.SENTINEL and part.port is None else ""
        simple = part._replace(scheme=tls, netloc=part.netloc + usual, path=f"/{database}", query=query)
        urls.append(simple.geturl())
    return Topology(kind, tuple(urls), service, login)
