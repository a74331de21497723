"""Resumes an answer on a vLLM server, from the token ids that an earlier attempt has generated.

The server gets prompt and answer so far as the token ids of one completion. A character whose tokens are on
both sides of the cut is decoded here, from all tokens. What else looks back over an answer (stop strings,
parsers of tools and reasoning) does not see its beginning this way, so answers that need it are not resumed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from inferfleet.schemas import Endpoint
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.completion import text_completion
from inferfleet.worker.engines.openai.client import Client, until_its_end
from inferfleet.worker.engines.openai.errors import AnotherModelError, HostLostError, ServerError
from inferfleet.worker.engines.openai.hosts import Host
from inferfleet.worker.engines.openai.promised import NOT_WHOLE
from inferfleet.worker.engines.openai.served import Served, url_of
from inferfleet.worker.engines.vllm import resumable as vllm
from inferfleet.worker.ports import Completion, Generation, GenerationError, NotContinuableError

_SAMPLING: Final = frozenset(
    {
        "allowed_token_ids",
        "ignore_eos",
        "logit_bias",
        "min_p",
        "min_tokens",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
        "vllm_xargs",
    }
)
"""The fields of a body that say how tokens are chosen and shown, the same in chats and completions."""

_LOOK_BACK: Final = ("include_stop_str_in_output", "return_token_ids", "stop", "truncate_prompt_tokens")
_NOT_YET: Final = "\ufffd"
"""What stands for a character of which not all tokens are there."""

_DEFAULT_MAX_TOKENS: Final = 16
"""vLLM's default for a completion. A chat may fill the context."""


def resumable(generation: Generation, served: Served) -> bool:
    """Return whether an interrupted answer can be resumed on a server of this kind."""
    body = generation.body
    if not served.token_ids or not vllm.resumable(generation.endpoint, body):
        return False
    if any(body.get(field) not in (None, False, []) for field in _LOOK_BACK):
        return False
    if generation.endpoint is Endpoint.CHAT:
        return not served.reasons and not body.get("tools") and body.get("include_reasoning") is not False
    return True


async def resumed(
    client: Client, host: Host, generation: Generation, served: Served, sent: Mapping[str, Any]
) -> AsyncGenerator[TokenChunk | Completion]:
    """Yield the rest of an answer. ``sent`` is the body with which it would begin.

    Raises:
        AnotherModelError: The server has another model than the one that generated the tokens.
        NotContinuableError: The text of the tokens is not the text that was streamed, or their end may be
            the end of the answer.

    """
    done = generation.resume_token_ids
    if min(done) < 0:
        raise NotContinuableError("some of its tokens have no ids")
    prompt = await _prompt(client, host, generation, served, sent)
    decoder = _Decoder(client, host, served.identity.name, prompt)
    decoded = await decoder.text(done)
    before = _before(generation, decoded)
    if generation.on_prompt is not None:
        generation.on_prompt(model=served.identity.name, tokens=len(prompt))
    allowed = _max_tokens(generation, room=served.max_model_len - len(prompt))
    chunks, finish_reason, stop_reason = [*before], "length", None
    if len(done) < allowed:
        body = generation.body
        rest = {
            **{name: sent[name] for name in ("model", "cache_salt", "priority") if name in sent},
            **{name: body[name] for name in _SAMPLING if body.get(name) is not None},
            "prompt": [*prompt, *done],
            "max_tokens": allowed - len(done),
            "min_tokens": max(0, (body.get("min_tokens") or 0) - len(done)),
            "request_id": f"{generation.id}-{len(done)}",
            "return_token_ids": True,
            "stream": True,
        }
        if body.get("seed") is not None:
            # The same seed would draw the same random numbers as at the beginning of the answer.
            rest["seed"] = body["seed"] ^ len(done)
        url, headers = url_of(host, Endpoint.COMPLETIONS), generation.trace_headers
        shown, new = "".join(chunk.text for chunk in before), list[int]()
        within_character, ended = decoded.endswith(_NOT_YET), False
        async with (
            aclosing(client.stream(host, url, rest, headers)) as stream,
            aclosing(until_its_end(stream, lambda: ended)) as events,
        ):
            async for event in events:
                for choice in event.get("choices") or ():
                    ids, text = tuple(choice.get("token_ids") or ()), choice.get("text") or ""
                    new += ids
                    if within_character:
                        # vLLM would begin with the prompt's text. A token that ends the answer has none.
                        said = new[:-1] if choice.get("finish_reason") == "stop" else new
                        decoded = await decoder.text((*done, *said))
                        within_character = decoded.endswith(_NOT_YET)
                        text = "" if within_character else decoded.removeprefix(shown)
                    chunk = TokenChunk(token_ids=ids, text=text)
                    if ids or text:
                        chunks.append(chunk)
                        yield chunk
                    if choice.get("finish_reason") not in NOT_WHOLE:
                        ended, finish_reason = True, choice["finish_reason"]
                        stop_reason = choice.get("stop_reason")
        if not ended:
            raise HostLostError(f"{host.name} closed the stream before the end of the answer")
    completion = text_completion(
        generation,
        chunks,
        model=served.identity.name,
        prompt_tokens=len(prompt),
        finish_reason=finish_reason,
    )
    completion.response["choices"][0]["stop_reason"] = stop_reason
    yield completion


async def _prompt(
    client: Client, host: Host, generation: Generation, served: Served, sent: Mapping[str, Any]
) -> list[int]:
    """Return the token ids of the prompt, as the server makes them from this very request.

    It computes the prompt for that, which the prefix cache keeps for the rest of the answer. The end of this
    stream says which model the server has: a restart may have been too quick to be noticed otherwise.
    """
    found: list[int] = []
    fingerprint, ended = None, False
    limit = {"max_tokens": 1, "min_tokens": 0}
    if generation.endpoint is Endpoint.CHAT:
        limit["max_completion_tokens"] = 1
    url = url_of(host, generation.endpoint)
    async with (
        aclosing(client.stream(host, url, {**sent, **limit}, generation.trace_headers)) as stream,
        aclosing(until_its_end(stream, lambda: ended)) as events,
    ):
        async for event in events:
            ended = ended or any(each.get("finish_reason") for each in event.get("choices") or ())
            fingerprint = event.get("system_fingerprint") or fingerprint
            for told in (event, *(event.get("choices") or ())):
                if told.get("prompt_token_ids"):
                    found = list(told["prompt_token_ids"])
    if served.has_changed(generation.endpoint, fingerprint):
        raise AnotherModelError(host.name)
    if found:
        return found
    raise NotContinuableError("the server does not return the tokens of the prompt")


class _Decoder:
    """Decodes the tokens of an answer on the server, with all special tokens."""

    def __init__(self, client: Client, host: Host, model: str, prompt: list[int]) -> None:
        self._client = client
        self._host = host
        self._model = model
        self._prompt = prompt
        self._prompt_text: str | None = None

    async def text(self, token_ids: Sequence[int]) -> str:
        """Return the text that the tokens add to that of the prompt.

        The prompt comes before them, since the first token of a text may be decoded without its space.
        """
        if self._prompt_text is None:
            self._prompt_text = await self._decoded(self._prompt)
        return (await self._decoded([*self._prompt, *token_ids])).removeprefix(self._prompt_text)

    async def _decoded(self, token_ids: list[int]) -> str:
        body = {"model": self._model, "tokens": token_ids}
        try:
            answer = await self._client.post(self._host, f"{self._host.root}/detokenize", body)
        except GenerationError as error:
            if isinstance(error, ServerError):
                raise
            # A proxy may let only /v1 through. The answer can begin again without this.
            raise NotContinuableError(f"the server does not decode its tokens: {error}") from error
        return str(answer.get("prompt") or "")


def _before(generation: Generation, decoded: str) -> tuple[TokenChunk, ...]:
    """Return what was streamed before, if it is the plain text of its tokens, which is ``decoded``."""
    done = generation.resume_token_ids
    if done[-1] in (generation.body.get("stop_token_ids") or ()):
        raise NotContinuableError("its last token may be its end")
    chunks = generation.resume_chunks or (TokenChunk(token_ids=done, text=decoded.rstrip(_NOT_YET)),)
    shown = "".join(chunk.text for chunk in chunks)
    # Special tokens are decoded and not shown. So an answer that has ended is not continued, either.
    if any(chunk.delta for chunk in chunks) or decoded.removeprefix(shown).strip(_NOT_YET):
        raise NotContinuableError("its tokens do not make the text that was streamed")
    return chunks


def _max_tokens(generation: Generation, *, room: int) -> int:
    body = generation.body
    chat = generation.endpoint is Endpoint.CHAT
    asked = body.get("max_completion_tokens") if chat else None
    asked = body.get("max_tokens") if asked is None else asked
    if asked is None:
        return room if chat else min(room, _DEFAULT_MAX_TOKENS)
    return min(int(asked), room)
