"""A caller's handle on one index of documents: create it, add documents, search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from inferfleet.producer.retrieval.adding import Adding
from inferfleet.producer.retrieval.counts import SearchCounts
from inferfleet.producer.retrieval.embedding import Embedder, Jobs
from inferfleet.producer.tracing import searching
from inferfleet.schemas.errors import RetrievalError
from inferfleet.schemas.job import Priority
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.passages import MAX_QUESTION_CHARS, IndexName
from inferfleet.schemas.retrieval import (
    MAX_HITS,
    Added,
    Document,
    Hit,
    IndexRecord,
    check_options,
    check_where,
)
from inferfleet.wire.redis.indexes import IndexStore, another_model
from inferfleet.wire.redis.pipeline import CommandPipeline

EMBEDDING_TIMEOUT_S: Final = 30.0

_NAME: Final[TypeAdapter[str]] = TypeAdapter(IndexName)


class Index:
    """A handle on one index of one tenant. What other tenants have in theirs is never found in it."""

    def __init__(
        self,
        name: str,
        *,
        tenant: str,
        jobs: Jobs,
        pipeline: CommandPipeline,
        searching: CommandPipeline,
        counts: SearchCounts,
    ) -> None:
        try:
            self.name = _NAME.validate_python(name)
        except ValidationError:
            raise RetrievalError(
                f"index {name!r}: a name has 1 to 63 lower-case letters, digits, dots, underscores and "
                "dashes, with a letter or digit at both ends"
            ) from None
        self.tenant = tenant
        self._jobs = jobs
        self._pipeline = pipeline
        self._counts = counts
        self._store = IndexStore(pipeline, name=name, tenant=tenant, searching=searching)

    async def create(self, *, pool: str, chunk_chars: int = 1000, overlap_chars: int = 100) -> None:
        """Create the index, whose documents the workers of ``pool`` embed. No error if it exists like this.

        Raises:
            RetrievalError: An option is invalid, or the index exists with other options.
            ConfigurationError: This Redis has no vector sets.

        """
        options = {"pool": pool, "chunk_chars": chunk_chars, "overlap_chars": overlap_chars}
        await self._store.create(check_options(options))

    async def get(self) -> IndexRecord:
        """Read what the index is, and how much is in it.

        Raises:
            UnknownIndexError: There is no such index.

        """
        return await self._store.read()

    async def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        tell: Callable[[Added], None] | None = None,
    ) -> Added:
        """Add documents, and return once all can be found. One with the id of an earlier one replaces it.

        Only chunks that are not stored are embedded. If this is cancelled, fails or dies, call it again with
        the same documents: it continues. ``tell`` is called with what was done so far.

        Raises:
            UnknownIndexError: There is no such index.
            RetrievalError: A document is invalid, or another model has embedded the index.
            JobFailedError: The pool cannot embed a chunk.
            InferfleetError: What ``Fleet.submit`` and ``Fleet.wait`` raise.

        """
        record = await self._store.read()
        adding = Adding(self._store, record, self._embedder(record), tell)
        return await adding.run(documents)

    async def search(
        self,
        text: str,
        *,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        min_score: float = -1.0,
        timeout_s: float = EMBEDDING_TIMEOUT_S,
        priority: int = Priority.HIGH,
    ) -> list[Hit]:
        """Find the ``k`` chunks that are nearest to a question, the nearest first; fewer if there are fewer.

        ``where`` are conditions on the metadata, all of which hold: a value, a list of values of which one
        holds, or bounds of a number like ``{"gte": 2020, "lt": 2026}``. A list in the metadata has each of
        its values. ``priority`` is that of the job that embeds the question.

        Raises:
            UnknownIndexError: There is no such index.
            EmbeddingTimeoutError: The pool has not embedded the question within ``timeout_s``.
            RetrievalError: An argument is invalid, or the model of the pool is not that of the index.
            JobFailedError: The pool cannot embed the question.
            InferfleetError: What ``Fleet.submit`` and ``Fleet.wait`` raise.

        """
        conditions = check_where(where or {})
        if not 1 <= k <= MAX_HITS:
            raise RetrievalError(f"k: {k!r} is not a number from 1 to {MAX_HITS:,}")
        if not text.strip():
            raise RetrievalError("text: has no words; give a question")
        if len(text) > MAX_QUESTION_CHARS:
            raise RetrievalError(
                f"text: has {len(text):,} characters; at most {MAX_QUESTION_CHARS:,} are allowed"
            )
        if not 0 < timeout_s <= LONGEST_S:
            raise RetrievalError(f"timeout_s: {timeout_s:g} is not a number of seconds above 0")
        if not -1 <= min_score <= 1:
            raise RetrievalError(f"min_score: {min_score:g} is not a score from -1 to 1")
        record = await self._store.read()
        if record.embedding is None:
            return []
        with self._counts.counting(), searching(self.name, tenant=self.tenant) as found:
            embedding, vector = await self._embedder(record).embed_question(
                text, priority=priority, timeout_s=timeout_s
            )
            if embedding != record.embedding:
                raise another_model(self.name, record.embedding, embedding)
            hits = await self._store.search(vector, generation=record.generation, k=k, where=conditions)
            hits = [hit for hit in hits if hit.score >= min_score]
            found(len(hits))
        self._counts.hits += len(hits)
        return hits

    async def remove(self, document: str) -> bool:
        """Remove the document with this id. Return whether it was there.

        Raises:
            UnknownIndexError: There is no such index.

        """
        record = await self._store.read()
        return await self._store.remove(document, generation=record.generation)

    async def delete(self) -> bool:
        """Delete the index with all its documents. Return whether it was there."""
        record = await self._store.find()
        return await self._store.delete(None if record is None else record.generation)

    def _embedder(self, record: IndexRecord) -> Embedder:
        return Embedder(self._jobs, pool=record.options.pool, tenant=self.tenant, clock=self._pipeline.clock)
