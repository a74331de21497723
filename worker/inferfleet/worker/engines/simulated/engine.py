"""The simulated engine: one task runs the batch, and one async iterator per request follows its sequences.

There is no queue between the two. The batch counts tokens; the iterator sees how far its sequences have come,
and yields that much of an answer that was known from the start. A slow reader gets larger chunks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import IO, Any, Final, Self

from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.engines.simulated.answer import Answer, AnswerCutter, plan_answers
from inferfleet.worker.engines.simulated.batch import Batch, Phase, Sequence
from inferfleet.worker.engines.simulated.hooks import Hooks
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.prefix_cache import blocks_of
from inferfleet.worker.engines.simulated.prompt import chat_tokens
from inferfleet.worker.engines.simulated.refusal import refusal
from inferfleet.worker.engines.simulated.request import SimulatedRequest, read_request, resumable
from inferfleet.worker.engines.simulated.response import completion_of, with_cached_tokens
from inferfleet.worker.ports import (
    Completion,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
    ModelIdentity,
    NotContinuableError,
)

_log: Final = logging.getLogger(__name__)

_MOST_LAG_S: Final = 0.1
"""How far the batch may fall behind its clock and still catch up. After a longer pause of the process it
continues where it was: a GPU would not have worked in the meantime either."""

_TOKENS_PER_REPORT: Final = 16
"""The size of the groups in which tokens are reported when no time passes between them."""


class SimulatedEngine:
    """An engine without a model: its text depends only on the request, and its timing is simulated.

    ``docs/simulated-engine.md`` documents the parameters, the formulas and the faults that it can cause.
    """

    def __init__(self, *, model: str, max_running: int, engine_args: Mapping[str, Any]) -> None:
        """Read the arguments.

        Raises:
            ConfigurationError: An argument is unknown or has an impossible value.

        """
        self._model = model
        self._parameters = SimulatedParameters.from_engine_args(engine_args)
        self._identity = ModelIdentity(engine="simulated", name=model, weights=str(self._parameters.weights))
        self._batch = Batch(parameters=self._parameters, max_running=max_running)
        self._work = asyncio.Event()
        self._watchers: set[asyncio.Event] = set()
        self._failures: Counter[str] = Counter()
        self._loop: asyncio.Task[None] | None = None
        self._death: str | None = None
        self._token_log: IO[bytes] | None = None

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> Self:
        """Make the engine that a worker runs; without a name the model is called ``simulated``.

        Raises:
            ConfigurationError: An engine argument is unknown or has an impossible value.

        """
        return cls(
            model=settings.model or "simulated",
            max_running=settings.max_running,
            engine_args=settings.engine_args,
        )

    @property
    def model(self) -> str:
        """The model's served name."""
        return self._model

    @property
    def identity(self) -> ModelIdentity:
        """The name and the ``weights``; all other parameters change only the timing, or where a text ends."""
        return self._identity

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """All endpoints."""
        return frozenset(Endpoint)

    async def start(self) -> None:
        """Pretend to load a model for ``load_s`` modelled seconds."""
        if self._parameters.token_log is not None:
            self._token_log = _open_token_log(self._parameters.token_log)
        await asyncio.sleep(self._parameters.real_s(self._parameters.load_s))
        if self._death is not None:
            raise EngineDeadError(self._death)
        self._loop = asyncio.create_task(self._run_batch(), name="simulated-engine")

    async def stop(self) -> None:
        """End every generation with ``EngineDeadError``. Safe to call twice, and before ``start``."""
        self.die("the simulated engine has been stopped")
        if self._loop is not None:
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._token_log is not None:
            self._token_log.close()

    def die(self, reason: str = "the simulated engine died, as it was told to") -> None:
        """Fail all running and all later requests, as an engine does whose GPU has failed."""
        self._death = self._death or reason
        if self._loop is not None:
            self._loop.cancel()
        for watcher in self._watchers:
            watcher.set()

    def stats(self) -> EngineStats:
        """Count sequences: a request with ``n`` choices, or several prompts, is several."""
        return EngineStats(
            running=self._batch.running,
            waiting=self._batch.waiting,
            kv_cache_usage=self._batch.kv_cache_usage,
        )

    def resumable(self, generation: Generation) -> bool:
        """Return whether the request is for one plain text."""
        return resumable(generation.endpoint, generation.body)

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer one request; ``Engine.generate`` says what is guaranteed."""
        self._require_alive()
        request = self._read(generation)
        answers, completion = self._plan(generation, request)
        if generation.on_prompt is not None:
            generation.on_prompt(model=self._model, tokens=request.prompt_tokens)
        cutters = [AnswerCutter(answer, index=index) for index, answer in enumerate(answers)]
        conversation: list[Mapping[str, Any]] = []
        if self._parameters.prefix_caching and generation.endpoint is Endpoint.CHAT:
            conversation = generation.body["messages"]
        tools = generation.body.get("tools") or ()
        blocks = blocks_of(chat_tokens(conversation, tools), tenant=generation.tenant) if conversation else ()
        hooks = request.hooks
        fault = hooks.fault and not self._failed_enough(generation.id, hooks)
        watcher = asyncio.Event()
        sequences = [
            Sequence(
                prompt_tokens=request.prompts[index // request.n].tokens,
                generated=done,
                target=max(done, min(goal, hooks.after_tokens)) if fault else goal,
                priority=generation.priority,
                hangs=fault and hooks.hang,
                step_delay_s=hooks.step_delay_s,
                blocks=blocks,
                on_progress=watcher.set,
            )
            for index, (done, goal) in enumerate(_spans(request, answers))
        ]
        self._watchers.add(watcher)
        try:
            for sequence in sequences:
                self._batch.add(sequence)
            self._work.set()
            while True:
                watcher.clear()
                # An answer that is not generated has a sequence, but nothing to cut.
                for cutter, sequence in zip(cutters, sequences, strict=False):
                    if sequence.generated > cutter.position:
                        yield cutter.cut(sequence.generated)
                # Tokens that came while the reader was busy have set the watcher again.
                if not watcher.is_set() and all(sequence.phase is Phase.ENDED for sequence in sequences):
                    break
                await watcher.wait()
                self._require_alive()
        finally:
            self._watchers.discard(watcher)
            for sequence in sequences:
                self._batch.remove(sequence)
            self._work.set()
        if fault:
            self._strike(generation.id, hooks)
        if conversation:
            completion = with_cached_tokens(completion, sequences[0].cached or 0)
            for choice in completion.response["choices"]:
                said = chat_tokens([*conversation, choice["message"]], tools)
                self._batch.prefix_cache.add(blocks_of(said, tenant=generation.tenant))
        yield completion

    def _read(self, generation: Generation) -> SimulatedRequest:
        request = read_request(generation.endpoint, generation.body)
        if request.model not in (None, "", self._model):
            raise refusal(f"model: this worker serves {self._model!r}, not {request.model!r}")
        if generation.resume_token_ids and not self.resumable(generation):
            raise NotContinuableError("its kind has more state than its tokens")
        return request

    def _plan(self, generation: Generation, request: SimulatedRequest) -> tuple[list[Answer], Completion]:
        """Make the whole answer."""
        answers = plan_answers(
            request,
            max_model_len=self._parameters.max_model_len,
            weights=self._parameters.weights,
            resume_token_ids=generation.resume_token_ids,
        )
        return answers, completion_of(
            request,
            answers,
            job_id=generation.id,
            model=self._model,
            created=int(time.time()),  # noqa: TID251 - an engine knows of no Redis
            parameters=self._parameters,
        )

    def _failed_enough(self, generation_id: str, hooks: Hooks) -> bool:
        return hooks.fail_times is not None and self._failures[generation_id] >= hooks.fail_times

    def _strike(self, generation_id: str, hooks: Hooks) -> None:
        """Cause the fault that the request orders."""
        if hooks.kill_worker:
            os.kill(os.getpid(), signal.SIGKILL)
        if hooks.kill_engine:
            self.die()
            self._require_alive()
        if hooks.fail is not None:
            if hooks.fail_times is not None:
                self._failures[generation_id] += 1
            raise GenerationError(
                hooks.fail, f"the request asked the simulated engine for {hooks.fail.value!r}"
            )

    def _require_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(self._death)
        if self._loop is None:
            raise EngineDeadError("the simulated engine has not been started")

    async def _run_batch(self) -> None:
        try:
            await self._step_for_ever()
        except Exception:
            _log.exception("the batch loop of the simulated engine failed")
            self.die("the batch loop of the simulated engine failed; its log has the reason")

    async def _step_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time()
        while True:
            step = self._batch.schedule()
            if step is None:
                self._work.clear()
                await self._work.wait()
                deadline = loop.time()
                continue
            pause_s = max(self._parameters.real_s(step.duration_s), step.least_s)
            # Steps are paced against one running deadline: timers fire a little late, which would add up to
            # several per cent for steps of a few milliseconds.
            deadline = max(deadline, loop.time() - _MOST_LAG_S) + pause_s
            await asyncio.sleep(max(0.0, deadline - loop.time()))
            produced = self._batch.finish(step, report_every=1 if pause_s else _TOKENS_PER_REPORT)
            if self._token_log is not None and produced:
                self._token_log.write(b"%d\n" % produced)


def _open_token_log(path: Path) -> IO[bytes]:
    try:
        # Several engines may append to the same file: each line is one write.
        return path.open("ab", buffering=0)
    except OSError as error:
        raise ConfigurationError(
            f"the simulated engine cannot open its 'token_log': {error}; name a file that it can "
            "write in INFERFLEET_ENGINE_ARGS"
        ) from error


def _spans(request: SimulatedRequest, answers: list[Answer]) -> list[tuple[int, int]]:
    """Return for each sequence how many tokens it begins and ends with. Without generation it is one step."""
    if answers:
        return [(answer.resumed, len(answer.token_ids)) for answer in answers]
    return [(0, 1) for _ in request.prompts]
