"""What a server says of itself: which model it has, which endpoints it answers, and what else it can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.fingerprint import digest
from inferfleet.worker.engines.openai.client import Client
from inferfleet.worker.engines.openai.errors import (
    BusyError,
    HostLostError,
    NoModelError,
    NotServingError,
    ServerError,
    is_refused,
)
from inferfleet.worker.engines.openai.hosts import Host
from inferfleet.worker.ports import EngineDeadError, GenerationError, ModelIdentity

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

    def has_changed(self, endpoint: Endpoint, fingerprint: str | None) -> bool:
        """Return whether the ``system_fingerprint`` of an answer is not the one that the server had."""
        first = next((each for each in _PROBES if each in self.endpoints), None)
        known = self.identity.options
        return endpoint == first and bool(known) and (fingerprint or known) != known


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
        ConfigurationError: It refuses our key, has several models and none is named, or answers no endpoint.

    """
    entry = await listed_model(client, host, name)
    model = str(entry["id"])
    is_vllm = entry.get("owned_by") == "vllm"
    answers: dict[Endpoint, Mapping[str, Any]] = {}
    for endpoint, probes in _PROBES.items():
        for probe in probes:
            answer = await _ask(client, host, endpoint, {"model": model, **probe})
            if answer is not None:
                answers[endpoint] = answer
                break
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
        identity=ModelIdentity(
            engine="openai",
            name=model,
            revision=str(entry.get("root") or ""),
            tokenizer=await _tokenizer(client, host, model) if is_vllm else "",
            # vLLM's hash of its version and configuration, or what --fingerprint-value says.
            options=str(next(iter(answers.values())).get("system_fingerprint") or "") if is_vllm else "",
        ),
        endpoints=frozenset(answers),
        max_model_len=int(entry.get("max_model_len") or 0),
        is_vllm=is_vllm,
        token_ids=token_ids,
        priorities=priorities,
        reasons=usage.get("completion_tokens_details") is not None,
    )


async def _ask(client: Client, host: Host, endpoint: Endpoint, body: Mapping[str, Any]) -> Any:
    """Return the answer, or ``None`` if the server refuses the request."""
    try:
        return await client.post(host, url_of(host, endpoint), body)
    except EngineDeadError as error:
        raise ConfigurationError(str(error)) from error
    except GenerationError as error:
        if is_refused(error) or endpoint not in {Endpoint.CHAT, Endpoint.COMPLETIONS}:
            return None
        raise HostLostError(str(error)) from error


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
