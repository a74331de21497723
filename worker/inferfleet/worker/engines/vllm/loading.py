"""Loads a model: vLLM's engine and, in front of it, the request handlers of ``vllm serve`` without HTTP.

The handlers turn an OpenAI body into a prompt and sampling parameters, and the generated tokens into an
OpenAI response. Because they are vLLM's own, a job gets the same answer as from ``vllm serve``.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.adapter_files import AdapterSources
from inferfleet.worker.engines.vllm.core_times import core_times
from inferfleet.worker.engines.vllm.identity import model_identity
from inferfleet.worker.engines.vllm.plugin import WORKER_PID_VARIABLE
from inferfleet.worker.ports import EngineStats, ModelIdentity
from inferfleet.worker.start_times import StartPart, StartTimes

if TYPE_CHECKING:
    from inferfleet.worker.engines.vllm.adapters import Adapters
    from inferfleet.worker.engines.vllm.arguments import VllmArguments
    from inferfleet.worker.engines.vllm.stats import SchedulerReports

T = TypeVar("T")

_HANDLERS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "openai_serving_chat",
    Endpoint.COMPLETIONS: "openai_serving_completion",
    Endpoint.EMBEDDINGS: "serving_embedding",
    Endpoint.RERANK: "serving_scores",
    Endpoint.SCORE: "serving_scores",
}
"""vLLM's name of the handler for each endpoint. A model that cannot do the task has no such handler."""

_KILL_TIMEOUT_S: Final = 5.0
"""How long a killed process may take to disappear: the GPU's driver has to release its memory."""

_GIVEN_UP: Final = "the worker was told to stop while the model was loading"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A loaded model: a handler for each endpoint of its ``task``, as vLLM calls it."""

    engine: Any
    identity: ModelIdentity
    processes: tuple[BaseProcess, ...]
    adapters: Adapters
    task: str
    handlers: Mapping[Endpoint, Any]
    chat_has_grammar: bool
    reports: SchedulerReports

    def stats(self) -> EngineStats:
        """Return the engine's current counts."""
        return self.reports.stats(self.engine.get_num_unfinished_requests())

    def release(self, *, timeout_s: float) -> None:
        """End the engine core, by force after the timeout, and wait until it has released the device."""
        self.engine.shutdown(timeout=timeout_s)
        for process in self.processes:
            process.join(_KILL_TIMEOUT_S)
        self.adapters.close()


class ModelLoader:
    """Loads a model once, in a thread, so that the process can answer health checks meanwhile."""

    def __init__(
        self,
        *,
        model: str,
        served_names: list[str],
        max_running: int,
        engine_args: Mapping[str, Any],
        adapters: AdapterSources,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._served_names = served_names
        self._max_running = max_running
        self._engine_args = engine_args
        self._given_up = False
        self._children_before: set[int | None] | None = None

    async def load(self, times: StartTimes) -> LoadedModel:
        """Start vLLM's engine core, which loads the model, and make the handlers. Note how long each took.

        Raises:
            ConfigurationError: vLLM has no such option, or refuses its value.
            RuntimeError: The engine core could not start, or ``give_up`` was called. vLLM has logged why.

        """
        self._children_before = {child.pid for child in multiprocessing.active_children()}
        try:
            return await self._load(times)
        finally:
            # ``give_up`` must not end processes that are started after the load.
            self._children_before = None

    async def _load(self, times: StartTimes) -> LoadedModel:
        engine, arguments, reports = await _in_thread(partial(self._start_engine, times))
        # It imports vLLM.
        from inferfleet.worker.engines.vllm.adapters import Adapters

        try:
            identity = await _in_thread(partial(_identity, self._served_names[0], engine, arguments))
            tasks = await engine.get_supported_tasks()
            state = await _handlers(engine, arguments, tasks)
        except BaseException:
            engine.shutdown(timeout=0)
            raise
        times.ended(StartPart.FRONT_END)
        return LoadedModel(
            engine=engine,
            identity=identity,
            processes=tuple(self._children()),
            adapters=Adapters(engine, state.openai_serving_models, self._adapters),
            task=engine.model_config.get_pooling_task(tasks) or "generate",
            handlers={
                endpoint: handler
                for endpoint, name in _HANDLERS.items()
                if (handler := getattr(state, name, None)) is not None
            },
            chat_has_grammar=_chat_has_grammar(state, arguments),
            reports=reports,
        )

    def give_up(self) -> None:
        """End a load that is running or has not begun. Does nothing to a load that has ended."""
        self._given_up = True
        for child in self._children():
            # An engine core ignores SIGTERM until it is ready.
            child.kill()

    def _children(self) -> list[BaseProcess]:
        """List the processes that were started since the load began."""
        if self._children_before is None:
            return []
        children: list[BaseProcess] = list(multiprocessing.active_children())
        return [child for child in children if child.pid not in self._children_before]

    def _start_engine(self, times: StartTimes) -> tuple[Any, VllmArguments, SchedulerReports]:
        # vLLM reads these at its import, here and in its own processes.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ[WORKER_PID_VARIABLE] = str(os.getpid())
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        from inferfleet.worker.engines.vllm.arguments import configuration_error, read_arguments
        from inferfleet.worker.engines.vllm.stats import SchedulerReports

        # Its lines go through our logging, which never blocks the event loop.
        log = logging.getLogger("vllm")
        log.handlers.clear()
        log.propagate = True
        arguments = read_arguments(
            model=self._model,
            served_names=self._served_names,
            max_running=self._max_running,
            engine_args=self._engine_args,
        )
        try:
            config = arguments.engine.create_engine_config()
        except Exception as error:
            raise configuration_error(error, model=self._model) from error
        if self._given_up:
            raise RuntimeError(_GIVEN_UP)
        reports = SchedulerReports()
        times.ended(StartPart.ENGINE_IMPORTS)
        with core_times() as inside:
            # In a list that is emptied below, so that no variable refers to the engine: vLLM keeps a
            # traceback with this frame, and an engine that still exists when Python exits fails noisily in
            # its __del__.
            started = [
                self._unless_given_up(
                    AsyncLLM(
                        config,
                        Executor.get_class(config),
                        log_stats=not arguments.engine.disable_log_stats,
                        log_requests=arguments.engine.enable_log_requests,
                        stat_loggers=[reports.logger],
                    )
                )
            ]
        times.ended(StartPart.ENGINE_PROCESSES, inside)
        return started.pop(), arguments, reports

    def _unless_given_up(self, engine: Any) -> Any:
        if self._given_up:
            engine.shutdown(timeout=0)
            raise RuntimeError(_GIVEN_UP)
        return engine


def _identity(name: str, engine: Any, arguments: VllmArguments) -> ModelIdentity:
    from vllm.renderers.chat_utils import load_chat_template

    template = load_chat_template(arguments.front_end.chat_template)
    return model_identity(name, engine, vars(arguments.namespace()), chat_template=template)


async def _handlers(engine: Any, arguments: VllmArguments, tasks: Any) -> Any:
    """Make all request handlers behind the routes of ``vllm serve``."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    state = SimpleNamespace()
    await init_app_state(engine, state, arguments.namespace(), tasks)
    return state


def _chat_has_grammar(state: Any, arguments: VllmArguments) -> bool:
    """Return whether a grammar of tool calls constrains chats even if the request has no constraint."""
    from vllm.utils.mistral import is_mistral_tool_parser

    chat = getattr(state, "openai_serving_chat", None)
    parser = getattr(getattr(chat, "parser_cls", None), "tool_parser_cls", None)
    if parser is None:
        return False
    return (
        arguments.front_end.tool_strict_level not in (None, "auto")
        or bool(parser.default_tool_strict_level)
        or is_mistral_tool_parser(parser)
    )


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a function that takes minutes, in a thread that does not keep the process from exiting."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()
    # Not passed through the future, which outlives the call.
    result: list[T] = []

    def run() -> None:
        try:
            result.append(function())
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    await asyncio.wrap_future(done)
    return result.pop()
