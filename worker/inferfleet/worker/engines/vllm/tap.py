"""Taps a request's tokens on their way from vLLM's engine to its request handler."""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from operator import attrgetter
from typing import Any

from vllm.entrypoints.generate.base.protocol import FunctionCall
from vllm.entrypoints.serve.utils.tool_calls_utils import maybe_filter_parallel_tool_calls
from vllm.sampling_params import RequestOutputKind

from inferfleet.schemas import FailureCode
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.vllm.continuation import Continuation
from inferfleet.worker.engines.vllm.grammar import grammar_problem
from inferfleet.worker.ports import Generation, GenerationError, NotContinuableError


class RequestTap:
    """Stands in for vLLM's engine towards the handler of one request.

    The handler requests one final output, and gets it. Meanwhile the tap passes each new token to ``emit``,
    and puts the tokens of earlier attempts in front. ``parse`` splits text into content, tool calls and
    reasoning, if the model has parsers for them. ``echo`` returns for a prompt the text with which each
    choice begins; with ``echo_only`` that is the whole text. ``said`` has what was emitted for each choice,
    from which the response is made.
    """

    def __init__(
        self,
        engine: Any,
        generation: Generation,
        *,
        emit: Callable[[TokenChunk], None],
        parse: ChatParsers | None = None,
        echo: Callable[[Any], str | None] | None = None,
        echo_only: bool = False,
    ) -> None:
        self._engine = engine
        self._generation = generation
        self._emit = emit
        self._parse = parse
        self._echo = echo
        self._echo_only = echo_only
        self._choices = 0
        self._prompt_tokens = 0
        self.said: defaultdict[int, Said] = defaultdict(Said)
        self.finish_reasons: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        """Pass everything except ``generate`` to the engine itself."""
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
        self._tell_prompt(engine_input, options.get("lora_request"))
        return self._generate(first_choice, engine_input, sampling_params, request_id, options)

    def _tell_prompt(self, engine_input: Any, lora_request: Any) -> None:
        self._prompt_tokens += len(engine_input.get("prompt_token_ids") or ())
        if self._generation.on_prompt is not None:
            served = self._engine.model_config.served_model_name
            base = served if isinstance(served, str) else served[0]
            # vLLM knows each version of an adapter by another name.
            model = base if lora_request is None else self._generation.body.get("model") or base
            self._generation.on_prompt(model=model, tokens=self._prompt_tokens)

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
                raise NotContinuableError("its kind has more state than its tokens")
            outputs = Continuation(
                self._engine,
                engine_input=engine_input,
                sampling_params=sampling_params,
                token_ids=resumed,
                one_by_one=self._parse is not None,
            ).outputs(request_id, **options)
        else:
            outputs = self._engine.generate(engine_input, sampling_params, request_id, **options)
        echoed = (self._echo(engine_input) or "") if self._echo is not None else ""
        prefixes = dict.fromkeys(range(first_choice, first_choice + sampling_params.n), echoed)
        to_replay = len(resumed)
        answer: Any = None
        async with aclosing(outputs):
            async for output in outputs:
                for part in output.outputs:
                    await self._require_whole(part, sampling_params)
                    index = first_choice + part.index
                    chunk = self._chunk(index, output, part, prefixes.pop(index, ""))
                    self.said[index].add(chunk)
                    if part.finish_reason is not None:
                        self.finish_reasons[index] = part.finish_reason
                    if to_replay > 0:
                        to_replay -= len(part.token_ids)
                        if to_replay <= 0:
                            self._go_on_behind_the_journal(index)
                    elif chunk.token_ids or chunk.text or chunk.delta:
                        self._emit(chunk)
                answer = _joined(answer, output)
        if answer is not None:
            answer.outputs.sort(key=attrgetter("index"))
            yield answer

    def _chunk(self, index: int, output: Any, part: Any, prefix: str) -> TokenChunk:
        text, delta = part.text, None
        if self._parse is not None:
            text, delta = self._parse(index, part, output.prompt_token_ids)
        text = prefix + ("" if self._echo_only else text)
        return TokenChunk(index=index, token_ids=tuple(part.token_ids), text=text, delta=delta)

    def _go_on_behind_the_journal(self, index: int) -> None:
        """Take over what the journal's readers have seen: they know tool calls by the ids in it."""
        chunks = self._generation.resume_chunks
        if not chunks:
            return
        before = Said(chunks)
        if not before.agrees_with(self.said[index]):
            raise NotContinuableError("its tokens do not make the text that was streamed")
        self.said[index] = before

    async def _require_whole(self, part: Any, sampling_params: Any) -> None:
        if part.finish_reason == "abort":
            raise GenerationError(FailureCode.ENGINE_ERROR, "vLLM aborted the request")
        if part.finish_reason == "error" and sampling_params.structured_outputs is not None and not self.said:
            problem = await grammar_problem(self._engine, sampling_params)
            if problem is not None:
                raise problem


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
            self._parsers[index] = parser = self._make()
            # vLLM would complete the arguments of a call whose name came with the last tokens. Then it would
            # depend on the size of the last chunk whether a cut call has arguments.
            parser._append_unstreamed_tool_args = _leave_as_it_is
        message = self._parsers[index].parse_delta(
            delta_text=part.text,
            delta_token_ids=list(part.token_ids),
            request=self._request,
            prompt_token_ids=prompt_token_ids,
            finished=part.finish_reason is not None,
        )
        if message is None:
            return "", None
        message = maybe_filter_parallel_tool_calls(message, self._request)
        delta = message.model_dump(mode="json", exclude={"content", "role"}, exclude_none=True)
        return message.content or "", {name: value for name, value in delta.items() if value} or None


def _leave_as_it_is(_: Any) -> None:
    pass


class ParsedAlready:
    """Stands in for a parser that would parse the whole text again, although the stream has been parsed.

    The handler makes one parser for each choice, in order.
    """

    def __init__(self, tap: RequestTap) -> None:
        self._tap = tap
        self._next_choice = 0

    def parser(self, make: Callable[..., Any], *options: Any) -> Any:
        """Make a parser of one choice that returns what was streamed."""
        parser = make(*options)
        # With reasoning, an empty text is no text; without, the text may be empty.
        without_text = None if parser.reasoning_parser is not None else ""
        parser.parse = partial(self._parse, without_text)
        return parser

    def _parse(
        self, without_text: str | None, *_: Any, **__: Any
    ) -> tuple[str | None, str | None, list[Any]]:
        said = self._tap.said[self._next_choice]
        self._next_choice += 1
        calls = [FunctionCall(id=call["id"], **call["function"]) for call in said.tool_calls]
        return said.reasoning or None, said.text or (None if calls else without_text), calls


def _joined(answer: Any, output: Any) -> Any:
    """Add an output's new tokens to the answer so far."""
    if answer is None:
        return output
    answer.add(output, aggregate=True)
    answer.metrics = output.metrics
    if answer.num_cached_tokens is None:
        answer.num_cached_tokens = output.num_cached_tokens
    return answer
