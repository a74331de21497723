"""``inferfleet index``: indexes of documents, whose chunks the fleet embeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import orjson
import typer

from inferfleet.cli.index_files import documents_in
from inferfleet.cli.options import JsonFlag, live_pools, not_empty, producer_settings
from inferfleet.cli.terminal import err, line, out, shown_id
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.retrieval.index import EMBEDDING_TIMEOUT_S
from inferfleet.schemas.errors import UnknownIndexError
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.retrieval import Added, IndexRecord

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="INDEX", help="The index's name.", callback=not_empty)]
TenantOption = Annotated[
    str, typer.Option("--tenant", help="Tenant that owns the index.", callback=not_empty)
]


@app.callback()
def index() -> None:
    """Indexes of documents: their chunks, embedded by the fleet, in vector sets of Redis 8."""


@app.command()
def create(
    name: NameArgument,
    *,
    pool: Annotated[
        str, typer.Option(help="Pool whose workers embed.", autocompletion=live_pools, callback=not_empty)
    ],
    chunk_chars: Annotated[int, typer.Option(help="Maximum number of characters in a chunk.")] = 1000,
    overlap_chars: Annotated[
        int, typer.Option(help="Number of characters that a chunk shares with the one before it.")
    ] = 100,
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonFlag = False,
) -> None:
    """Create an index. No error if it exists with these options."""

    async def make(fleet: Fleet) -> IndexRecord:
        made = fleet.index(name, tenant=tenant)
        await made.create(pool=pool, chunk_chars=chunk_chars, overlap_chars=overlap_chars)
        return await made.get()

    _print_records([_run(make)], as_json=as_json)


@app.command()
def add(
    name: NameArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Texts, each a document with its path as id; *.jsonl has a document a line, as JSON with "
            "id, text and metadata.",
        ),
    ],
    *,
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonFlag = False,
) -> None:
    """Add documents. Embeds only new chunks, so it continues what was interrupted. Replaces by id."""
    told = False

    def tell(added: Added) -> None:
        nonlocal told
        told = True
        chunks = count_of(added.chunks, "chunk")
        err(f"\r{count_of(added.documents, 'document')}, {chunks}, {added.embedded:,} embedded")

    try:
        added = _run(
            lambda fleet: fleet.index(name, tenant=tenant).add(
                documents_in(files), tell=None if as_json else tell
            )
        )
    finally:
        if told:
            err("\n")
    if as_json:
        _print_json(added.model_dump())
    else:
        documents, chunks = count_of(added.documents, "document"), count_of(added.chunks, "chunk")
        out(f"{documents} with {chunks} {'is' if added.documents == 1 else 'are'} in {shown_id(name)}\n")


@app.command()
def search(
    name: NameArgument,
    text: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.", callback=not_empty)],
    *,
    k: Annotated[int, typer.Option("-k", help="Number of chunks to return.")] = 4,
    where: Annotated[
        str | None, typer.Option(help='Conditions on the metadata, as JSON: {"year": {"gte": 2020}}.')
    ] = None,
    min_score: Annotated[float, typer.Option(help="Minimum score of a chunk.")] = -1.0,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            "--timeout-s",
            metavar="SECONDS",
            help="How long the pool may take to embed the question.",
        ),
    ] = EMBEDDING_TIMEOUT_S,
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonFlag = False,
) -> None:
    """Find the chunks nearest to a question."""
    conditions = _conditions(where)
    hits = _run(
        lambda fleet: fleet.index(name, tenant=tenant).search(
            text, k=k, where=conditions, min_score=min_score, timeout_s=timeout_s
        )
    )
    if as_json:
        _print_json([hit.model_dump() for hit in hits])
        return
    for hit in hits:
        out(f"{hit.score:.3f}  {shown_id(hit.document)}\n{line(hit.text)}\n\n")


@app.command("list")
def list_(*, tenant: TenantOption = DEFAULT_TENANT, as_json: JsonFlag = False) -> None:
    """List the indexes of a tenant."""
    _print_records(_run(lambda fleet: fleet.indexes(tenant=tenant)), as_json=as_json)


@app.command()
def delete(
    name: NameArgument,
    *,
    document: Annotated[
        str | None, typer.Option(help="Delete only the document with this id.", callback=not_empty)
    ] = None,
    tenant: TenantOption = DEFAULT_TENANT,
    as_json: JsonFlag = False,
) -> None:
    """Delete an index with all its documents, or one document."""

    async def remove(fleet: Fleet) -> bool:
        there = fleet.index(name, tenant=tenant)
        return await (there.delete() if document is None else there.remove(document))

    deleted = _run(remove)
    if not deleted and document is None:
        raise UnknownIndexError(name, tenant=tenant)
    if as_json:
        _print_json({"index": name, "document": document, "deleted": deleted})
    else:
        out(f"{shown_id(document or name)} {'deleted' if deleted else 'was not there'}\n")


def _conditions(where: str | None) -> dict[str, Any]:
    try:
        conditions = orjson.loads(where or "{}")
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"is not JSON ({error})", param_hint="'--where'") from error
    if not isinstance(conditions, dict):
        raise typer.BadParameter('is not an object like {"year": 2020}', param_hint="'--where'")
    return cast("dict[str, Any]", conditions)


def _print_records(records: list[IndexRecord], *, as_json: bool) -> None:
    if as_json:
        _print_json([record.model_dump(mode="json") for record in records])
        return
    for record in records:
        fields = (
            *(shown_id(record.name), f"pool {record.options.pool}", count_of(record.documents, "document")),
            *(count_of(record.chunks, "chunk"), f"embedded by {record.embedding or 'nothing yet'}"),
        )
        out("  ".join(fields) + "\n")


def _run(work: Callable[[Fleet], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(fleet)

    return asyncio.run(connected())


def _print_json(value: Any) -> None:
    out(orjson.dumps(value).decode() + "\n")
