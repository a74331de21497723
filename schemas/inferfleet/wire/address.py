"""Where a service is: a URL, or a file that holds it.

``file:///run/secrets/amqp-url`` stands for the content of that file, read anew for every connection. So
a password in a mounted Secret never is in the environment, and a rotated one is used from the next
connection on. TLS is in the URL: ``amqps://…?cafile=…&certfile=…&keyfile=…`` for RabbitMQ and
``rediss://…?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`` for Redis, as aio-pika and redis-py have it.
``wire.management`` takes the former's for RabbitMQ's HTTP API.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from inferfleet.schemas.errors import ConfigurationError


def is_file(url: str) -> bool:
    """Whether the URL names a file that holds the real one."""
    return urlsplit(url).scheme == "file"


def current_url(url: str) -> str:
    """The URL to connect to now.

    Raises:
        ConfigurationError: The file cannot be read, or is empty.

    """
    if not is_file(url):
        return url
    path = Path(unquote(urlsplit(url).path))
    try:
        content = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the URL of a service from {path}: {error}") from error
    if not content:
        raise ConfigurationError(f"{path} should hold the URL of a service, and is empty")
    return content
