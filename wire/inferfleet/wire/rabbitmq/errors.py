"""Translates the errors of RabbitMQ and aio-pika, with messages that say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from aio_pika.exceptions import (
    AMQPChannelError,
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.wire.address import QUOTING, redacted, without_path, without_secrets

# StopAsyncIteration is what aiormq raises when the other end hangs up during the handshake: a broker that
# is just starting, or a load balancer with nothing behind it. RuntimeError is what it and aio-pika raise
# when the connection has ended between two calls.
_NO_ANSWER = (
    AMQPConnectionError,
    ChannelInvalidStateError,
    OSError,
    asyncio.IncompleteReadError,
    RuntimeError,
    StopAsyncIteration,
)


@contextmanager
def connection_errors(url: str) -> Generator[None]:
    """Translate what aio-pika raises while it connects and declares.

    Raises:
        ServiceUnreachableError: RabbitMQ does not answer, or refuses the login.
        ServiceRefusedError: RabbitMQ has accepted the login, but refuses a request.
        ConfigurationError: The URL is invalid.

    """
    try:
        yield
    except InferfleetError:
        # Translated already; some of these are also Python's connection errors.
        raise
    except (AuthenticationError, ProbableAuthenticationError, InvalidFrameError) as error:
        raise not_let_in(url, str(error)) from error
    except _NO_ANSWER as error:
        raise no_answer(url, words(error, url)) from error
    except AMQPChannelError as error:
        raise refused(f"RabbitMQ at {redacted(url)} refuses", error) from error
    except AMQPError as error:
        raise BrokerUnreachableError(
            f"RabbitMQ at {redacted(url)} violates the protocol: {words(error, url)}"
        ) from error
    except ValueError:
        # Not chained: the error may quote a part of the password.
        raise ConfigurationError(
            f"INFERFLEET_AMQP_URL is not an address like amqp://user:password@host:5672/vhost; {QUOTING}"
        ) from None
    except Exception as error:
        if type(error) is not Exception:
            raise
        # What aiormq raises if the connection ends during a call and it does not know why.
        raise no_answer(url, "it closed the connection") from error


def words(error: BaseException, url: str) -> str:
    """Return what an error says, without secrets of the URL."""
    if isinstance(error, StopAsyncIteration):
        # What aiormq raises if the connection ends during the handshake.
        return "it closed the connection"
    return without_secrets(str(error), url) or type(error).__name__


class BrokerUnreachableError(ServiceUnreachableError):
    """It is RabbitMQ that is unreachable."""


class UnusableCertificatesError(BrokerUnreachableError):
    """The files for TLS cannot be read now. Another host needs the same."""


def unusable_certificates(url: str, problem: str) -> UnusableCertificatesError:
    """Say which files for TLS cannot be used."""
    return UnusableCertificatesError(
        f"RabbitMQ at {redacted(url)} is not asked, because the certificates that INFERFLEET_AMQP_URL names "
        f"cannot be used: {problem}"
    )


def no_answer(url: str, reason: str) -> BrokerUnreachableError:
    """Say why no broker at the URL answers."""
    return BrokerUnreachableError(
        f"RabbitMQ at {redacted(url)} does not answer ({reason}); "
        "check INFERFLEET_AMQP_URL, or start local services with `inferfleet local up`"
    )


class NotLetInError(BrokerUnreachableError):
    """A broker answers, and closes the connection before it is open."""


def not_let_in(url: str, reason: str) -> NotLetInError:
    """Say why the broker closed the connection before it was open."""
    reason = without_path(reason, url)
    return NotLetInError(
        f"RabbitMQ at {redacted(url)} refuses the credentials or the virtual host ({reason}); check user, "
        "password and vhost in INFERFLEET_AMQP_URL, and the broker's permissions and limits for them"
    )


def refused(what: str, error: BaseException) -> ServiceRefusedError:
    """Make the error for a refusal: the broker's reason, and what to do about it if that is known."""
    reason = ": ".join(str(part) for part in error.args if part is not None) or type(error).__name__
    advice = next((advice for word, advice in _ADVICE.items() if word in reason), "look at the broker's log")
    return ServiceRefusedError(f"{what}: {reason}; {advice}", too_large="message size" in reason)


_ADVICE = {
    "message size": "send less, or raise max_message_size at the broker",
    "ACCESS_REFUSED": "give the user of INFERFLEET_AMQP_URL this permission (rabbitmqctl set_permissions)",
    "limit": "raise that limit at the broker",
}
"""What to do about a refusal, by a word of its reason."""
