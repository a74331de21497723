"""Answers one request on one server: streamed where there can be a stream, and in one piece elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.cache_salt import cache_salt
from inferfleet.worker.engines.openai.client import Client, until_its_end
from inferfleet.worker.engines.openai.continuation import resumed
from inferfleet.worker.engines.openai.errors import HostLostError, fewer, refusal, understood
from inferfleet.worker.engines.openai.hosts import Host
from inferfleet.worker.engines.openai.ignored import Member, ignored
from inferfleet.worker.engines.openai.promised import answered, counted, in_numbers
from inferfleet.worker.engines.openai.served import Served, url_of
from inferfleet.worker.engines.openai.streamed import NO_ID, StreamedAnswer
from inferfleet.worker.ports import Completion, Generation


async def answer(
    client: Client,
    host: Host,
    generation: Generation,
    served: Served,
    *,
    may_ignore: Collection[Member] = (),
) -> AsyncGenerator[TokenChunk | Completion]:
    """Yield the chunks of an answer as they come, and its completion. Closing it closes the connection.

    Raises:
        GenerationError: The server refuses the request, or has failed, or has ignored a member of the request
            that it does not have leave to ignore.
        BusyError: It has too many requests. Nothing was yielded.
        HostLostError: The connection failed, or ended before the answer, or the answer is malformed.
        EngineDeadError: The server does not accept the API key.

    """
    with understood(host.name):
        async with aclosing(_answer(client, host, generation, served)) as events:
            async for event in events:
                if isinstance(event, Completion) and not served.is_vllm:
                    _check_heeded(host, generation, event.response, may_ignore)
                yield event


async def _answer(
    client: Client, host: Host, generation: Generation, served: Served
) -> AsyncGenerator[TokenChunk | Completion]:
    sent = _body(generation, served)
    url, headers = url_of(host, generation.endpoint), generation.trace_headers
    if generation.resume_token_ids:
        async with aclosing(resumed(client, host, generation, served, sent)) as rest:
            async for item in rest:
                yield item
        return
    if "stream" not in sent:
        for item in _in_one_piece(host, generation, await client.post(host, url, sent, headers)):
            yield item
        return
    streamed = StreamedAnswer(generation, token_ids="return_token_ids" in sent)
    told = -1
    async with (
        aclosing(client.stream(host, url, sent, headers, on_done=streamed.done)) as stream,
        aclosing(until_its_end(stream, lambda: streamed.whole)) as events,
    ):
        async for event in events:
            chunks = list(streamed.take(event))
            if generation.on_prompt is not None and told != streamed.prompt_tokens:
                told = streamed.prompt_tokens
                generation.on_prompt(model=served.identity.name, tokens=told)
            for chunk in chunks:
                yield chunk
    if streamed.fewer:
        raise fewer(host.name, streamed.progress, generation.body)
    if not streamed.ended:
        raise HostLostError(f"{host.name} ended the stream before the answer: after {streamed.progress}")
    # A restarted server may have answered. The answer is whole and its own, and is its last one here.
    host.another_model |= served.has_changed(generation.endpoint, streamed.fingerprint)
    for chunk in streamed.rest():
        yield chunk
    yield Completion(response=streamed.response(), usage=streamed.usage)


def _body(generation: Generation, served: Served) -> dict[str, Any]:
    """Make the body for the server; one of vLLM gets the job's id and priority, and its tenant's salt."""
    replaced = {"stream", "stream_options", "priority", "request_id", "cache_salt"}
    body = {name: value for name, value in generation.body.items() if name not in replaced}
    body["model"] = served.identity.name
    # vLLM does not stream the logprobs of a prompt.
    streams = ENDPOINTS[generation.endpoint].generated is not None and not body.get("prompt_logprobs")
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if served.is_vllm:
        body |= {"request_id": generation.id, "cache_salt": cache_salt(generation)}
        if served.priorities:
            # In vLLM the lowest number is the most urgent.
            body["priority"] = -generation.priority
        # In a completion, an echo would have ids in place of its text; and of reasoning that vLLM hides, it
        # hides the ids, too.
        hidden = body.get("echo") if "prompt" in body else body.get("include_reasoning") is False
        if streams and served.token_ids and not hidden:
            body["return_token_ids"] = True
    return body


def _check_heeded(
    host: Host, generation: Generation, response: Mapping[str, Any], may_ignore: Collection[Member]
) -> None:
    found = ignored(generation.endpoint, generation.body, response)
    if found is not None and found[0] not in may_ignore:
        member, why = found
        raise refusal(
            f"{host.name} ignores {member!r}: {why}; leave it out, use a server that knows it, or "
            "accept this for all jobs of the worker (may_ignore)"
        )


def _in_one_piece(
    host: Host, generation: Generation, response: dict[str, Any]
) -> Iterator[TokenChunk | Completion]:
    """Yield an answer that was not streamed; the text of a generated one as a chunk for each choice."""
    items, usage = answered(host.name, generation.endpoint, generation.body, response), counted(response)
    if response.get("usage"):
        response["usage"] = in_numbers(response["usage"], usage)
    generated = ENDPOINTS[generation.endpoint].generated
    if generated is not None:
        if generation.on_prompt is not None:
            generation.on_prompt(model=str(response.get("model") or ""), tokens=usage.prompt_tokens)
        share, more = divmod(usage.completion_tokens, len(items))
        for place, choice in enumerate(items):
            message: Mapping[str, Any] = choice.get("message") or {}
            delta = {name: message[name] for name in ("reasoning",) if message.get(name)}
            if calls := message.get("tool_calls"):
                delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
            yield TokenChunk(
                index=choice["index"],
                token_ids=(NO_ID,) * (share + more * (place == 0)),
                text=generated.text(choice),
                delta=delta or None,
            )
    yield Completion(response=response, usage=usage)
