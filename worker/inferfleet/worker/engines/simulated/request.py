"""Reads a request body for the simulated engine, and refuses what the engine cannot do.

It refuses fields that would change the shape of the answer in a way that the engine cannot produce, so that
nobody takes silence for support. All other unknown fields (``temperature``, ``top_p``, ``user``, …) are
accepted and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.openai_messages import is_set
from inferfleet.schemas.scoring_requests import spelling_of
from inferfleet.worker.engines.simulated.hooks import Hooks
from inferfleet.worker.engines.simulated.prompt import Prompt, chat_prompt, pair_prompts, plain_prompts
from inferfleet.worker.engines.simulated.refusal import refusal
from inferfleet.worker.ports import GenerationError

_REFUSED: Final = (
    "audio",
    "function_call",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "logprobs",
    "prompt_logprobs",
    "structured_outputs",
    "suffix",
)

_Prompts = StrictStr | list[int] | list[StrictStr] | list[list[int]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class _Function(_Part):
    name: StrictStr


class _Tool(_Part):
    function: _Function


class _ResponseFormat(_Part):
    type: StrictStr


class _Message(_Part):
    role: StrictStr
    content: StrictStr | list[dict[str, Any] | StrictStr] | None = None


class _Body(_Part):
    model: StrictStr | None = None
    simulated: Hooks = Hooks()


class _GeneratingBody(_Body):
    max_tokens: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: StrictStr | list[StrictStr] | None = None
    ignore_eos: bool = False
    response_format: _ResponseFormat | None = None


class _ChatBody(_GeneratingBody):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    echo: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Tool | None = None


class _CompletionsBody(_GeneratingBody):
    prompt: _Prompts
    echo: bool | None = None


class _EmbeddingsOptions(_Body):
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class _EmbeddingsBody(_EmbeddingsOptions):
    input: _Prompts


class _ChatEmbeddingsBody(_EmbeddingsOptions):
    messages: list[list[_Message]]


class _RerankBody(_Body):
    top_n: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRequest:
    """A request as this engine understands it. ``forced_tool`` is a function that must be called.

    With ``echo`` an answer begins with its prompt; with ``echo_only`` it is only the prompt, and one token is
    not shown. ``documents`` are to be ranked, each with a separate prompt. If ``top_n`` is more than 0, the
    response has so many of them.
    """

    endpoint: Endpoint
    prompts: tuple[Prompt, ...]
    model: str | None
    hooks: Hooks
    n: int = 1
    max_tokens: int | None = None
    ignore_eos: bool = False
    echo: bool = False
    echo_only: bool = False
    stop: tuple[str, ...] = ()
    forced_tool: str | None = None
    tool_required: bool = False
    base64: bool = False
    dimensions: int | None = None
    documents: tuple[str, ...] = ()
    top_n: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(prompt.tokens for prompt in self.prompts)


def resumable(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Return whether the answer is one plain text, which can be resumed from an earlier attempt's tokens.

    A worker calls this for every job before the body is checked. So it reads only five fields, and works for
    any body.
    """
    if ENDPOINTS[endpoint].generated is None or body.get("n") not in (None, 1) or body.get("echo"):
        return False
    match body.get("prompt"):
        case [str() | list(), _, *_]:
            return False
        case _:
            free_text = body.get("response_format") in (None, {"type": "text"})
            return free_text and body.get("tool_choice") in (None, "auto", "none")


def read_request(endpoint: Endpoint, body: Mapping[str, Any]) -> SimulatedRequest:
    """Read a request body.

    Raises:
        GenerationError: ``invalid_request``; the message names the field and never quotes the prompt.

    """
    try:
        for field in _REFUSED:
            # A completion's ``logprobs`` is a number, and 0 requests some.
            flag = field == "logprobs" and endpoint is Endpoint.CHAT
            if is_set(body.get(field)) if flag else body.get(field) is not None:
                raise _unsupported(field)
        match endpoint:
            case Endpoint.CHAT:
                return _read_chat(body)
            case Endpoint.COMPLETIONS:
                return _read_completions(body)
            case Endpoint.EMBEDDINGS:
                return _read_embeddings(body)
            case Endpoint.RERANK:
                return _read_rerank(body)
            case Endpoint.SCORE:
                return _read_score(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise refusal(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (orjson.JSONEncodeError, UnicodeEncodeError) as error:
        raise refusal("the body has a value that JSON cannot carry") from error


def _unsupported(field: str) -> GenerationError:
    return refusal(f"it does not support {field!r}; leave the field out, or use a real engine")


def _read_chat(body: Mapping[str, Any]) -> SimulatedRequest:
    chat = _ChatBody.model_validate(body)
    if chat.echo:
        raise _unsupported("echo")
    _require_free_text(chat.response_format)
    return SimulatedRequest(
        endpoint=Endpoint.CHAT,
        prompts=(chat_prompt(body["messages"], body.get("tools") or (), chat.seed),),
        model=chat.model,
        hooks=chat.simulated,
        n=chat.n or 1,
        max_tokens=_limit(
            chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
        ),
        ignore_eos=chat.ignore_eos,
        stop=_stop_strings(chat.stop),
        forced_tool=_forced_tool(chat),
        tool_required=chat.tool_choice == "required",
    )


def _read_completions(body: Mapping[str, Any]) -> SimulatedRequest:
    completions = _CompletionsBody.model_validate(body)
    _require_free_text(completions.response_format)
    echo = bool(completions.echo)
    echo_only = echo and completions.max_tokens == 0
    return SimulatedRequest(
        endpoint=Endpoint.COMPLETIONS,
        prompts=plain_prompts(Endpoint.COMPLETIONS, completions.prompt, completions.seed),
        model=completions.model,
        hooks=completions.simulated,
        n=completions.n or 1,
        max_tokens=1 if echo_only else _limit(completions.max_tokens),
        ignore_eos=completions.ignore_eos,
        echo=echo,
        echo_only=echo_only,
        stop=_stop_strings(completions.stop),
    )


def _read_embeddings(body: Mapping[str, Any]) -> SimulatedRequest:
    conversations = _conversations(body)
    embeddings: _EmbeddingsOptions
    if conversations is None:
        embeddings = texts = _EmbeddingsBody.model_validate(body)
        prompts = plain_prompts(Endpoint.EMBEDDINGS, texts.input, None)
    else:
        embeddings = _ChatEmbeddingsBody.model_validate({**body, "messages": conversations})
        prompts = tuple(chat_prompt(messages, (), None) for messages in conversations)
    return SimulatedRequest(
        endpoint=Endpoint.EMBEDDINGS,
        prompts=prompts,
        model=embeddings.model,
        hooks=embeddings.simulated,
        base64=embeddings.encoding_format == "base64",
        dimensions=embeddings.dimensions,
    )


def _read_rerank(body: Mapping[str, Any]) -> SimulatedRequest:
    rerank = _RerankBody.model_validate(body)
    documents = _texts(body, "documents")
    return SimulatedRequest(
        endpoint=Endpoint.RERANK,
        prompts=pair_prompts(_texts(body, "query"), documents),
        model=rerank.model,
        hooks=rerank.simulated,
        documents=documents,
        top_n=rerank.top_n or len(documents),
    )


def _read_score(body: Mapping[str, Any]) -> SimulatedRequest:
    score = _Body.model_validate(body)
    queries, documents = (_texts(body, side) for side in spelling_of(body))
    return SimulatedRequest(
        endpoint=Endpoint.SCORE,
        prompts=pair_prompts(queries, documents),
        model=score.model,
        hooks=score.simulated,
    )


def _texts(body: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value: object = body.get(field)
    texts = cast("list[object]", value) if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise refusal(f"{field}: it reads only text, or a list of texts")
    return cast("tuple[str, ...]", tuple(texts))


def _conversations(body: Mapping[str, Any]) -> list[list[dict[str, Any]]] | None:
    """Find the conversations of an embeddings request, which vLLM reads from either of two fields."""
    value: Any = body.get("input", body.get("messages"))
    match value:
        case [dict(), *_]:
            return [cast("list[dict[str, Any]]", value)]
        case [[dict(), *_], *_]:
            return cast("list[list[dict[str, Any]]]", value)
        case _:
            return None


def _limit(tokens: int | None) -> int | None:
    if tokens is not None and tokens < 1:
        raise refusal(f"max_tokens: {tokens} leaves no room for an answer")
    return tokens


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(strings):
        raise refusal("stop: a stop string must not be empty")
    return strings


def _forced_tool(chat: _ChatBody) -> str | None:
    """Return the name of the function that the caller requires, if any."""
    names = [tool.function.name for tool in chat.tools or ()]
    match chat.tool_choice:
        case None | "none" | "auto":
            return None
        case "required":
            if not names:
                raise refusal("tool_choice: 'required' needs at least one tool")
            return names[0]
        case _Tool(function=_Function(name=wanted)):
            if wanted not in names:
                raise refusal(f"tool_choice: no tool is named {wanted!r}")
            return wanted


def _require_free_text(response_format: _ResponseFormat | None) -> None:
    if response_format is not None and response_format.type != "text":
        raise refusal(
            f"it does not support response_format {response_format.type!r}; "
            "leave the field out, or use a real engine"
        )
