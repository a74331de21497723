"""The place where a request's tokens are seen on their way from vLLM's engine to its request handler."""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from operator import attrgetter
from typing import Any

from vllm.sampling_params import RequestOutputKind

from inferfleet.schemas import FailureCode
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.vllm_continuation import Continuation
from inferfleet.worker.ports import Generation, GenerationError


class RequestTap:
    """vLLM's engine as the handler of one request sees it.

    The handler asks for one final output, and gets it. On the way there each new token goes to ``emit``,
    and tokens that an earlier attempt generated are put in front. ``parse`` splits text into content, tool
    calls and reasoning, if the model has parsers for them. A prompt to ``echo`` is in the final output only.
    """

    def __init__(
        self,
        engine: Any,
        generation: Generation,
        *,
        emit: Callable[[TokenChunk], None],
        parse: ChatParsers | None,
    ) -> None:
        self._engine = engine
        self._generation = generation
        self._emit = emit
        self._parse = parse
        self._choices = 0

    def __getattr__(self, name: str) -> Any:
        """Everything that is not generating goes to the engine itself."""
        return getattr(self._engine, name)

    def generate(
        self, engine_input: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any]:
        """Generate for one prompt. A request with several prompts calls this once for each, in order."""
        first_choice = self._choices
        self._choices += sampling_params.n
        sampling_params.output_kind = RequestOutputKind.DELTA
        if self._engine.observability_config.otlp_traces_endpoint is not None:
            options["trace_headers"] = dict(self._generation.trace_headers) or None
        return self._generate(first_choice, engine_input, sampling_params, request_id, options)

    async def _generate(
        self,
        first_choice: int,
        engine_input: Any,
        sampling_params: Any,
        request_id: str,
        options: dict[str, Any],
    ) -> AsyncGenerator[Any]:
        resumed = self._generation.resume_token_ids
        if resumed:
            if sampling_params.structured_outputs is not None or "prompt_token_ids" not in engine_input:
                raise GenerationError(FailureCode.INTERNAL, "this answer cannot be continued; start it again")
            outputs = Continuation(
                self._engine, engine_input=engine_input, sampling_params=sampling_params, token_ids=resumed
            ).outputs(request_id, **options)
        else:
            outputs = self._engine.generate(engine_input, sampling_params, request_id, **options)
        answer: Any = None
        async with aclosing(outputs):
            async for output in outputs:
                for part in output.outputs:
                    _require_whole(part)
                    chunk = self._chunk(first_choice, output, part)
                    # The first output of a continuation is what its reader has already seen.
                    seen_before = bool(resumed) and answer is None
                    if not seen_before and (chunk.token_ids or chunk.text or chunk.delta):
                        self._emit(chunk)
                answer = _joined(answer, output)
        if answer is not None:
            answer.outputs.sort(key=attrgetter("index"))
            yield answer

    def _chunk(self, first_choice: int, output: Any, part: Any) -> TokenChunk:
        index = first_choice + part.index
        text, delta = part.text, None
        if self._parse is not None:
            text, delta = self._parse(index, part, output.prompt_token_ids)
        return TokenChunk(index=index, token_ids=tuple(part.token_ids), text=text, delta=delta)


class ChatParsers:
    """vLLM's parsers of tool calls and reasoning, one for each choice, as text streams in."""

    def __init__(self, make: Callable[[], Any], request: Any) -> None:
        self._make = make
        self._request = request
        self._parsers: dict[int, Any] = {}

    def __call__(
        self, index: int, part: Any, prompt_token_ids: list[int]
    ) -> tuple[str, dict[str, Any] | None]:
        """Split new tokens into plain text, and OpenAI's ``delta`` of what is not plain text."""
        if index not in self._parsers:
            self._parsers[index] = self._make()
        message = self._parsers[index].parse_delta(
            delta_text=part.text,
            delta_token_ids=list(part.token_ids),
            request=self._request,
            prompt_token_ids=prompt_token_ids,
            finished=part.finish_reason is not None,
        )
        if message is None:
            return "", None
        delta = message.model_dump(mode="json", exclude={"content", "role"}, exclude_none=True)
        return message.content or "", {name: value for name, value in delta.items() if value} or None


def _require_whole(part: Any) -> None:
    if part.finish_reason == "abort":
        raise GenerationError(FailureCode.ENGINE_ERROR, "vLLM aborted the request")


def _joined(answer: Any, output: Any) -> Any:
    """Add an output's new tokens to the answer so far."""
    if answer is None:
        return output
    answer.add(output, aggregate=True)
    answer.metrics = output.metrics
    if answer.num_cached_tokens is None:
        answer.num_cached_tokens = output.num_cached_tokens
    return answer
