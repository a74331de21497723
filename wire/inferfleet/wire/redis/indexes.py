"""Indexes of documents: the texts of their chunks in hashes, and their vectors in a vector set of Redis 8.

An index belongs to one tenant and has keys of its own, so no search can find what another tenant has. So has
each generation of it: whoever removes what a deleted index has stored does not touch that of its successor.
The keys of one index share a hash tag.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import orjson

from inferfleet.schemas.conditions import Condition
from inferfleet.schemas.errors import (
    ConfigurationError,
    RetrievalError,
    ServiceRefusedError,
    UnknownIndexError,
)
from inferfleet.schemas.names import (
    index_deleted_key,
    index_document_key,
    index_documents_key,
    index_key,
    index_vectors_key,
    tenant_indexes_key,
)
from inferfleet.schemas.retrieval import Document, Embedding, Hit, IndexOptions, IndexRecord
from inferfleet.wire.redis import index_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.vector_filters import attributes, expression

EFFORT: Final = 200
"""How many near vectors a search compares, if it asks for no more hits than that. For recall."""

SEARCH_TIMEOUT_S: Final = 30.0
"""How long a search may take before its connection counts as broken."""

FILTERED_EFFORT: Final = 10_000
"""How many chunks a search with conditions looks at, at most, until it has all its hits."""

_AT_ONCE: Final = 500

_DIGEST_BYTES: Final = 16


def digest_of(*parts: str) -> str:
    """Return 32 hexadecimal digits that stand for some texts."""
    return blake2b(orjson.dumps(parts), digest_size=_DIGEST_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class BegunDocument:
    """A document whose chunks are being stored, and the ids of those that are stored already."""

    id: str
    generation: str
    digest: str
    version: str
    attributes: bytes
    stored: frozenset[str]


class IndexStore:
    """Reads and writes one index of a tenant.

    ``searching`` is a pipeline for searches alone, with ``SEARCH_TIMEOUT_S``, since a search with conditions
    may take seconds, and whatever is behind it on its connection waits.
    """

    def __init__(
        self, pipeline: CommandPipeline, *, name: str, tenant: str, searching: CommandPipeline | None = None
    ) -> None:
        self._pipeline = pipeline
        self._searching = pipeline if searching is None else searching
        self.name = name
        self.tenant = tenant
        self._key = index_key(tenant, name)
        self._deleted_key = index_deleted_key(self._key)

    async def create(self, options: IndexOptions) -> None:
        """Create the index, unless it exists.

        Raises:
            RetrievalError: It exists, with other options.
            ConfigurationError: This Redis has no vector sets.

        """
        generation = os.urandom(8).hex()
        await self._execute("VCARD", index_vectors_key(self._key, generation))
        present: bytes = await self._execute(
            *index_scripts.index_create(
                self._key,
                generation=generation,
                created_ms=self._pipeline.clock.now_ms(),
                options=options.model_dump_json(),
            )
        )
        await self._execute("ZADD", tenant_indexes_key(self.tenant), 0, self.name)
        if IndexOptions.model_validate_json(present) != options:
            raise RetrievalError(
                f"index {self.name!r} exists with other options ({present.decode()}): delete it first, or "
                "choose another name"
            )

    async def read(self) -> IndexRecord:
        """Read what is known of the index.

        Raises:
            UnknownIndexError: There is none.

        """
        if (record := await self.find()) is None:
            raise UnknownIndexError(self.name, tenant=self.tenant)
        return record

    async def find(self) -> IndexRecord | None:
        """Read what is known of the index; ``None`` if there is none."""
        fields: dict[bytes, bytes] = await self._execute("HGETALL", self._key)
        if b"options" not in fields:
            return None
        generation = fields[b"generation"].decode()
        embedding = None
        if b"model" in fields:
            embedding = Embedding(
                model=fields[b"model"].decode(),
                identity=fields[b"identity"].decode(),
                dimensions=int(fields[b"dimensions"]),
            )
        return IndexRecord(
            name=self.name,
            tenant=self.tenant,
            generation=generation,
            options=IndexOptions.model_validate_json(fields[b"options"]),
            embedding=embedding,
            created_at=datetime.fromtimestamp(int(fields[b"created_ms"]) / 1000, UTC),
            documents=await self._execute("ZCOUNT", index_documents_key(self._key, generation), 1, 1),
            chunks=await self._execute("VCARD", index_vectors_key(self._key, generation)),
        )

    async def begin(self, document: Document, *, generation: str) -> BegunDocument:
        """Begin to store a version of a document. What earlier ones still store is refused.

        Raises:
            UnknownIndexError: The index was deleted.

        """
        digest, version = digest_of(document.id), os.urandom(8).hex()
        stored: list[bytes] | None = await self._execute(
            *index_scripts.index_begin(
                self._key,
                index_vectors_key(self._key, generation),
                index_documents_key(self._key, generation),
                index_document_key(self._key, generation, digest),
                generation=generation,
                digest=digest,
                id=document.id,
                version=version,
                metadata=orjson.dumps(document.metadata),
                attributes=attributes(document.metadata),
            )
        )
        if stored is None:
            raise UnknownIndexError(self.name, tenant=self.tenant)
        known = frozenset(chunk.decode() for chunk in stored)
        return BegunDocument(document.id, generation, digest, version, attributes(document.metadata), known)

    async def store(
        self, document: BegunDocument, chunk: str, text: str, vector: bytes, *, embedding: Embedding
    ) -> None:
        """Store a chunk.

        Raises:
            RetrievalError: Another model has embedded the index, or another version of the document has
                begun.

        """
        answer: list[bytes] = await self._execute(
            *index_scripts.index_store(
                self._key,
                index_vectors_key(self._key, document.generation),
                index_documents_key(self._key, document.generation),
                index_document_key(self._key, document.generation, document.digest),
                generation=document.generation,
                version=document.version,
                digest=document.digest,
                chunk=chunk,
                text=text,
                vector=vector,
                attributes=document.attributes,
                model=embedding.model,
                identity=embedding.identity,
                dimensions=embedding.dimensions,
            )
        )
        match answer:
            case [b"stored"]:
                pass
            case [b"other", model, identity, dimensions]:
                other = Embedding(
                    model=model.decode(), identity=identity.decode(), dimensions=int(dimensions)
                )
                raise another_model(self.name, other, embedding)
            case _:
                raise RetrievalError(
                    f"document {document.id!r} of index {self.name!r} was added again or deleted meanwhile: "
                    "add it again if it should be there"
                )

    async def drop(self, document: BegunDocument, chunks: Iterable[str]) -> None:
        """Remove chunks, unless another version of the document has begun."""
        vectors = index_vectors_key(self._key, document.generation)
        key = index_document_key(self._key, document.generation, document.digest)
        for chunk in chunks:
            await self._execute(
                *index_scripts.index_drop(
                    vectors, key, version=document.version, digest=document.digest, chunk=chunk
                )
            )

    async def remove(self, document_id: str, *, generation: str) -> bool:
        """Remove a document. Return whether it was there."""
        key = index_document_key(self._key, generation, digest_of(document_id))
        if not await self._execute("EXISTS", key):
            return False
        # Whoever stores chunks of it meanwhile is refused.
        begun = await self.begin(Document(id=document_id, text="-"), generation=generation)
        await self.drop(begun, begun.stored)
        await self.forget(begun)
        return bool(begun.stored)

    async def forget(self, document: BegunDocument) -> None:
        """Remove a document without chunks, unless another version of it has begun."""
        await self._execute(
            *index_scripts.index_remove(
                index_documents_key(self._key, document.generation),
                index_document_key(self._key, document.generation, document.digest),
                version=document.version,
                digest=document.digest,
            )
        )

    async def delete(self, generation: str | None) -> bool:
        """Delete this generation of the index, and what is left of earlier ones. Return whether any was."""
        if generation is not None:
            await self._execute(
                *index_scripts.index_delete(self._key, self._deleted_key, generation=generation)
            )
        removed = await self._remove_deleted()
        await self._execute("ZREM", tenant_indexes_key(self.tenant), self.name)
        if await self._execute("EXISTS", self._key):
            # It was created again meanwhile.
            await self._execute("ZADD", tenant_indexes_key(self.tenant), 0, self.name)
        return generation is not None or removed

    async def search(
        self, vector: bytes, *, generation: str, k: int, where: Mapping[str, Condition]
    ) -> list[Hit]:
        """Find the ``k`` chunks nearest to a vector, the nearest first."""
        filters = ("FILTER", expression(where), "FILTER-EF", FILTERED_EFFORT) if where else ()
        found: dict[bytes, float] = await self._searching.execute(
            *("VSIM", index_vectors_key(self._key, generation), "FP32", vector, "WITHSCORES"),
            *("COUNT", k, "EF", max(k, EFFORT), *filters),
        )
        hits = await asyncio.gather(*(self._hit(generation, name, score) for name, score in found.items()))
        return [hit for hit in hits if hit is not None]

    async def _hit(self, generation: str, name: bytes, score: float) -> Hit | None:
        """Read a chunk; ``None`` if it is just being stored or removed."""
        digest, chunk = name[: 2 * _DIGEST_BYTES].decode(), name[2 * _DIGEST_BYTES :].decode()
        document, text, metadata = await self._execute(
            "HMGET", index_document_key(self._key, generation, digest), "id", chunk, "metadata"
        )
        if document is None or text is None:
            return None
        return Hit(
            id=chunk,
            document=document.decode(),
            text=text.decode(),
            # Redis has the cosine on a scale from 0 to 1.
            score=2 * float(score) - 1,
            metadata=orjson.loads(metadata),
        )

    async def _remove_deleted(self) -> bool:
        """Remove what deleted generations have stored. Return whether there was one."""
        deleted: list[bytes] = await self._execute("ZRANGE", self._deleted_key, 0, -1)
        for name in deleted:
            generation = name.decode()
            documents = index_documents_key(self._key, generation)
            while digests := await self._execute("ZRANGE", documents, 0, _AT_ONCE - 1):
                for digest in digests:
                    await self._execute("DEL", index_document_key(self._key, generation, digest.decode()))
                await self._execute("ZREM", documents, *digests)
            await self._execute("DEL", index_vectors_key(self._key, generation))
            await self._execute("ZREM", self._deleted_key, name)
        return bool(deleted)

    async def _execute(self, *command: Any) -> Any:
        try:
            return await self._pipeline.execute(*command)
        except ServiceRefusedError as error:
            if any(words in str(error).lower() for words in ("unknown command", "unknown redis command")):
                raise await _too_old(self._pipeline) from error
            raise


async def list_indexes(pipeline: CommandPipeline, tenant: str) -> list[IndexRecord]:
    """Read a tenant's indexes, by name."""
    names: list[bytes] = await pipeline.execute("ZRANGE", tenant_indexes_key(tenant), 0, -1)
    stores = [IndexStore(pipeline, name=name.decode(), tenant=tenant) for name in names]
    return [record for store in stores if (record := await store.find()) is not None]


def another_model(name: str, theirs: Embedding, ours: Embedding) -> RetrievalError:
    """Make the error for vectors that cannot be compared with those of an index."""
    return RetrievalError(
        f"index {name!r} was embedded by {theirs}, and its pool answers with {ours}: let the pool serve the "
        "model of the index, or create another index and add the documents to it"
    )


async def _too_old(pipeline: CommandPipeline) -> ConfigurationError:
    try:
        info: Mapping[str, Any] = await (await pipeline.servers())[0].execute("INFO")
        version = f"this is {'Valkey' if 'valkey_version' in info else 'Redis'} {info['redis_version']}"
    except (ServiceRefusedError, KeyError):
        version = "this server says no version"
    return ConfigurationError(
        f"an index of documents needs the vector sets of Redis 8, and {version}: let INFERFLEET_REDIS_URL "
        "name a Redis 8 or later"
    )
