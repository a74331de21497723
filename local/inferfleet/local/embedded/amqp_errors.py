"""The AMQP errors that the broker reports to a client, with their reply codes.

AmqpError
├── SoftError   closes the channel; the connection stays open
└── HardError   closes the connection
"""

from __future__ import annotations

NO_ROUTE = 312


class AmqpError(Exception):
    """A code, and a text that begins with the code's name as RabbitMQ's do."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class SoftError(AmqpError):
    """Closes the channel."""


class HardError(AmqpError):
    """Closes the connection."""


def access_refused(text: str) -> SoftError:
    """403: the name is reserved, or the queue has an exclusive consumer."""
    return SoftError(403, f"ACCESS_REFUSED - {text}")


def not_found(what: str, name: str) -> SoftError:
    """404: no such queue or exchange."""
    return SoftError(404, f"NOT_FOUND - no {what} '{name}' in vhost '/'")


def resource_locked(queue: str) -> SoftError:
    """405: the queue belongs to another connection."""
    return SoftError(
        405, f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue}' in vhost '/'"
    )


def precondition_failed(text: str) -> SoftError:
    """406: other arguments than before, an unknown delivery tag, a queue in use."""
    return SoftError(406, f"PRECONDITION_FAILED - {text}")


def unexpected_frame(text: str) -> HardError:
    """505: frames in an order that makes no sense."""
    return HardError(505, f"UNEXPECTED_FRAME - {text}")


def not_implemented(what: str) -> HardError:
    """540: the embedded broker does not support this."""
    return HardError(540, f"NOT_IMPLEMENTED - the embedded broker has no {what}")
