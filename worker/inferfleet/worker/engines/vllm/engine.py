"""vLLM in this process, behind the worker's engine port.

This module starts and stops the engine and tracks its running requests. It imports vLLM only at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final, Self

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS, not_answered
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.engines.adapter_files import AdapterSources
from inferfleet.worker.engines.vllm.loading import LoadedModel, ModelLoader
from inferfleet.worker.engines.vllm.resumable import resumable
from inferfleet.worker.ports import (
    Completion,
    EngineDeadError,
    EngineStats,
    Generation,
    ModelIdentity,
    NotContinuableError,
)
from inferfleet.worker.start_times import StartPart, StartTimes

_PAUSE_TIMEOUT_S: Final = 5.0
"""How long a healthy engine core may take to abort its requests; after that the worker kills it."""

_ABORT_TIMEOUT_S: Final = 1.0
"""How long the aborted requests may take to end in this process."""

_EXIT_TIMEOUT_S: Final = 1.0
"""How long an engine core may take to exit on its own. It runs no request then, so killing it loses nothing;
on the CPU it always has to be killed."""


_WARM_UPS: Final[Mapping[Endpoint, Mapping[str, Any]]] = {
    Endpoint.COMPLETIONS: {"prompt": [0], "max_tokens": 1},
    Endpoint.EMBEDDINGS: {"input": [0]},
    Endpoint.SCORE: {"text_1": "a", "text_2": "a"},
}
"""The requests that warm up a model: the first of these that the model can answer."""


class VllmEngine:
    """An ``Engine`` that generates with vLLM's ``AsyncLLM``.

    ``model`` is a folder or a name on the Hugging Face hub. ``engine_args`` are options of ``vllm serve``
    with underscores. They override the choices made here; but if they contradict a setting of the worker, or
    something that it relies on, the worker does not start. The model's task (to generate, to embed, to
    classify) decides which endpoints it answers.
    """

    def __init__(
        self,
        *,
        model: str,
        max_running: int,
        engine_args: Mapping[str, Any],
        adapters_dir: str = "",
    ) -> None:
        _require_agreement(engine_args, model=model, max_running=max_running)
        adapters = AdapterSources.read(
            adapters_dir=adapters_dir,
            lora_modules=engine_args.get("lora_modules"),
        )
        if adapters:
            if not engine_args.get("enable_lora", True):
                raise ConfigurationError(
                    "engine_args: enable_lora is False and should be True: there are adapters. Leave it out "
                    "of INFERFLEET_ENGINE_ARGS"
                )
            # vLLM would load the modules at the start.
            engine_args = {**engine_args, "enable_lora": True, "lora_modules": None}
        if find_spec("vllm") is None:
            raise ConfigurationError(
                "the vllm engine needs the package 'vllm': pip install 'inferfleet[vllm]', "
                "or try --engine simulated"
            )
        names = engine_args.get("served_model_name") or model
        self._served_names: list[str] = [names] if isinstance(names, str) else list(names)
        self._loader = ModelLoader(
            model=model,
            served_names=self._served_names,
            max_running=max_running,
            engine_args=engine_args,
            adapters=adapters,
        )
        self._loaded: LoadedModel | None = None
        self._identity: ModelIdentity | None = None
        self._endpoints: frozenset[Endpoint] = frozenset()
        self._start_parts: Mapping[StartPart, float] = {}
        self._answers: set[asyncio.Task[Completion]] = set()
        self._stopped = False

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> Self:
        """Make the engine that a worker runs.

        Raises:
            ConfigurationError: No model is named, vLLM is not installed, or an engine argument contradicts
                a setting.

        """
        if not settings.model:
            raise ConfigurationError(
                "the vllm engine needs a model: give --model, a folder or a name (INFERFLEET_MODEL)"
            )
        return cls(
            model=settings.model,
            max_running=settings.max_running,
            engine_args=settings.engine_args,
            adapters_dir=settings.adapters_dir,
        )

    @property
    def model(self) -> str:
        """The model's served name, the first if it has several."""
        return self._served_names[0]

    @property
    def identity(self) -> ModelIdentity | None:
        """The loaded model, with fingerprints of its files; known once ``start`` has returned."""
        return self._identity

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that this kind of model can answer; known once ``start`` has returned."""
        return self._endpoints

    @property
    def start_parts(self) -> Mapping[StartPart, float]:
        """How many seconds each part of the start took; known once ``start`` has returned."""
        return self._start_parts

    async def adapters(self) -> tuple[str, ...]:
        """Return the names of the LoRA adapters in the folder and in ``lora_modules``."""
        return () if self._loaded is None else await self._loaded.adapters.names()

    async def identify(self, generation: Generation) -> ModelIdentity:
        """Return the model's identity, with the fingerprint of the adapter if the request names one.

        Raises:
            GenerationError: The worker has no such model.

        """
        loaded = self._require_running()
        adapter = await loaded.adapters.find(generation.body.get("model"))
        return loaded.identity if adapter is None else replace(loaded.identity, adapter=adapter.fingerprint)

    async def start(self) -> None:
        """Load the model and run it once. This takes seconds to minutes, without blocking the event loop.

        Raises:
            ConfigurationError: vLLM does not know an engine argument, or refuses it; or the model can answer
                no endpoint.
            EngineDeadError: vLLM could not load the model, and has logged why; or ``stop`` was called.

        """
        try:
            times = StartTimes()
            self._loaded = await self._loader.load(times)
            self._identity = self._loaded.identity
            self._endpoints = frozenset(self._loaded.handlers)
            if self._stopped:
                raise EngineDeadError("the engine was stopped while it started")
            async with aclosing(self.generate(self._warm_up(self._loaded))) as events:
                async for _ in events:
                    pass
            times.ended(StartPart.WARM_UP)
            self._start_parts = times.parts
        except (ConfigurationError, EngineDeadError):
            raise
        except Exception as error:
            raise EngineDeadError(f"vLLM could not start: {error}") from error

    def stats(self) -> EngineStats:
        """Count sequences: a request with ``n`` choices, or several prompts, is several."""
        return EngineStats() if self._loaded is None else self._loaded.stats()

    def resumable(self, generation: Generation) -> bool:
        """Return whether the request is for one text without a grammar or penalties."""
        if (
            generation.endpoint is Endpoint.CHAT
            and self._loaded is not None
            and self._loaded.chat_has_grammar
        ):
            return False
        return resumable(generation.endpoint, generation.body)

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer one request; ``Engine.generate`` says what is guaranteed."""
        loaded = self._require_running()
        # These import vLLM, which a loaded model implies.
        from inferfleet.worker.engines.vllm.answer import answer
        from inferfleet.worker.engines.vllm.errors import refusal

        if generation.endpoint not in self.endpoints:
            raise refusal(not_answered(generation.endpoint, model=self.model, answers=self.endpoints))
        if generation.resume_token_ids and not self.resumable(generation):
            raise NotContinuableError("its kind has more state than its tokens")
        chunks: asyncio.Queue[TokenChunk | None] = asyncio.Queue()
        task = asyncio.create_task(answer(loaded, generation, chunks.put_nowait))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        task.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            completion = self._result(task)
        finally:
            # vLLM's handlers end quietly when they are cancelled, and abort the request first.
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        yield completion

    async def stop(self) -> None:
        """Abort all requests and release the device. Safe to call twice, and before or during ``start``."""
        self._stopped = True
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            self._loader.give_up()
            return
        engine = loaded.engine
        # shutdown() alone would leave running requests waiting for ever.
        if not engine.errored:
            with suppress(Exception):
                async with asyncio.timeout(_PAUSE_TIMEOUT_S):
                    await engine.pause_generation(mode="abort", clear_cache=False)
        if self._answers:
            _, hanging = await asyncio.wait(self._answers, timeout=_ABORT_TIMEOUT_S)
            for task in hanging:
                task.cancel()
        if engine.output_handler is not None:
            # Otherwise vLLM logs the end of the core as a failure, with a traceback.
            engine.output_handler.cancel()
        await asyncio.to_thread(loaded.release, timeout_s=_EXIT_TIMEOUT_S)

    def _require_running(self) -> LoadedModel:
        if self._loaded is None:
            raise EngineDeadError("the engine is not running")
        return self._loaded

    def _result(self, task: asyncio.Task[Completion]) -> Completion:
        if self._stopped and (task.cancelled() or task.exception() is not None):
            raise EngineDeadError("the engine was stopped while it answered")
        return task.result()

    def _warm_up(self, loaded: LoadedModel) -> Generation:
        """Answer a request of one or two tokens, which any model of its kind accepts."""
        for endpoint, body in _WARM_UPS.items():
            if endpoint in loaded.handlers:
                return Generation(id="warm-up", endpoint=endpoint, body=body, priority=9)
        needed = "; ".join(f"{endpoint} needs {spec.model}" for endpoint, spec in ENDPOINTS.items())
        raise ConfigurationError(
            f"vLLM runs the model {self.model!r} for the task {loaded.task!r}, with which it answers no "
            f"endpoint: {needed}. Another 'runner' or 'convert' in INFERFLEET_ENGINE_ARGS may help"
        )


def _require_agreement(engine_args: Mapping[str, Any], *, model: str, max_running: int) -> None:
    """Refuse engine arguments that contradict the worker's settings, or what the worker relies on.

    Raises:
        ConfigurationError: An argument contradicts a setting.

    """
    relied_on: dict[str, tuple[object, str]] = {
        "max_num_seqs": (max_running, "that is --max-running (INFERFLEET_MAX_RUNNING)"),
        "model": (model, "that is --model (INFERFLEET_MODEL)"),
        "scheduling_policy": ("priority", "otherwise vLLM ignores the priority of jobs"),
        "disable_log_stats": (False, "otherwise nobody knows how loaded the engine is"),
    }
    for name, (value, why) in relied_on.items():
        if engine_args.get(name, value) != value:
            raise ConfigurationError(
                f"engine_args: {name} is {engine_args[name]!r} and should be {value!r}: {why}. "
                f"Leave {name} out of INFERFLEET_ENGINE_ARGS"
            )
