"""The port between the worker and its engine.

A worker uses vLLM, or any other engine, only through ``Engine``. An adapter translates its vendor's
exceptions into the ones here, and hides everything else of the vendor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol, cast, runtime_checkable

from inferfleet.schemas import Endpoint, FailureCode, Usage
from inferfleet.schemas.journal import TokenChunk


class PromptReader(Protocol):
    """A callback for the head of an answer."""

    def __call__(self, *, model: str, tokens: int) -> None:
        """Take the model's name and the number of prompt tokens, of all prompts so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A request to an engine.

    ``priority`` is the job's (9 is the most urgent). ``resume_token_ids`` are the tokens of choice 0 that an
    earlier attempt generated: the answer continues after them, and the complete response contains them.
    ``resume_chunks`` are the same tokens as they were streamed, so that the response repeats the streamed
    text exactly. The engine calls ``on_prompt`` with the model's name and the number of prompt tokens, once
    it knows them. ``tenant`` keeps the prefix caches of tenants apart. ``adapter`` is the fingerprint of the
    adapter that has to answer, from ``AdapterEngine.identify``. ``trace_headers`` are W3C trace context.
    """

    id: str
    endpoint: Endpoint
    body: Mapping[str, Any]
    priority: int
    tenant: str = "default"
    adapter: str = ""
    resume_token_ids: tuple[int, ...] = ()
    resume_chunks: tuple[TokenChunk, ...] = ()
    on_prompt: PromptReader | None = None
    trace_headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The last item that a generation yields: the whole OpenAI response body, and its usage."""

    response: dict[str, Any]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine's current counts. ``kv_cache_usage`` is a share from 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The identity of a model. A worker whose model has another identity restarts an answer.

    ``engine`` is the kind of engine. ``weights``, ``tokenizer`` and ``adapter`` are fingerprints of their
    contents, ``prompt`` of what turns a request into a prompt (the chat template), and ``options`` of the
    settings that change what an answer says or how it is read. Settings that change only speed or size, and
    the engine's version, are not part of the identity (decision 13).
    """

    engine: str
    name: str
    revision: str = ""
    weights: str = ""
    tokenizer: str = ""
    prompt: str = ""
    dtype: str = ""
    quantization: str = ""
    adapter: str = ""
    options: str = ""

    @cached_property
    def short(self) -> str:
        """A hash of all parts, as 16 hexadecimal digits, for records, journals, results and heartbeats.

        Cached, because every attempt needs it.
        """
        parts = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()


class Engine(Protocol):
    """An engine with continuous batching.

    ``generate`` yields token chunks as soon as they are generated, and one ``Completion`` at the end. When
    the iterator is closed early, or the task that reads it is cancelled, the engine aborts the generation and
    frees its slot. It raises ``GenerationError`` if it cannot answer this request, and ``EngineDeadError``
    if the engine has died for all requests.
    """

    @property
    def model(self) -> str:
        """The model's served name."""
        ...

    @property
    def identity(self) -> ModelIdentity | None:
        """The identity of the loaded model; ``None`` before ``start`` has returned."""
        ...

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that this engine can answer."""
        ...

    async def start(self) -> None:
        """Load the model and run it once, so that it is warm for the first job."""
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer one request."""
        ...

    def resumable(self, generation: Generation) -> bool:
        """Return whether an interrupted answer to this request can be resumed from its token ids."""
        ...

    def stats(self) -> EngineStats:
        """Return the engine's current counts."""
        ...

    async def stop(self) -> None:
        """Abort all generations and release the device. Safe to call twice, and before ``start``."""
        ...


@runtime_checkable
class AdapterEngine(Protocol):
    """What an ``Engine`` also has if it answers with adapters (LoRA), which a request names as its model."""

    async def adapters(self) -> tuple[str, ...]:
        """Return the names of the adapters with which it can answer now."""
        ...

    async def identify(self, generation: Generation) -> ModelIdentity:
        """Return the identity of the model that the request names: the engine's own, or with an adapter.

        An answer keeps the adapter that ``Generation.adapter`` names, also when another one gets its name.

        Raises:
            GenerationError: There is no such model.

        """
        ...


def as_adapter_engine(engine: Engine) -> AdapterEngine | None:
    """Return the engine if it answers with adapters.

    The worker asks this for each job. On Python 3.11, ``isinstance`` with a protocol takes a twentieth of
    the CPU time of a job.
    """
    return cast("AdapterEngine", engine) if _has_adapters(type(engine)) else None


@cache
def _has_adapters(kind: type[Engine]) -> bool:
    return issubclass(kind, AdapterEngine)


class GenerationError(Exception):
    """One request failed; the engine still works."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotContinuableError(GenerationError):
    """The answer cannot be resumed from its tokens, but it can be restarted."""

    def __init__(self, why: str) -> None:
        super().__init__(FailureCode.INVALID_REQUEST, f"this answer cannot be continued: {why}")


class EngineDeadError(Exception):
    """The engine has died. The process should hand over its jobs and exit."""
