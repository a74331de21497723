"""Makes the chunks of OpenAI's streams from a job's journal, as vLLM's server sends them.

The id, the time and every delta come from the journal. So all readers of a job get the same chunks.

What only the whole response has, logprobs, the prompt's text and the ids of its tokens, comes with the last
chunk of each choice. vLLM sends the logprobs token by token, and the prompt first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.journal import TokenChunk, TokensEntry
from inferfleet.schemas.openai_messages import is_set
from inferfleet.schemas.result import Result

_whole: TypeAdapter[int] = TypeAdapter(int)

Chunk = dict[str, Any]


class AnswerChunks:
    """The chunks of one answer to a chat or completion, whose ``body`` has been checked."""

    def __init__(self, job_id: str, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        generated = ENDPOINTS[endpoint].generated
        assert generated is not None  # noqa: S101 - others are not streamed
        self._id = f"{generated.id_prefix}-{job_id}"
        self._object = generated.chunk_object
        self._chat = endpoint is Endpoint.CHAT
        self._body = body
        options: Mapping[str, Any] = body.get("stream_options") or {}
        self._usage_at_end = is_set(options.get("include_usage"))
        self._usage_always = self._usage_at_end and is_set(options.get("continuous_usage_stats"))
        self._with_ids = is_set(body.get("return_token_ids"))
        self._model: str | None = None
        self._prompt_tokens = 0
        self._created: int | None = None
        self._tokens: Counter[int] = Counter()
        self._without_head: list[TokensEntry] = []

    @property
    def begun(self) -> bool:
        """Whether a chunk of the answer was made, so that the answer must not restart."""
        return self._created is not None

    def restart(self) -> None:
        """Forget the tokens of an answer of which no chunk was made."""
        self._without_head.clear()

    def add(self, entry: TokensEntry) -> list[Chunk]:
        """Make the chunks of the next tokens.

        None, if the journal has not yet said which model answers: then the answer ends with these tokens.
        """
        if entry.head is not None:
            self._model, self._prompt_tokens = entry.head.model, entry.head.prompt_tokens
        if self._model is None:
            self._without_head.append(entry)
            return []
        made = self._begin(int(entry.at.timestamp()))
        for chunk in entry.chunks:
            self._tokens[chunk.index] += len(chunk.token_ids)
            if chunk.text or chunk.delta or self._with_ids:
                made.append(self._of_tokens(chunk))
        return made

    def end(self, result: Result) -> list[Chunk]:
        """Make the last chunks of a job that has succeeded."""
        response = result.response or {}
        if self._model is None:
            self._model, self._prompt_tokens = response["model"], result.usage.prompt_tokens
        made = [chunk for entry in self._without_head for chunk in self.add(entry)]
        made += self._begin(response["created"])
        last = [self._of_end(choice, response) for choice in response["choices"]]
        made += last
        if self._usage_at_end:
            usage = {name: value for name, value in response["usage"].items() if value is not None}
            last = [self._chunk([]) | {"usage": usage}]
            made += last
        if (fingerprint := response.get("system_fingerprint")) is not None:
            for chunk in last:
                chunk["system_fingerprint"] = fingerprint
        return made

    def _begin(self, created: int) -> list[Chunk]:
        if self.begun:
            return []
        self._created = created
        if not self._chat:
            return []
        delta = {"role": self._role(), "content": ""}
        number = _whole.validate_python(self._body.get("n") or 1)
        return [self._of_choice({"index": index, "delta": delta}) for index in range(number)]

    def _role(self) -> str:
        if is_set(self._body.get("add_generation_prompt", True)):
            return "assistant"
        role: str = self._body["messages"][-1]["role"]
        return role

    def _of_tokens(self, chunk: TokenChunk) -> Chunk:
        choice: dict[str, Any] = {"index": chunk.index, **self._said(chunk)}
        if self._with_ids:
            choice["token_ids"] = list(chunk.token_ids)
        return self._of_choice(choice)

    def _said(self, chunk: TokenChunk) -> dict[str, Any]:
        if not self._chat:
            return {"text": chunk.text}
        content = {"content": chunk.text} if chunk.text else {}
        return {"delta": {**content, **(chunk.delta or {})}}

    def _of_end(self, choice: Mapping[str, Any], response: Mapping[str, Any]) -> Chunk:
        ended: dict[str, Any] = {"index": choice["index"], **({"delta": {}} if self._chat else {"text": ""})}
        for name in ("logprobs", "finish_reason", "stop_reason", "prompt_token_ids"):
            if choice.get(name) is not None:
                ended[name] = choice[name]
        chunk = self._of_choice(ended)
        for name in ("prompt_token_ids", "prompt_text") if choice["index"] == 0 else ():
            if response.get(name) is not None:
                chunk[name] = response[name]
        return chunk

    def _of_choice(self, choice: dict[str, Any]) -> Chunk:
        chunk = self._chunk([{"logprobs": None, "finish_reason": None, **choice}])
        if self._usage_always:
            tokens = self._tokens[choice["index"]]
            chunk["usage"] = {
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": self._prompt_tokens + tokens,
            }
        return chunk

    def _chunk(self, choices: list[dict[str, Any]]) -> Chunk:
        return {
            "id": self._id,
            "object": self._object,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
