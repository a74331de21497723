"""Resumes an answer that another attempt began.

vLLM gets the prompt and the existing tokens as one longer prompt. It cannot know that the last part of that
is answer. So everything that looks back over the answer is done here, with vLLM's own detokenizer: the text,
which must not be cut inside a character, and stop strings, which may begin before the cut.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, Final

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

_REPLAYED_AT_ONCE: Final = 64
"""How many existing tokens are yielded before other tasks may run."""


class Continuation:
    """The answer to one prompt, of which ``token_ids`` exist already.

    ``sampling_params`` are those of the whole answer. With ``one_by_one`` the existing tokens, too, are
    yielded in outputs of one token each, as they were generated.
    """

    def __init__(
        self,
        engine: Any,
        *,
        engine_input: Mapping[str, Any],
        sampling_params: Any,
        token_ids: Sequence[int],
        one_by_one: bool,
    ) -> None:
        self._engine = engine
        self._engine_input = engine_input
        self._token_ids = list(token_ids)
        self._one_by_one = one_by_one
        self._prompt_token_ids: list[int] = engine_input["prompt_token_ids"]
        self._params = sampling_params.clone()
        # Adds the tokens with which this model ends an answer, as vLLM does for every request.
        self._params.update_from_generation_config(
            engine.input_processor.generation_config_fields, engine.renderer.get_eos_token_id()
        )

    async def outputs(self, request_id: str, **options: Any) -> AsyncGenerator[Any]:
        """Yield the existing tokens, then each new output, as ``AsyncLLM.generate`` would."""
        detokenizer = IncrementalDetokenizer.from_new_request(
            self._engine.get_tokenizer(),
            SimpleNamespace(
                request_id=request_id,
                sampling_params=self._params,
                prompt_token_ids=self._prompt_token_ids,
                prompt_embeds=None,
            ),
        )
        for position, token_id in enumerate(self._token_ids[:-1] if self._one_by_one else ()):
            detokenizer.update([token_id], False)
            yield self._output(request_id, detokenizer, position, None, None)
            if position % _REPLAYED_AT_ONCE == 0:
                await asyncio.sleep(0)
        seen = detokenizer.num_output_tokens()
        last = self._token_ids[-1]
        ended = last == self._params.eos_token_id or last in self._params.stop_token_ids
        stop: int | str | None = detokenizer.update(self._token_ids[seen:], ended)
        finish_reason = "stop" if ended or stop is not None else None
        if finish_reason is None and len(self._token_ids) >= self._params.max_tokens:
            finish_reason = "length"
        if stop is None and ended and last != self._params.eos_token_id:
            stop = last
        yield self._output(request_id, detokenizer, seen, finish_reason, stop)
        if finish_reason is not None:
            return
        rest = self._engine.generate(self._longer_input(), self._remaining_params(), request_id, **options)
        async with aclosing(rest) as outputs:
            async for output in outputs:
                (part,) = output.outputs
                seen = detokenizer.num_output_tokens()
                stop = detokenizer.update(list(part.token_ids), part.finish_reason == "stop")
                finish_reason = "stop" if stop is not None else part.finish_reason
                combined = self._output(
                    request_id, detokenizer, seen, finish_reason, part.stop_reason if stop is None else stop
                )
                combined.metrics = output.metrics
                if output.num_cached_tokens is not None:
                    combined.num_cached_tokens = min(output.num_cached_tokens, len(self._prompt_token_ids))
                yield combined
                if stop is not None:
                    return

    def _longer_input(self) -> dict[str, Any]:
        return {**self._engine_input, "prompt_token_ids": [*self._prompt_token_ids, *self._token_ids]}

    def _remaining_params(self) -> Any:
        params = self._params.clone()
        params.max_tokens -= len(self._token_ids)
        params.min_tokens = max(0, params.min_tokens - len(self._token_ids))
        # This class does both, over the whole answer.
        params.stop = []
        params.detokenize = False
        if params.seed is not None:
            # The same seed would draw the same random numbers as at the beginning of the answer.
            params.seed ^= len(self._token_ids)
        return params

    def _output(
        self,
        request_id: str,
        detokenizer: Any,
        seen: int,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> Any:
        """Make the output of the tokens from ``seen`` on, with the text that they add."""
        finished = finish_reason is not None
        return RequestOutput(
            request_id=request_id,
            prompt=self._engine_input.get("prompt"),
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=None,
            outputs=[
                CompletionOutput(
                    index=0,
                    text=detokenizer.get_next_output_text(finished, delta=True),
                    token_ids=detokenizer.output_token_ids[seen:],
                    cumulative_logprob=None,
                    logprobs=None,
                    finish_reason=finish_reason,
                    stop_reason=stop_reason,
                )
            ],
            finished=finished,
        )
