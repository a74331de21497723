"""Turns an error into an HTTP status with OpenAI's error object, from which SDKs make their exceptions.

``code`` is for programs. SDKs repeat a request by themselves after 408, 409, 429 and 5xx. That would run a
job again that has used up its attempts, so such answers say ``x-should-retry: false``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson

from inferfleet.schemas import errors
from inferfleet.schemas.failures import FailureCode

logger = logging.getLogger(__name__)

JOB_HEADER: Final = "inferfleet-job"
"""The header that names the job of an answer."""

RETRY_AFTER_S: Final = 2
"""When to try again after a refusal that passes."""

_PARAM: Final = re.compile(r"(?:body\.)?([\w.\[\]]+): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer that is not what was asked for.

    ``retry`` says whether an SDK should repeat the request by itself, ``after_s`` after how many seconds.
    ``job_id`` is the job that failed, if there was one. ``closes`` says that the connection ends with it.
    """

    status: HTTPStatus
    code: str
    message: str
    param: str | None = None
    retry: bool = False
    after_s: int | None = None
    job_id: str | None = None
    closes: bool = False

    def body(self) -> bytes:
        """Make OpenAI's error object."""
        return orjson.dumps({"error": self.error()})

    def error(self) -> dict[str, Any]:
        """Make what is in the error object."""
        kind = "invalid_request_error"
        if self.status is HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        elif self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = "server_error"
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def headers(self) -> dict[str, str]:
        """Make the headers of the answer."""
        retry = "true" if self.retry else "false"
        headers = {"content-type": "application/json", "x-should-retry": retry}
        if self.job_id is not None:
            headers[JOB_HEADER] = self.job_id
        if self.closes:
            headers["connection"] = "close"
        if self.after_s is not None:
            headers["retry-after"] = str(self.after_s)
        return headers


class RefusedError(Exception):
    """A request that is refused before it becomes a job."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def bad_request(message: str, *, param: str | None = None) -> RefusedError:
    """Refuse an invalid request."""
    return RefusedError(
        Refusal(status=HTTPStatus.BAD_REQUEST, code="invalid_request", message=message, param=param)
    )


def not_found(message: str, *, code: str = "not_found", param: str | None = None) -> RefusedError:
    """Refuse a request for something that does not exist."""
    return RefusedError(Refusal(status=HTTPStatus.NOT_FOUND, code=code, message=message, param=param))


def refusal_of(error: errors.InferfleetError | RefusedError) -> Refusal:
    """Translate an error. Its message quotes no prompt and names no address: the log has the details."""
    match error:
        case RefusedError():
            return error.refusal
        case errors.JobFailedError():
            return _of_failed_job(error)
        case errors.InvalidJobError() if not isinstance(error, errors.IdempotencyConflictError):
            found = _PARAM.match(str(error))
            return Refusal(
                status=HTTPStatus.BAD_REQUEST,
                code="invalid_request",
                message=str(error),
                param=found[1] if found else None,
            )
        case _:
            pass
    for kind, (status, code, retry) in _REFUSALS.items():
        if isinstance(error, kind):
            return Refusal(
                status=status,
                code=code,
                message=_logged(code, error) if code in _SAID else str(error),
                retry=retry,
                after_s=RETRY_AFTER_S if retry else None,
            )
    return Refusal(
        status=HTTPStatus.INTERNAL_SERVER_ERROR, code="internal", message=_logged("internal", error)
    )


def _logged(code: str, error: Exception) -> str:
    logger.warning("a request is refused (%s): %s", code, error)
    return _SAID[code]


_REFUSALS: Final[Mapping[type[errors.InferfleetError], tuple[HTTPStatus, str, bool]]] = {
    errors.IdempotencyConflictError: (HTTPStatus.CONFLICT, "idempotency_conflict", False),
    errors.UnknownPoolError: (HTTPStatus.NOT_FOUND, "pool_not_found", False),
    errors.QueueFullError: (HTTPStatus.TOO_MANY_REQUESTS, "queue_full", True),
    errors.TooLateError: (HTTPStatus.SERVICE_UNAVAILABLE, "too_late", False),
    errors.SessionBusyError: (HTTPStatus.CONFLICT, "session_busy", False),
    errors.SessionTooLargeError: (HTTPStatus.CONFLICT, "session_too_large", False),
    errors.StateConflictError: (HTTPStatus.CONFLICT, "state_conflict", False),
    errors.SessionError: (HTTPStatus.CONFLICT, "session_conflict", False),
    errors.PublishUnconfirmedError: (HTTPStatus.SERVICE_UNAVAILABLE, "publish_unconfirmed", False),
    errors.JobNotFoundError: (HTTPStatus.NOT_FOUND, "job_not_found", False),
    errors.RunNotFoundError: (HTTPStatus.NOT_FOUND, "run_not_found", False),
    errors.RunError: (HTTPStatus.CONFLICT, "run_conflict", False),
    errors.UnknownIndexError: (HTTPStatus.NOT_FOUND, "index_not_found", False),
    errors.EmbeddingTimeoutError: (HTTPStatus.SERVICE_UNAVAILABLE, "retrieval_timeout", True),
    errors.RetrievalError: (HTTPStatus.UNPROCESSABLE_ENTITY, "retrieval_failed", False),
    errors.JobDataLostError: (HTTPStatus.GONE, "job_data_lost", False),
    errors.WaitTimeoutError: (HTTPStatus.GATEWAY_TIMEOUT, "timeout", False),
    errors.ServiceUnreachableError: (HTTPStatus.SERVICE_UNAVAILABLE, "service_unreachable", True),
    errors.ServiceRefusedError: (HTTPStatus.SERVICE_UNAVAILABLE, "service_refused", True),
}
"""The status, the code, and whether to try again, of each kind of error. A subclass comes first."""

_SAID: Final[Mapping[str, str]] = {
    "publish_unconfirmed": "RabbitMQ did not confirm the job: it may or may not be queued. Sending the "
    "request again with the same Idempotency-Key is safe",
    "service_unreachable": "RabbitMQ or Redis cannot be reached; the log has the details",
    "service_refused": "RabbitMQ or Redis refuses the request; the log has the details",
    "internal": "the request failed unexpectedly; the log has the details",
}
"""What is said of errors whose own messages name addresses, and what an operator has to do."""

_FAILURES: Final[Mapping[str, tuple[HTTPStatus, str]]] = {
    FailureCode.INVALID_REQUEST: (HTTPStatus.BAD_REQUEST, FailureCode.INVALID_REQUEST),
    # The code by which clients of OpenAI know that they have to shorten a conversation.
    FailureCode.PROMPT_TOO_LONG: (HTTPStatus.BAD_REQUEST, "context_length_exceeded"),
    FailureCode.MODEL_UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, FailureCode.MODEL_UNAVAILABLE),
    FailureCode.TIMEOUT: (HTTPStatus.GATEWAY_TIMEOUT, FailureCode.TIMEOUT),
    FailureCode.EXPIRED: (HTTPStatus.GATEWAY_TIMEOUT, FailureCode.EXPIRED),
    FailureCode.CANCELLED: (HTTPStatus.CONFLICT, FailureCode.CANCELLED),
    FailureCode.SESSION_CONFLICT: (HTTPStatus.CONFLICT, FailureCode.SESSION_CONFLICT),
}


def _of_failed_job(error: errors.JobFailedError) -> Refusal:
    code = error.code or error.state
    status, code = _FAILURES.get(code, (HTTPStatus.INTERNAL_SERVER_ERROR, code))
    return Refusal(status=status, code=str(code), message=str(error), job_id=error.job_id)
