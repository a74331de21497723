"""Puts documents into an index: makes chunks, has those embedded that are new, stores them.

Chunks are embedded in batches, by their order. So whoever adds the same documents again, after having died,
makes the same batches, and finds their jobs by their idempotency keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from inferfleet.producer.retrieval.chunking import chunks_of
from inferfleet.producer.retrieval.embedding import Embedder
from inferfleet.producer.window import Window
from inferfleet.schemas.errors import RetrievalError
from inferfleet.schemas.retrieval import Added, Document, IndexRecord, check_document
from inferfleet.wire.redis.indexes import BegunDocument, IndexStore, digest_of
from inferfleet.wire.tasks import TaskGroup

BATCH_CHUNKS: Final = 32
BATCH_CHARS: Final = 64_000
IN_FLIGHT: Final = 16
"""How many batches are embedded at a time."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    document: BegunDocument
    id: str
    text: str

    @property
    def stored(self) -> bool:
        return self.id in self.document.stored


@dataclass(slots=True)
class Adding:
    """One call that adds documents to an index."""

    store: IndexStore
    record: IndexRecord
    embedder: Embedder
    tell: Callable[[Added], None] | None
    added: Added = field(default_factory=Added)
    _stale: list[tuple[BegunDocument, frozenset[str]]] = field(
        default_factory=list[tuple[BegunDocument, frozenset[str]]]
    )

    async def run(self, documents: Iterable[Document | Mapping[str, Any]]) -> Added:
        """Add all documents. Afterwards, remove the chunks of what they replace."""
        window = Window(IN_FLIGHT)
        places = asyncio.Semaphore(2 * IN_FLIGHT)
        try:
            async with TaskGroup() as group, aclosing(self._batches(documents)) as batches:
                async for batch in batches:
                    # Other tasks have their turn, however many chunks are stored already.
                    await asyncio.sleep(0)
                    if new := [chunk for chunk in batch if not chunk.stored]:
                        await places.acquire()
                        task = group.create_task(self._embed(new, window))
                        task.add_done_callback(lambda _: places.release())
        except ExceptionGroup as errors:
            # One error ends the others, and is the one to tell.
            raise _first(errors) from None
        finally:
            window.close()
        for document, chunks in self._stale:
            await self.store.drop(document, chunks)
            self._count(removed=len(chunks))
        return self.added

    async def _embed(self, chunks: list[_Chunk], window: Window) -> None:
        texts = [chunk.text for chunk in chunks]
        key = digest_of(self.record.generation, *texts)
        embedding, vectors = await self.embedder.embed(
            texts, key=f"index:{key}", wanted=self.record.embedding, window=window
        )
        await asyncio.gather(
            *(
                self.store.store(chunk.document, chunk.id, chunk.text, vector, embedding=embedding)
                for chunk, vector in zip(chunks, vectors, strict=True)
            )
        )
        self._count(embedded=len(chunks))

    async def _batches(
        self, documents: Iterable[Document | Mapping[str, Any]]
    ) -> AsyncGenerator[list[_Chunk]]:
        batch: list[_Chunk] = []
        chars = 0
        async with aclosing(self._chunks(documents)) as chunks:
            async for chunk in chunks:
                if len(batch) == BATCH_CHUNKS or chars + len(chunk.text) > BATCH_CHARS:
                    yield batch
                    batch, chars = [], 0
                batch.append(chunk)
                chars += len(chunk.text)
        if batch:
            yield batch

    async def _chunks(self, documents: Iterable[Document | Mapping[str, Any]]) -> AsyncGenerator[_Chunk]:
        """Yield the chunks of all documents, in order; a chunk that a document repeats only once."""
        seen: set[str] = set()
        options = self.record.options
        for given in documents:
            document = check_document(given)
            if document.id in seen:
                raise RetrievalError(f"document {document.id!r} is given twice: leave one out")
            seen.add(document.id)
            begun = await self.store.begin(document, generation=self.record.generation)
            ids: set[str] = set()
            for text in chunks_of(document.text, size=options.chunk_chars, overlap=options.overlap_chars):
                if (chunk := digest_of(document.id, text)) not in ids:
                    ids.add(chunk)
                    yield _Chunk(begun, chunk, text)
            if stale := begun.stored - ids:
                self._stale.append((begun, stale))
            self._count(documents=1, chunks=len(ids))

    def _count(self, **more: int) -> None:
        self.added = self.added.model_copy(
            update={name: getattr(self.added, name) + number for name, number in more.items()}
        )
        if self.tell:
            self.tell(self.added)


def _first(errors: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
