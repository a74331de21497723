"""RabbitMQ's HTTP API. Each request uses a new connection, with the current credentials and certificates.

The address has the form of the others (see ``wire.address``): a URL or a file that holds it, with options for
TLS in the query: ``https://user:password@host:15671/?cafile=…&certfile=…&keyfile=…``. A URL without such
options uses those of the AMQP URL, because KEDA, which should share the URL, accepts no query. The callers
choose the queues, and know what their numbers mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import aiohttp
from pydantic import ValidationError
from yarl import URL

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.problems import describe
from inferfleet.wire.address import QUOTING, current_url, redacted, without_secrets
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer, QueuesAnswer

Answer = TypeVar("Answer", QueueAnswer, QueuesAnswer)

TLS_PARAMETERS = frozenset({"cafile", "capath", "certfile", "keyfile", "no_verify_ssl"})
"""The options for TLS, as in an AMQP URL."""


class ManagementApi:
    """Reads from the API. Keeps no connection and no credentials between two reads.

    Both addresses may be files. The virtual host is that of the AMQP URL.
    """

    def __init__(self, url: str, *, amqp_url: str, timeout_s: float) -> None:
        self._url = url
        self._amqp_url = amqp_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    def check(self) -> None:
        """Raise ``ConfigurationError`` now, rather than at every read, if an address is invalid."""
        self._addresses()

    async def queues(self, query: Mapping[str, str]) -> QueuesAnswer:
        """Read a page of the virtual host's queues.

        Raises:
            ServiceUnreachableError: RabbitMQ does not answer, or refuses, or another server answers.
            ConfigurationError: An address is invalid, or its file cannot be read.

        """
        return await self._get("", query, QueuesAnswer)

    async def queue(self, name: str) -> QueueAnswer:
        """Read one queue. Raises the same errors as ``queues``."""
        return await self._get(f"/{quote(name, safe='')}", {}, QueueAnswer)

    async def _get(self, path: str, query: Mapping[str, str], model: type[Answer]) -> Answer:
        url, amqp_url = self._addresses()
        asked = URL(f"{queues_url(url, amqp_url=amqp_url)}{path}", encoded=True).update_query(query)
        shown = redacted(url)
        # Made in a thread, because it reads the system's certificates unless a file is given.
        context = await asyncio.to_thread(_tls_context, tls_parameters(url, amqp_url=amqp_url))
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as http,
                http.get(asked, ssl=context) as answer,
            ):
                if answer.status in {401, 403}:
                    raise ServiceUnreachableError(
                        f"RabbitMQ's API at {shown} refuses the credentials; check user and password in "
                        "INFERFLEET_MANAGEMENT_URL, and that the user has the tag monitoring"
                    )
                if answer.status != 200:
                    raise ServiceUnreachableError(
                        f"RabbitMQ's API at {shown} answers {answer.status} for {asked.raw_path}; check the "
                        "host, and the virtual host in INFERFLEET_AMQP_URL"
                    )
                return model.model_validate_json(await answer.read())
        except ServiceUnreachableError:
            raise
        except ValidationError as error:
            problem = "; ".join(describe(error, whole="the answer").splitlines())
            raise ServiceUnreachableError(
                f"what answers at {shown} is not RabbitMQ's API ({problem}); check INFERFLEET_MANAGEMENT_URL"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            words = without_secrets(str(error), url) or type(error).__name__
            raise ServiceUnreachableError(
                f"RabbitMQ's API at {shown} does not answer ({words}); check "
                "INFERFLEET_MANAGEMENT_URL and that the plugin rabbitmq_management is enabled"
            ) from error

    def _addresses(self) -> tuple[str, str]:
        """Return both current URLs."""
        amqp_url = current_url(self._amqp_url)
        try:
            urlsplit(amqp_url)
        except ValueError:
            raise ConfigurationError(
                f"INFERFLEET_AMQP_URL is not an address like amqp://user:password@host:5672/vhost; {QUOTING}"
            ) from None
        return _address(current_url(self._url)), amqp_url


def queues_url(url: str, *, amqp_url: str) -> str:
    """Return the URL that lists the queues of the AMQP URL's virtual host.

    The address may end in that virtual host, or in a slash for ``/``, as KEDA requires.
    """
    parts = urlsplit(url)
    virtual_host = unquote(urlsplit(amqp_url).path.removeprefix("/")) or "/"
    base, _, last = parts.path.rstrip("/").rpartition("/")
    if unquote(last) != virtual_host:
        base = parts.path.rstrip("/")
    path = f"{base}/api/queues/{quote(virtual_host, safe='')}"
    return parts._replace(path=path, query="", fragment="").geturl()


def tls_parameters(url: str, *, amqp_url: str) -> Mapping[str, str] | None:
    """Return the options for TLS: the address's own, or those of the AMQP URL; ``None`` without TLS.

    Raises:
        ConfigurationError: The address has an unknown parameter.

    """
    own = dict(URL(url).query)
    if unknown := own.keys() - TLS_PARAMETERS:
        raise ConfigurationError(
            f"INFERFLEET_MANAGEMENT_URL has the parameter {', '.join(sorted(unknown))}; "
            f"there are {', '.join(sorted(TLS_PARAMETERS))}"
        )
    if urlsplit(url).scheme != "https":
        return None
    of_amqp = {name: value for name, value in parse_qsl(urlsplit(amqp_url).query) if name in TLS_PARAMETERS}
    return own or of_amqp


def _tls_context(parameters: Mapping[str, str] | None) -> ssl.SSLContext | bool:
    if parameters is None:
        return True
    try:
        context = ssl.create_default_context(cafile=parameters.get("cafile"), capath=parameters.get("capath"))
        if certificate := parameters.get("certfile"):
            context.load_cert_chain(certificate, parameters.get("keyfile"))
    except OSError as error:
        # The original error names no file.
        files = ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
        raise ConfigurationError(
            f"cannot use the certificates for RabbitMQ's API, {files}: {error}"
        ) from error
    if parameters.get("no_verify_ssl", "0") != "0":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _address(url: str) -> str:
    """Return the URL if it is valid. The error does not quote the invalid part, which may be the password."""
    try:
        usable = urlsplit(url).scheme in {"http", "https"} and URL(url).host is not None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"INFERFLEET_MANAGEMENT_URL is not an address like http://user:password@host:15672; {QUOTING}"
        )
    return url
