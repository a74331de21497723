"""Answers one request, from its body to its response, with vLLM's own request handlers."""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from functools import partial
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from inferfleet.schemas import Endpoint, Usage
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.said import text_of
from inferfleet.worker.engines.adapter_files import Adapter
from inferfleet.worker.engines.cache_salt import cache_salt
from inferfleet.worker.engines.vllm.errors import from_response, refusal, translate
from inferfleet.worker.engines.vllm.loading import LoadedModel
from inferfleet.worker.engines.vllm.tap import ChatParsers, ParsedAlready, RequestTap
from inferfleet.worker.ports import Completion, EngineDeadError, Generation, GenerationError

_EMBEDDING: Final[TypeAdapter[Any]] = TypeAdapter(EmbeddingRequest)
_SCORE: Final[TypeAdapter[Any]] = TypeAdapter(ScoreRequest)


async def answer(
    loaded: LoadedModel, generation: Generation, emit: Callable[[TokenChunk], None]
) -> Completion:
    """Answer one request, and pass each new token to ``emit``. Cancelling aborts it in the engine.

    Raises:
        GenerationError: This request cannot be answered. The message does not quote the prompt.
        EngineDeadError: The engine has died.

    """
    try:
        async with loaded.adapters.held(generation) as adapter:
            response = await _respond(loaded, generation, adapter, emit)
    except (GenerationError, EngineDeadError):
        raise
    except Exception as error:
        limit = loaded.engine.model_config.max_model_len
        # Not "from error": a vendor's message may quote the prompt, and a traceback would log it.
        raise translate(error, generation.body, max_model_len=limit) from None
    if isinstance(response, ErrorResponse):
        raise from_response(response, generation.body)
    body = response if isinstance(response, dict) else response.model_dump(mode="json")
    if adapter is not None:
        body["model"] = adapter.name
    return Completion(response=body, usage=_usage(body))


async def _respond(
    loaded: LoadedModel, generation: Generation, adapter: Adapter | None, emit: Callable[[TokenChunk], None]
) -> Any:
    body = _vllm_body(generation)
    if adapter is not None:
        body["model"] = adapter.version
    handler = loaded.handlers[generation.endpoint]
    match generation.endpoint:
        case Endpoint.CHAT:
            return await _chat(loaded, generation, body, emit)
        case Endpoint.COMPLETIONS:
            return await _completion(loaded, generation, body, emit)
        case Endpoint.EMBEDDINGS:
            embedding = _EMBEDDING.validate_python(body)
            if embedding.encoding_format not in ("float", "base64"):
                raise refusal("encoding_format: a result is JSON, so it is float or base64")
            return await _in_one_piece(handler, embedding)
        case Endpoint.RERANK:
            return await _in_one_piece(handler, RerankRequest.model_validate(body))
        case Endpoint.SCORE:
            return await _in_one_piece(handler, _SCORE.validate_python(body))


async def _chat(
    loaded: LoadedModel, generation: Generation, body: dict[str, Any], emit: Callable[[TokenChunk], None]
) -> Any:
    request = ChatCompletionRequest.model_validate(body)
    _require_supported(request)
    serving = loaded.handlers[Endpoint.CHAT]
    handler = copy(serving)
    echoed = _beginning(body, role=handler.get_chat_request_role(request)) if request.echo else ""
    tap = RequestTap(
        loaded.engine,
        generation,
        emit=emit,
        parse=_chat_parsers(loaded, request),
        echo=lambda _: echoed,
    )
    handler.engine_client = tap
    handler._make_parser = partial(ParsedAlready(tap).parser, serving._make_parser)
    response = await handler.create_chat_completion(request)
    return response if isinstance(response, ErrorResponse) else _chat_as_streamed(response, tap)


async def _completion(
    loaded: LoadedModel, generation: Generation, body: dict[str, Any], emit: Callable[[TokenChunk], None]
) -> Any:
    request = CompletionRequest.model_validate(body)
    _require_supported(request)
    handler = copy(loaded.handlers[Endpoint.COMPLETIONS])
    tap = RequestTap(
        loaded.engine,
        generation,
        emit=emit,
        echo=handler._extract_prompt_text if request.echo and not request.return_token_ids else None,
        echo_only=request.echo and request.max_tokens == 0,
    )
    handler.engine_client = tap
    response = await handler.create_completion(request)
    return response if isinstance(response, ErrorResponse) else _text_as_streamed(response, tap)


async def _in_one_piece(handler: Any, request: Any) -> Any:
    response = await handler(request)
    return orjson.loads(response.body)


def _chat_as_streamed(response: Any, tap: RequestTap) -> Any:
    """Make the response say what the stream said, and end as vLLM's stream would.

    A tool call that was cut must not run, so its ``finish_reason`` stays ``length``.
    """
    for choice in response.choices:
        said = tap.said[choice.index]
        # Includes the echoed text, which vLLM would put in front itself.
        choice.message.content = said.text or choice.message.content
        ended = tap.finish_reasons.get(choice.index)
        if choice.finish_reason == "tool_calls" and (ended != "stop" or not said.tool_calls):
            choice.finish_reason = ended
    return response


def _text_as_streamed(response: Any, tap: RequestTap) -> Any:
    for choice in response.choices:
        choice.text = tap.said[choice.index].text
    return response


def _beginning(body: Mapping[str, Any], *, role: str) -> str:
    """Return the beginning of an answer with ``echo``: the message that it continues, if there is one."""
    last = body["messages"][-1]
    return text_of(last.get("content")) if last["role"] == role else ""


def _vllm_body(generation: Generation) -> dict[str, Any]:
    """Make the body for vLLM: without streaming, since the tap sees the tokens, and with the job's priority.

    It is a copy, because vLLM normalizes messages in place.
    """
    body = deepcopy(dict(generation.body))
    body.pop("stream", None)
    body.pop("stream_options", None)
    return body | {
        "request_id": generation.id,
        # In vLLM the lowest number is the most urgent.
        "priority": -generation.priority,
        "cache_salt": cache_salt(generation),
    }


def _chat_parsers(loaded: LoadedModel, request: Any) -> ChatParsers | None:
    chat = loaded.handlers[Endpoint.CHAT]
    if chat.parser_cls is None:
        return None
    kwargs = chat._effective_chat_template_kwargs(request)
    make = partial(chat._make_parser, request, loaded.engine.get_tokenizer(), kwargs)
    return ChatParsers(make, request)


def _require_supported(request: Any) -> None:
    if request.use_beam_search:
        raise refusal("use_beam_search: a job's tokens come in order, so beam search is not supported")


def _usage(body: dict[str, Any]) -> Usage:
    usage = body["usage"]
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
    )
