"""Calls the scripts about one index of documents.

``script`` documents what they have in common; each script's text in ``lua`` documents what it does and
replies.
"""

from __future__ import annotations

from inferfleet.wire.redis.script import SCRIPTS, Command

_CREATE = SCRIPTS["index_create"]
_DELETE = SCRIPTS["index_delete"]
_BEGIN = SCRIPTS["index_begin"]
_STORE = SCRIPTS["index_store"]
_DROP = SCRIPTS["index_drop"]
_REMOVE = SCRIPTS["index_remove"]


def index_create(index_key: str, /, *, generation: str, created_ms: int, options: str) -> Command:
    """Create an index."""
    return ("EVALSHA", _CREATE.sha, 1, index_key, generation, created_ms, options)


def index_delete(index_key: str, deleted_key: str, /, *, generation: str) -> Command:
    """Delete an index."""
    return ("EVALSHA", _DELETE.sha, 2, index_key, deleted_key, generation)


def index_begin(
    index_key: str,
    vectors_key: str,
    documents_key: str,
    document_key: str,
    /,
    *,
    generation: str,
    digest: str,
    id: str,  # noqa: A002 - as the script has it
    version: str,
    metadata: bytes,
    attributes: bytes,
) -> Command:
    """Begin to store a version of a document."""
    return (
        *("EVALSHA", _BEGIN.sha, 4, index_key, vectors_key, documents_key, document_key),
        *(generation, digest, id, version, metadata, attributes),
    )


def index_store(
    index_key: str,
    vectors_key: str,
    documents_key: str,
    document_key: str,
    /,
    *,
    generation: str,
    version: str,
    digest: str,
    chunk: str,
    text: str,
    vector: bytes,
    attributes: bytes,
    model: str,
    identity: str,
    dimensions: int,
) -> Command:
    """Store a chunk of a document."""
    return (
        *("EVALSHA", _STORE.sha, 4, index_key, vectors_key, documents_key, document_key),
        *(generation, version, digest, chunk, text, vector, attributes, model, identity, dimensions),
    )


def index_drop(vectors_key: str, document_key: str, /, *, version: str, digest: str, chunk: str) -> Command:
    """Remove a chunk of a document."""
    return ("EVALSHA", _DROP.sha, 2, vectors_key, document_key, version, digest, chunk)


def index_remove(documents_key: str, document_key: str, /, *, version: str, digest: str) -> Command:
    """Remove a document without chunks."""
    return ("EVALSHA", _REMOVE.sha, 2, documents_key, document_key, version, digest)
