"""The seam between the worker and the engine that generates.

Everything a worker knows of vLLM, or of any other engine, it knows through ``Engine``. An adapter
translates its vendor's exceptions into the ones here, and nothing else of the vendor gets out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from inferfleet.schemas import Endpoint, FailureCode, Usage
from inferfleet.schemas.journal import TokenChunk


class PromptReader(Protocol):
    """Hears what an engine answers, and as which model."""

    def __call__(self, *, model: str, tokens: int) -> None:
        """Take the model's name and the number of the prompt's tokens, of all prompts so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine is asked to do.

    ``priority`` is ours (9 most urgent). ``resume_token_ids`` are the tokens of choice 0 that an earlier
    attempt generated: the answer continues after them, and the completed response contains them.
    ``resume_chunks`` are the same as they were streamed: what was said already stays said in the same words.
    ``on_prompt`` is called with the name of the model and the number of the prompt's tokens, once
    they are known. ``tenant`` keeps prefix caches of tenants apart. ``trace_headers`` are W3C trace context.
    """

    id: str
    endpoint: Endpoint
    body: Mapping[str, Any]
    priority: int
    tenant: str = "default"
    resume_token_ids: tuple[int, ...] = ()
    resume_chunks: tuple[TokenChunk, ...] = ()
    on_prompt: PromptReader | None = None
    trace_headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The last thing a generation yields: the whole OpenAI response body and what it used."""

    response: dict[str, Any]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine's own counts at this moment. ``kv_cache_usage`` is a share from 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What the tokens of an answer belong to: a worker with another model begins the answer again.

    ``engine`` is its kind. ``weights``, ``tokenizer`` and ``adapter`` are fingerprints of their contents,
    ``prompt`` of what turns a request into a prompt (the chat template), ``options`` of settings that change
    what an answer says or how it is read. Not in it: what changes only speed or size, and the engine's
    version (decision 13).
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
        """All parts as 16 hexadecimal digits: what stands in records, journals, results and heartbeats.

        Every attempt asks for it, so it is worked out once.
        """
        parts = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()


class Engine(Protocol):
    """A continuous-batching generator.

    ``generate`` yields token chunks as they come and one ``Completion`` at the end. Closing the
    iterator early, or cancelling the task that reads it, aborts the generation in the engine and frees
    its slot. It raises ``GenerationError`` when this request cannot be answered and ``EngineDeadError``
    when the engine is gone for all of them.
    """

    @property
    def model(self) -> str:
        """The model's served name."""
        ...

    @property
    def identity(self) -> ModelIdentity | None:
        """Whose tokens these are; ``None`` before ``start`` has returned."""
        ...

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints this engine can answer."""
        ...

    async def start(self) -> None:
        """Load the model and run it once, so that the first job finds it warm."""
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer one request."""
        ...

    def resumable(self, generation: Generation) -> bool:
        """Whether an interrupted answer to this request may continue from its token ids."""
        ...

    def stats(self) -> EngineStats:
        """Say how loaded the engine is."""
        ...

    async def stop(self) -> None:
        """Abort what runs and release the device. Safe to call twice, and before ``start``."""
        ...


class GenerationError(Exception):
    """One request failed; the engine is well."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotContinuableError(GenerationError):
    """The answer cannot go on from the tokens that there are, but it can start again."""

    def __init__(self, why: str) -> None:
        super().__init__(FailureCode.INVALID_REQUEST, f"this answer cannot be continued: {why}")


class EngineDeadError(Exception):
    """The engine is gone. The process should hand its jobs over and exit."""
