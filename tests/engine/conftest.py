"""Real vLLM on the CPU, with a model made on the spot. Needs vLLM; ``make test-engine`` brings its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.engine.quick_starts import SERVER, start_quickly
from tests.forked import IMPORTED

from inferfleet.local.tiny_model import build_tiny_model, build_tiny_reranker
from inferfleet.schemas import Endpoint, Usage
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.engines.vllm.plugin import WORKER_PID_VARIABLE
from inferfleet.worker.ports import Completion, Engine, Generation

# vLLM reads these when it is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# For a tiny model, threads that wait for each other take longer than one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*"]


def pytest_configure(config: pytest.Config) -> None:
    """Import vLLM before anything starts, except where pytest-xdist runs the tests in other processes."""
    shares_tests = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
    if find_spec("vllm") is None or shares_tests:
        return
    # vLLM and its libraries warn of each other; that is not ours to mend.
    with warnings.catch_warnings(action="ignore"):
        import vllm.v1.engine.async_llm
        import vllm.v1.executor.multiproc_executor  # noqa: F401
    # The engine sets it, but not in the process from which its core is forked.
    os.environ[WORKER_PID_VARIABLE] = str(os.getpid())
    IMPORTED.append(SERVER)
    multiprocessing.set_forkserver_preload(IMPORTED)
    start_quickly("forkserver")


MAX_MODEL_LEN = 1024
MAX_RUNNING = 64

ON_CPU = {
    "served_model_name": "tiny",
    "dtype": "float32",
    "max_model_len": MAX_MODEL_LEN,
    "block_size": 32,
    "enforce_eager": True,
    "seed": 0,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in Path(item.path).parts:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_sessionfinish() -> None:
    # What an engine leaves to the collector says that it was never closed.
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Everything a generation yielded."""

    chunks: list[TokenChunk]
    completion: Completion

    @property
    def response(self) -> dict[str, Any]:
        return self.completion.response

    @property
    def usage(self) -> Usage:
        return self.completion.usage

    @property
    def choice(self) -> dict[str, Any]:
        return self.response["choices"][0]

    @property
    def text(self) -> str:
        choice = self.choice
        return choice["message"]["content"] if "message" in choice else choice["text"]

    @property
    def streamed(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)


Ask = Callable[..., Awaitable[Answer]]
MakeEngine = Callable[..., AbstractAsyncContextManager[VllmEngine]]


@pytest.fixture(scope="session")
def a_generation() -> Callable[..., Generation]:
    """A request of the endpoint that the body looks like: with messages it is a chat."""

    def a_generation(body: dict[str, Any], **fields: Any) -> Generation:
        tellers = {
            "messages": Endpoint.CHAT,
            "input": Endpoint.EMBEDDINGS,
            "query": Endpoint.RERANK,
            "queries": Endpoint.SCORE,
        }
        endpoint = next((each for field, each in tellers.items() if field in body), Endpoint.COMPLETIONS)
        defaults: dict[str, Any] = {"id": str(uuid.uuid4()), "endpoint": endpoint, "body": body}
        return Generation(**{"priority": 4, **defaults, **fields})

    return a_generation


@pytest.fixture(scope="session")
def asking(a_generation: Callable[..., Generation]) -> Callable[[Engine], Ask]:
    """``await asking(engine)(body)`` reads an answer to its end."""

    def asking(engine: Engine) -> Ask:
        async def ask(body: dict[str, Any], **fields: Any) -> Answer:
            chunks: list[TokenChunk] = []
            completion: Completion | None = None
            async with aclosing(engine.generate(a_generation(body, **fields))) as events:
                async for event in events:
                    assert completion is None, "something came after the completion"
                    match event:
                        case TokenChunk():
                            chunks.append(event)
                        case Completion():
                            completion = event
            assert completion is not None
            return Answer(chunks=chunks, completion=completion)

        return ask

    return asking


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_reranker(tmp_path_factory.mktemp("tiny-reranker")))


@pytest.fixture(scope="session")
def make_engine(tiny_model: str) -> MakeEngine:
    """``async with make_engine(max_running=2, runner="pooling") as engine``: the tiny model, loaded."""

    @asynccontextmanager
    async def make_engine(
        *, model: str = tiny_model, max_running: int = MAX_RUNNING, **engine_args: Any
    ) -> AsyncIterator[VllmEngine]:
        engine = VllmEngine(model=model, max_running=max_running, engine_args=ON_CPU | engine_args)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()

    return make_engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(make_engine: MakeEngine) -> AsyncIterator[VllmEngine]:
    """The engine that most tests share: 64 slots, chat and completions, hermes tool calls."""
    async with make_engine(tool_call_parser="hermes") as engine:
        yield engine


@pytest.fixture(scope="session")
def ask(engine: VllmEngine, asking: Callable[[Engine], Ask]) -> Ask:
    """``await ask(body)`` reads an answer of the shared engine to its end."""
    return asking(engine)
