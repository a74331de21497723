"""The blocking twin of ``Index``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.retrieval.index import EMBEDDING_TIMEOUT_S, Index
from inferfleet.schemas.job import Priority
from inferfleet.schemas.retrieval import Added, Document, Hit, IndexRecord


class SyncIndex:
    """A blocking handle on one index, with the methods of ``Index``, and its errors."""

    def __init__(self, index: Index, call: BlockingCall) -> None:
        self.name = index.name
        self.tenant = index.tenant
        self._index = index
        self._call = call

    def create(self, *, pool: str, chunk_chars: int = 1000, overlap_chars: int = 100) -> None:
        """Create the index; see ``Index.create``."""
        self._call(
            partial(self._index.create, pool=pool, chunk_chars=chunk_chars, overlap_chars=overlap_chars)
        )

    def get(self) -> IndexRecord:
        """Read what the index is; see ``Index.get``."""
        return self._call(self._index.get)

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        tell: Callable[[Added], None] | None = None,
    ) -> Added:
        """Add documents; see ``Index.add``. ``tell`` is called in the client's thread."""
        return self._call(partial(self._index.add, documents, tell=tell))

    def search(
        self,
        text: str,
        *,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        min_score: float = -1.0,
        timeout_s: float = EMBEDDING_TIMEOUT_S,
        priority: int = Priority.HIGH,
    ) -> list[Hit]:
        """Find the chunks nearest to a question; see ``Index.search``."""
        search = partial(self._index.search, text, k=k, where=where, min_score=min_score)
        return self._call(partial(search, timeout_s=timeout_s, priority=priority))

    def remove(self, document: str) -> bool:
        """Remove a document; see ``Index.remove``."""
        return self._call(partial(self._index.remove, document))

    def delete(self) -> bool:
        """Delete the index; see ``Index.delete``."""
        return self._call(self._index.delete)
