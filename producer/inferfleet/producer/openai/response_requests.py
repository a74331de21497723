"""Reads a request to OpenAI's Responses API: which chat it asks for, and what its response repeats of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from inferfleet.producer.job_making import OPTIONS_MEMBER
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.producer.openai.requests import (
    Asked,
    read_model,
    read_object,
    read_options,
    refuse_later,
    set_priority,
    unknown_member,
    waits_for_s,
)
from inferfleet.producer.openai.response_fields import CreateResponse, NamedFunction, TextFormat
from inferfleet.producer.openai.response_items import Item, read_items
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.wire_model import WireModel

RESPONSE_PREFIX: Final = "resp_"
"""The beginning of a response's id; the rest is the id of its job."""


class ResponseRecord(WireModel):
    """What is kept of a request: its time, its items, and what the response repeats.

    ``created_at`` is in Unix seconds. ``shown`` are the members of the response that come from the request.
    """

    created_at: int
    shown: dict[str, Any]
    items: tuple[Item, ...]

    @property
    def background(self) -> bool:
        """Whether nobody has to wait for the answer."""
        return bool(self.shown["background"])

    @property
    def previous(self) -> str | None:
        """The id of the response that this one continues."""
        previous: str | None = self.shown["previous_response_id"]
        return previous

    @property
    def conversation(self) -> str | None:
        """The id of the conversation of which this is a turn."""
        conversation: dict[str, str] | None = self.shown["conversation"]
        return conversation["id"] if conversation else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedResponse:
    """A request. ``asked`` is a chat that lacks what came before; ``stored`` says to keep the response."""

    job_id: str
    asked: Asked
    items: list[Item]
    shown: dict[str, Any]
    stored: bool


NOT_SUPPORTED: Final[Mapping[str, str]] = {
    "access_programs": "leave it out",
    "background_options": "use service_tier 'flex', or expires_at in the member inferfleet",
    "context_management": "shorten the conversation yourself, or use truncation 'auto'",
    "image": "leave it out",
    "max_tool_calls": "there are no built-in tools; count the calls that your program runs",
    "moderation": "moderate the input and the output yourself",
    "prompt": "send the text of the template as instructions and input",
    "prompt_cache_options": "the engine caches prefixes by itself",
    "prompt_cache_retention": "the engine caches prefixes by itself",
    "top_logprobs": "use /v1/chat/completions with logprobs",
}
"""Members of OpenAI's that a queue does not support, and what to do instead."""

_OF_CHATS: Final = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "echo",
        "include_reasoning",
        "logprob_token_ids",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "n",
        "priority",
        "prompt_logprobs",
        "reasoning_effort",
        "request_id",
        "response_format",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "session_id",
        "truncate_prompt_tokens",
        "use_beam_search",
    }
)
"""Members of a chat that have another name here, or no place in a response."""

EXTENSIONS: Final = (
    ENDPOINTS[Endpoint.CHAT].fields - _OF_CHATS - CreateResponse.model_fields.keys() - NOT_SUPPORTED.keys()
)
"""vLLM's own members of a chat, which a request may have, too."""

_MEMBERS: Final = frozenset({*CreateResponse.model_fields, *EXTENSIONS, OPTIONS_MEMBER})


def read_response_request(headers: Mapping[str, str], content: bytes) -> AskedResponse:
    """Read a request. ``headers`` have lower-case names.

    Raises:
        RefusedError: A member is unknown, invalid or not supported; ``param`` names it.

    """
    body = read_object(content)
    _check_members(body)
    options = read_options(body.get(OPTIONS_MEMBER), headers)
    if "session_id" in options:
        raise bad_request(
            "session_id: is not supported here: name the session in conversation", param="conversation"
        )
    request = read_model(CreateResponse, body)
    _check_agreement(request)
    job_id = new_job_id()
    options["id"] = job_id
    options["endpoint"] = Endpoint.CHAT
    options["stream"] = bool(request.stream)
    if request.metadata and "metadata" not in options:
        options["metadata"] = request.metadata
    if request.service_tier is not None and "priority" not in options:
        set_priority(options, request.service_tier)
    asked = Asked(
        endpoint=Endpoint.CHAT,
        body=_chat(request, body),
        options=options,
        stream=bool(request.stream),
        timeout_s=waits_for_s(options),
    )
    return AskedResponse(
        job_id=job_id,
        asked=asked,
        items=read_items(request.input, "input", prefix=job_id),
        shown=_shown(request),
        stored=request.store is not False,
    )


def _check_members(body: Mapping[str, Any]) -> None:
    refuse_later(body)
    for name, value in body.items():
        if name in NOT_SUPPORTED and value is not None:
            raise bad_request(f"{name}: is not supported: {NOT_SUPPORTED[name]}", param=name)
        if name not in _MEMBERS and name not in NOT_SUPPORTED:
            raise unknown_member(name, _MEMBERS)


def _check_agreement(request: CreateResponse) -> None:
    if request.conversation is not None and request.previous_response_id is not None:
        raise bad_request(
            "previous_response_id: cannot be combined with conversation; send one of them",
            param="previous_response_id",
        )
    if request.store is False:
        for name, given in {"background": request.background, "conversation": request.conversation}.items():
            if given:
                raise bad_request(
                    f"store: must be true with {name}, because the answer is read, or continued, later",
                    param="store",
                )
    wanted = request.text.format if request.text else None
    if wanted is not None and wanted.type == "json_schema":
        for name, value in {"name": wanted.name, "schema": wanted.schema_}.items():
            if value is None:
                raise bad_request(f"text.format.{name}: is missing", param=f"text.format.{name}")
    if isinstance(request.tool_choice, NamedFunction) and request.tool_choice.name not in {
        tool.name for tool in request.tools or ()
    }:
        raise bad_request("tool_choice: names a function that is not among the tools", param="tool_choice")
    if request.tool_choice == "required" and not request.tools:
        raise bad_request("tool_choice: needs tools beside it", param="tool_choice")


def _chat(request: CreateResponse, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make the body of the chat, without its messages."""
    said: dict[str, Any] = {
        "model": request.model,
        "max_completion_tokens": request.max_output_tokens,
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning and request.reasoning.effort,
        "response_format": _response_format(request.text.format if request.text else None),
        "temperature": request.temperature,
        "top_p": request.top_p,
        # As vLLM's own server does: the beginning of the prompt is left out.
        "truncate_prompt_tokens": -1 if request.truncation == "auto" else None,
        "user": request.user,
    }
    if request.tools:
        said["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in request.tools
        ]
        match request.tool_choice:
            case NamedFunction(name=name):
                said["tool_choice"] = {"type": "function", "function": {"name": name}}
            case choice:
                said["tool_choice"] = choice
    chat = {name: body[name] for name in EXTENSIONS if name in body}
    return chat | {name: value for name, value in said.items() if value is not None}


def _response_format(wanted: TextFormat | None) -> dict[str, Any] | None:
    match wanted:
        case None | TextFormat(type="text"):
            return None
        case TextFormat(type="json_object"):
            return {"type": "json_object"}
        case _:
            schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            return {"type": "json_schema", "json_schema": schema}


def _shown(request: CreateResponse) -> dict[str, Any]:
    """Return the members of the response that come from the request."""
    shown: dict[str, Any] = request.model_dump(
        by_alias=True,
        include={
            "instructions",
            "max_output_tokens",
            "previous_response_id",
            "prompt_cache_key",
            "safety_identifier",
            "temperature",
            "top_p",
            "user",
        },
    )
    wanted = request.text.format if request.text else None
    tier = request.service_tier
    return {
        **shown,
        "background": bool(request.background),
        "conversation": request.conversation and {"id": request.conversation.id},
        "metadata": request.metadata or {},
        "model": request.model or "",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "reasoning": {"effort": request.reasoning and request.reasoning.effort, "summary": None},
        "service_tier": _TIERS_SHOWN.get(tier, tier) if tier else "default",
        "store": request.store is not False,
        "text": {
            "format": wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"},
            "verbosity": "medium",
        },
        "tool_choice": request.tool_choice.model_dump()
        if isinstance(request.tool_choice, NamedFunction)
        else request.tool_choice or "auto",
        "tools": [
            {"description": None, "parameters": None, "strict": None, **tool.model_dump(exclude_none=True)}
            for tool in request.tools or ()
        ],
        "top_logprobs": 0,
        "truncation": request.truncation or "disabled",
    }


_TIERS_SHOWN: Final[Mapping[str, str]] = {"auto": "default", "fast": "priority"}
