"""What a server says of itself: which model it has, which endpoints it answers, and what else it can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.fingerprint import digest
from inferfleet.worker.engines.openai.client import Client
from inferfleet.worker.engines.openai.errors import (
    BusyError,
    HostLostError,
    MalformedError,
    NoModelError,
    NotServingError,
    PassingError,
    ServerError,
    UnspecifiedError,
    is_refused,
    understood,
)
from inferfleet.worker.engines.openai.hosts import Host
from inferfleet.worker.engines.openai.promised import answered
from inferfleet.worker.ports import EngineDeadError, GenerationError, ModelIdentity

logger = logging.getLogger(__name__)

TRIES: Final = 3
"""How often an endpoint is asked until an error that may be permanent, such as a 500, counts as a refusal."""

TRY_AGAIN_S: Final = 1.0

_PROBES: Final[Mapping[Endpoint, Sequence[Mapping[str, Any]]]] = {
    Endpoint.CHAT: [
        {"messages": [{"role": "user", "content": "hi"}], limit: 1}
        # Models of OpenAI that reason know only the second.
        for limit in ("max_tokens", "max_completion_tokens")
    ],
    Endpoint.COMPLETIONS: [{"prompt": "hi", "max_tokens": 1}],
    Endpoint.EMBEDDINGS: [{"input": "hi"}],
    Endpoint.RERANK: [{"query": "hi", "documents": ["hi"]}],
    Endpoint.SCORE: [{"text_1": "hi", "text_2": "hi"}],
}
"""The requests that find out what a server answers, and warm it up. The first that is accepted counts."""

_SAMPLE: Final = "The quick brown fox; 0123456789, déjà vu, 東京, 🚀\n\t{}"
"""A text that different tokenizers split into different tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as a server offers it.

    ``token_ids`` says whether its streams have token ids, as vLLM's do. ``priorities`` says whether it
    schedules by priority. ``reasons`` says whether it separates reasoning from the answer.
    """

    identity: ModelIdentity
    endpoints: frozenset[Endpoint]
    max_model_len: int = 0
    is_vllm: bool = False
    token_ids: bool = False
    priorities: bool = False
    reasons: bool = False

    @property
    def first(self) -> Endpoint:
        """The endpoint whose answer has told the ``system_fingerprint``."""
        return next(each for each in _PROBES if each in self.endpoints)

    def has_changed(self, endpoint: Endpoint, fingerprint: str | None) -> bool:
        """Return whether the ``system_fingerprint`` of an answer is not the one that the server had."""
        known = self.identity.options
        return endpoint == self.first and bool(known) and (fingerprint or known) != known


async def listed_model(client: Client, host: Host, name: str) -> Mapping[str, Any]:
    """Return the server's entry of the model, without a name that of its only model.

    Raises:
        HostLostError: The server does not answer.
        NotServingError: It answers, but does not say that it has the model.
        NoModelError: It has none at the moment.
        BusyError: It has too many requests.
        ConfigurationError: It refuses our key, or has several models and none is named.

    """
    status, answer = await client.get(host, f"{host.url}/models")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise ConfigurationError(
            f"{host.name} does not accept the API key ({status}): check the file that 'api_key_file' names "
            "in INFERFLEET_ENGINE_ARGS"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise BusyError(None)
    match answer:
        case {"data": [*models]} if status == HTTPStatus.OK and all(isinstance(it, dict) for it in models):
            entries: dict[str, Mapping[str, Any]] = {str(each.get("id")): each for each in models}
        case _ if name and status == HTTPStatus.NOT_FOUND:
            return {"id": name}  # some servers list nothing
        case _:
            raise NotServingError(
                f"{host.name} answers {status} to GET {host.url}/models; the address ends with /v1 for most "
                "servers"
            )
    if not entries:
        raise NoModelError(f"{host.name} has no model yet")
    if name:
        if name in entries:
            return entries[name]
        raise NotServingError(f"{host.name} has no model {name!r}; it has {', '.join(entries)}")
    if len(entries) == 1:
        return next(iter(entries.values()))
    raise ConfigurationError(
        f"{host.name} has several models; give one as --model (INFERFLEET_MODEL): {', '.join(entries)}"
    )


async def look(client: Client, host: Host, name: str) -> Served:
    """Find out what the server has and can, with requests of one token.

    Raises:
        HostLostError: The server does not answer, or does not have the model yet.
        BusyError: It has too many requests.
        ConfigurationError: It refuses our key or all endpoints, or has several models and none is named.

    """
    with understood(host.name):
        return await _look(client, host, name)


async def identity_of(client: Client, host: Host, name: str, endpoint: Endpoint) -> ModelIdentity:
    """Find out which model the server has, with a request of one token to an endpoint that answers.

    Raises:
        HostLostError: The server does not answer, or does not have the model, or not the endpoint.
        BusyError: It has too many requests.
        ConfigurationError: It refuses our key.

    """
    with understood(host.name):
        entry = await listed_model(client, host, name)
        answer = await _first_answer(client, host, endpoint, str(entry["id"]))
        if answer is None:
            raise NotServingError(f"{host.name} refuses requests to {endpoint}")
        return await _identity(client, host, entry, answer)


async def _look(client: Client, host: Host, name: str) -> Served:
    entry = await listed_model(client, host, name)
    model = str(entry["id"])
    is_vllm = _is_vllm(entry)
    answers: dict[Endpoint, Mapping[str, Any]] = {}
    unclear: dict[Endpoint, _UnclearError] = {}
    for endpoint in _PROBES:
        try:
            answer = await _first_answer(client, host, endpoint, model)
        except _UnclearError as error:
            unclear[endpoint] = error
        else:
            if answer is not None:
                answers[endpoint] = answer
    if not answers and unclear:
        raise next(iter(unclear.values()))
    for endpoint, problem in unclear.items():
        logger.warning("this worker does not answer %s: %s", endpoint, problem)
    if not answers:
        raise ConfigurationError(
            f"{host.name} answers no request to {', '.join(_PROBES)} for the model {model!r}; does "
            "--base-url end as the server's API does, mostly with /v1?"
        )
    generates = next((each for each in (Endpoint.CHAT, Endpoint.COMPLETIONS) if each in answers), None)
    token_ids = priorities = False
    if is_vllm and generates is not None:
        probe = {"model": model, **_PROBES[generates][0]}
        token_ids = await _streams_ids(client, host, generates, probe)
        priorities = await _ask(client, host, generates, {**probe, "priority": -1}) is not None
    usage: Mapping[str, Any] = answers.get(Endpoint.CHAT, {}).get("usage") or {}
    return Served(
        identity=await _identity(client, host, entry, next(iter(answers.values()))),
        endpoints=frozenset(answers),
        max_model_len=int(entry.get("max_model_len") or 0),
        is_vllm=is_vllm,
        token_ids=token_ids,
        priorities=priorities,
        reasons=usage.get("completion_tokens_details") is not None,
    )


def _is_vllm(entry: Mapping[str, Any]) -> bool:
    return entry.get("owned_by") == "vllm"


async def _identity(
    client: Client, host: Host, entry: Mapping[str, Any], answer: Mapping[str, Any]
) -> ModelIdentity:
    model, is_vllm = str(entry["id"]), _is_vllm(entry)
    return ModelIdentity(
        engine="openai",
        name=model,
        revision=str(entry.get("root") or ""),
        tokenizer=await _tokenizer(client, host, model) if is_vllm else "",
        # vLLM's hash of its version and configuration, or what --fingerprint-value says.
        options=str(answer.get("system_fingerprint") or "") if is_vllm else "",
    )


class _UnclearError(HostLostError):
    """An endpoint has failed several times, as it does on some servers that do not have it."""


async def _first_answer(
    client: Client, host: Host, endpoint: Endpoint, model: str
) -> Mapping[str, Any] | None:
    """Return the endpoint's answer to the first of its probes that the server does not refuse."""
    for probe in _PROBES[endpoint]:
        answer = await _ask(client, host, endpoint, {"model": model, **probe})
        if answer is not None:
            return answer
    return None


async def _ask(
    client: Client, host: Host, endpoint: Endpoint, body: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Return the answer, or ``None`` if the server refuses the request."""
    generates = ENDPOINTS[endpoint].generated is not None
    for again in reversed(range(TRIES)):
        try:
            # An endpoint that is not there says nothing about the others.
            answer = await client.post(host, url_of(host, endpoint), body, counts=False)
            answered(host.name, endpoint, body, answer)
        except EngineDeadError as error:
            raise ConfigurationError(str(error)) from error
        except (GenerationError, MalformedError) as error:
            if isinstance(error, GenerationError) and is_refused(error):
                return None
            unclear = isinstance(error, (MalformedError, UnspecifiedError)) or not generates
            if isinstance(error, PassingError) or not unclear:
                raise HostLostError(f"{endpoint}: {error}") from error
            if not again:
                raise _UnclearError(str(error)) from error
        else:
            return answer
        await asyncio.sleep(TRY_AGAIN_S)
    raise AssertionError("the last time returns or raises")


async def _streams_ids(client: Client, host: Host, endpoint: Endpoint, probe: Mapping[str, Any]) -> bool:
    body = {**probe, "stream": True, "return_token_ids": True}
    try:
        async with aclosing(client.stream(host, url_of(host, endpoint), body)) as events:
            async for event in events:
                if any(choice.get("token_ids") for choice in event.get("choices") or ()):
                    return True
    except GenerationError as error:
        if not is_refused(error):
            raise HostLostError(str(error)) from error
    return False


async def _tokenizer(client: Client, host: Host, model: str) -> str:
    try:
        answer = await client.post(host, f"{host.root}/tokenize", {"model": model, "prompt": _SAMPLE})
    except GenerationError as error:
        # An error that passes must not make it another model. Other errors are those of a proxy.
        if isinstance(error, ServerError):
            raise HostLostError(str(error)) from error
        return ""
    return digest(answer.get("tokens"))


def url_of(host: Host, endpoint: Endpoint) -> str:
    """Return the address of an endpoint, whose path after ``/v1`` follows the server's base URL."""
    return host.url + endpoint.removeprefix("/v1")
