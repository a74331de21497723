"""Translates what a server answers, and how a connection ends, into the errors of the engine port."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, cast

from inferfleet.schemas import FailureCode
from inferfleet.worker.engines.redaction import without_prompt
from inferfleet.worker.ports import GenerationError

_TOO_LONG: Final = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "input_tokens", "input_text"}
)
"""The codes of OpenAI and llama.cpp, and the parameters that vLLM names, for a prompt that is too long."""

_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
"""Passing, too, are all statuses above 501: gateways and proxies have several of their own."""

_REFUSES_US: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN})
_NOT_THERE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED})

_STATUS_OF_ERROR: Final = re.compile(r"[45][0-9]{2}")

LONGEST_QUOTE: Final = 1000


class HostLostError(Exception):
    """The connection to a server failed, or it has another model: ask another server, or later."""


class AnotherModelError(HostLostError):
    """A server has another model than when the worker started. It gets no more requests."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} has another model than when the worker started")


class NotServingError(HostLostError):
    """A server answers a question about itself, but not that it has the model."""


class NoModelError(NotServingError):
    """A server answers that it has no model at all at the moment."""


class SilentError(HostLostError):
    """A server does not even answer a question about itself. It gets no requests until it does."""


class MalformedError(HostLostError):
    """A server has answered, but not what OpenAI's API promises."""


class BusyError(Exception):
    """The server answered that it is busy. ``retry_after_s`` is the pause that it asks for, if it does."""

    def __init__(self, retry_after_s: float | None) -> None:
        super().__init__("too many requests")
        self.retry_after_s = retry_after_s


class ServerError(GenerationError):
    """The server itself failed, so another one may answer."""


class PassingError(ServerError):
    """The server cannot answer at the moment: it starts, is overloaded, or is behind a proxy that says so."""


class UnspecifiedError(ServerError):
    """An answer with the status 200 says that it is an error, but not which."""


class NotThereError(GenerationError):
    """The server has no such path, or no such model (any more)."""


def is_refused(error: GenerationError) -> bool:
    """Return whether the server would refuse the same request again."""
    return isinstance(error, NotThereError) or not error.code.retryable


def refusal(problem: str) -> GenerationError:
    """Make the error for a request that can never be answered here."""
    return GenerationError(FailureCode.INVALID_REQUEST, problem)


def fewer(host: str, found: str, body: Mapping[str, Any]) -> GenerationError:
    """Make the error of an answer that is complete, but has fewer parts than the request asks for."""
    ignored = "'n'" if (body.get("n") or 1) > 1 else "some prompts or inputs"
    return refusal(
        f"{host} answers with {found}, so it ignores {ignored}: submit a job for each, or use a server that "
        "answers them together"
    )


def failure(
    status: int, answer: Any, body: Mapping[str, Any], *, host: str, secrets: Collection[str] = ()
) -> GenerationError:
    """Make the error of an answer that is not a success.

    It has the server's words without the prompt's, and without our ``secrets``.
    """
    details = _details(answer)
    words = " ".join(without_prompt(str(details.get("message") or answer or ""), body).split())
    for secret in secrets:
        words = words.replace(secret, "[…]")
    said = f"{host} answers {status}: {words[:LONGEST_QUOTE]}"
    if not _TOO_LONG.isdisjoint(str(details.get(name)) for name in ("code", "type", "param")):
        return GenerationError(FailureCode.PROMPT_TOO_LONG, said)
    if status in _NOT_THERE:
        # Not the request's fault: the server has answered on this path, with this model.
        return NotThereError(FailureCode.ENGINE_ERROR, said)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerError(FailureCode.ENGINE_ERROR, said)
    if status in _PASSING or status > HTTPStatus.NOT_IMPLEMENTED:
        return PassingError(FailureCode.ENGINE_ERROR, said)
    if status in _REFUSES_US:
        return GenerationError(FailureCode.ENGINE_ERROR, said)
    return refusal(said)


def failure_inside(
    error: Any, body: Mapping[str, Any], *, host: str, secrets: Collection[str] = ()
) -> GenerationError | BusyError:
    """Make the error of an answer with the status 200, or of an event of one, that says ``error``.

    Its code counts if it is the status of an error. Without one, the server itself has failed.
    """
    code = str(_details({"error": error}).get("code"))
    specified = _STATUS_OF_ERROR.fullmatch(code)
    status = int(code) if specified else HTTPStatus.INTERNAL_SERVER_ERROR
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return BusyError(None)
    found = failure(status, {"error": error}, body, host=host, secrets=secrets)
    if not specified and isinstance(found, ServerError):
        return UnspecifiedError(found.code, str(found))
    return found


@contextmanager
def understood(host: str) -> Generator[None]:
    """Make a ``MalformedError`` of what fails in the block because an answer has an unexpected form."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedError(
            f"{host} sent an answer that is not in the form of OpenAI's API ({type(error).__name__})"
        ) from error


def _details(answer: Any) -> Mapping[str, Any]:
    """Find OpenAI's error object in an answer, or what has its place."""
    match answer:
        case {"error": {**error}}:
            return cast("dict[str, Any]", error)
        case {"error": str() as words} | {"detail": str() as words} | {"message": str() as words}:
            return {"message": words}
        case _:
            return {}
