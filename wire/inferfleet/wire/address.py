"""The address of a service: a URL, or a file that holds it.

``file:///run/secrets/amqp-url`` stands for the content of that file, which each new connection reads again.
So a password in a mounted Secret is never in the environment, and a new connection uses a rotated password.
The URL has the options for TLS: ``amqps://…?cafile=…&certfile=…&keyfile=…`` for RabbitMQ and
``rediss://…?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`` for Redis, as in aio-pika and redis-py.
``wire.rabbitmq.management`` uses the former for RabbitMQ's HTTP API.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL
)
_SEVERAL_LOGINS: Final = re.compile(r"@[\w.-]+(:\d+)?,", re.ASCII)
_USER: Final = re.compile(r"[\w.%-]*", re.ASCII)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]*)(:\d*)?", re.ASCII)
_ONE_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?", re.ASCII)
_PATH: Final = re.compile(r"[\w./%~+-]*", re.ASCII)
_HIDDEN: Final = "***"

QUOTING: Final = "a character like /, @ or # in a user, a password or a path is written as %2F, %40 or %23"
"""What to do about most addresses that are none."""

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EINTR})
"""Errors of the process or the machine, not of the file."""


def is_file(url: str) -> bool:
    """Return whether the URL names a file that holds the real one."""
    return url[:5].lower() == "file:"


def host_and_port(host: str, port: int) -> str:
    """Write an address as URLs have it: that of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def current_url(url: str) -> str:
    """Return the current URL.

    Raises:
        ConfigurationError: The file cannot be read, or is empty.
        ServiceUnreachableError: The process cannot read any file now.

    """
    if not is_file(url):
        return url
    path = Path(unquote(urlsplit(url).path))
    try:
        content = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise ServiceUnreachableError(f"cannot read the URL of a service now ({error})") from error
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"cannot read the URL of a service from {path}: {reason}") from None
    if not content:
        raise ConfigurationError(f"{path} should hold the URL of a service, and is empty")
    return content


def one_each(url: str, *, setting: str) -> list[str]:
    """Return a URL for each host of a URL, all with the same user, path and options.

    The hosts are separated by commas, as in ``amqp://user:password@one:5672,two:5672/``.

    Raises:
        ConfigurationError: A host is invalid, or there are several URLs, or a ``#``. The message quotes
            nothing that may be secret.

    """
    parts = _URL.fullmatch(url)
    if parts is None:
        return [url]
    if "://" in url.partition("?")[0].partition("://")[2]:
        raise ConfigurationError(
            f"{setting} has more than one URL: write one, with the user, the password and the path once, and "
            "commas between the hosts"
        )
    if "#" in parts["rest"]:
        # What is in front of it may be the beginning of a password, and be taken for a host.
        raise ConfigurationError(f"{setting} has a #, behind which nothing is read: {QUOTING}")
    userinfo, at, hosts = parts["authority"].rpartition("@")
    if _SEVERAL_LOGINS.search(userinfo):
        raise ConfigurationError(
            f"{setting} names a user and a password more than once: write them once, before the first host, "
            "and an @ in a password as %40"
        )
    if "," not in hosts:
        return [url]
    each = hosts.split(",")
    for number, host in enumerate(each, start=1):
        found = _ONE_HOST.fullmatch(host)
        if found is None or not 0 < int(found["port"] or 1) < 65_536:
            # Not quoted: it may be a part of the password.
            raise ConfigurationError(
                f"{setting}: host {number} of {len(each)} is not like host:port; commas separate hosts"
            )
    return [f"{parts['scheme']}://{userinfo}{at}{host}{parts['path']}{parts['rest']}" for host in each]


def redacted(url: str) -> str:
    """Return the URL without secrets: scheme, users, hosts and path. Never raises.

    It contains no password of any host, no parameter (Redis accepts passwords there, too), and nothing that
    could be part of an unquoted password.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        return _HIDDEN
    path = parts["path"]
    if "@" in path + parts["rest"] or not _PATH.fullmatch(path):
        # The end of the password is uncertain: it may contain a slash or a question mark.
        return f"{parts['scheme']}://{_HIDDEN}"
    hosts = parts["authority"].split(",")
    last = max((place for place, host in enumerate(hosts) if "@" in host), default=0)
    shown = [
        # Text before a later @ may be the beginning of a password with a comma in it.
        _host(host) if place >= last or "@" in host else _HIDDEN
        for place, host in enumerate(hosts)
    ]
    return f"{parts['scheme']}://{','.join(shown)}{path}"


def without_secrets(text: str, url: str) -> str:
    """Remove the passwords of a URL from a library's message."""
    parts = _URL.fullmatch(url)
    if parts is None:
        return text.replace(url, _HIDDEN)
    secrets = {url, *(value for _, value in parse_qsl(parts["rest"].lstrip("?")))}
    # The password is in front of all hosts, or of each.
    for host in (parts["authority"], *parts["authority"].split(",")):
        secrets.add(host.rpartition("@")[0].partition(":")[2])
    secrets |= {unquote(secret) for secret in secrets}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    return text


def without_path(text: str, url: str) -> str:
    """Remove the path of a URL from a service's message where ``redacted`` hides it, and it may be secret."""
    parts = _URL.fullmatch(url)
    path = "" if parts is None else parts["path"].removeprefix("/")
    if "@" not in path:
        return text
    for shown in (unquote(path), path):
        text = text.replace(shown, _HIDDEN)
    return text


def _host(text: str) -> str:
    userinfo, at, host = text.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    # Without a colon this may be a token, or a password whose colon is missing.
    user = user if colon and _USER.fullmatch(user) else _HIDDEN
    host = host if _HOST.fullmatch(host) else _HIDDEN
    return f"{user}{colon and colon + _HIDDEN}{at}{host}" if at else host
