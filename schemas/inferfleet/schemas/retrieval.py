"""Indexes of documents: what is put into one, what it is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from inferfleet.schemas.conditions import Bounds, Condition, Metadata, Where
from inferfleet.schemas.errors import RetrievalError
from inferfleet.schemas.job import DEFAULT_TENANT, PoolName
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.passages import IndexName
from inferfleet.schemas.problems import describe, disagreement
from inferfleet.schemas.wire_model import GivenModel, WireModel

MAX_TEXT_CHARS: Final = 32 * 1024 * 1024
MAX_HITS: Final = 1000
CHUNK_CHARS: Final = 1000
"""How many characters a chunk has at most, if nobody says."""


class Document(GivenModel):
    """A text to put into an index. A document with the ``id`` of an earlier one replaces it.

    A value of ``metadata`` is a string, a number, a boolean, or a list of strings.
    """

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=512)]
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
    metadata: Metadata = Field(default_factory=dict)


class IndexOptions(GivenModel):
    """How an index makes chunks of documents, and which pool embeds them.

    A chunk has at most ``chunk_chars`` characters, of which it shares about ``overlap_chars`` with the chunk
    before it.
    """

    pool: PoolName
    chunk_chars: Annotated[int, Field(ge=50, le=8000), NUMBER] = CHUNK_CHARS
    overlap_chars: Annotated[int, Field(ge=0, le=4000), NUMBER] = 100

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> IndexOptions:
        if 2 * self.overlap_chars > self.chunk_chars:
            raise disagreement(
                "overlap_chars",
                "{overlap} is more than half of chunk_chars, which is {size}",
                overlap=self.overlap_chars,
                size=self.chunk_chars,
            )
        return self


class Embedding(WireModel):
    """The model that has embedded an index, and the length of its vectors.

    ``identity`` is the short hash of the model's identity: one with other weights embeds differently.
    """

    model: str
    identity: str
    dimensions: Annotated[int, Field(ge=1)]

    def __str__(self) -> str:
        return f"{self.model!r} (identity {self.identity or 'unknown'}, {self.dimensions} dimensions)"


class IndexRecord(WireModel):
    """An index as it is now. It has no ``embedding`` until its first chunk is stored.

    An index that was deleted and created again has another ``generation``.
    """

    name: IndexName
    tenant: str = DEFAULT_TENANT
    generation: str
    options: IndexOptions
    embedding: Embedding | None = None
    created_at: AwareDatetime
    documents: int
    chunks: int


class Hit(WireModel):
    """A chunk that was found. ``score`` is the cosine of the angle to the question, -1 to 1."""

    id: str
    document: str
    text: str
    score: float
    metadata: Metadata = Field(default_factory=dict)


class Added(WireModel):
    """What an ``add`` has done: of all ``chunks``, it ``embedded`` those that were new."""

    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    removed: int = 0


_WHERE: Final[TypeAdapter[dict[str, Condition]]] = TypeAdapter(
    Where, config=ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)
)


def check_where(where: Mapping[str, Any]) -> dict[str, Condition]:
    """Read the conditions of a search.

    Raises:
        RetrievalError: They are none; the message names the place.

    """
    try:
        return _WHERE.validate_python(dict(where))
    except ValidationError as error:
        raise RetrievalError(describe(error, root="where", data=where, known=Bounds.model_fields)) from None


def check_document(document: Document | Mapping[str, Any]) -> Document:
    """Read a document.

    Raises:
        RetrievalError: It is none; the message names its id and what is wrong.

    """
    if isinstance(document, Document):
        return document
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        name = f"document {str(document['id'])[:64]!r}" if "id" in document else "a document"
        problem = describe(error, data=document, whole="the value", known=Document.model_fields)
        raise RetrievalError(f"{name}: {problem}") from None


def check_options(options: Mapping[str, Any]) -> IndexOptions:
    """Read the options of an index.

    Raises:
        RetrievalError: They are none; the message names each that is wrong.

    """
    try:
        return IndexOptions.model_validate(options)
    except ValidationError as error:
        raise RetrievalError(describe(error, root="the index")) from None
