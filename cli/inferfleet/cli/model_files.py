"""``inferfleet model list`` and ``model verify``: the models on a volume."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from inferfleet.cli.model_check import check
from inferfleet.cli.model_snapshots import Snapshot, find_snapshot, find_snapshots
from inferfleet.cli.options import JsonFlag, not_empty, producer_settings
from inferfleet.cli.terminal import err, line, out
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import InferfleetError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat

CacheOption = Annotated[
    Path,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar=["HF_HUB_CACHE", "HF_HOME"],
        help="Folder with the hub's cache or with folders of models.",
    ),
]
CACHE = Path("~/.cache/huggingface")


class DamagedModelError(InferfleetError):
    """Files of a model are damaged or missing. The message says how many."""


def list_models(*, cache: CacheOption = CACHE, as_json: JsonFlag = False) -> None:
    """List the models on a volume: revision, size, when it was last read, and which live workers have it.

    A worker has a model if its weights are the same; its folder may be another one. If Redis cannot be
    reached, the workers are unknown.
    """
    snapshots = find_snapshots(cache.expanduser())
    workers = _workers()
    listed = [(it, _facts(it, workers)) for it in snapshots]
    if as_json:
        out(orjson.dumps([facts for _, facts in listed]).decode() + "\n")
        return
    for snapshot, facts in listed:
        revision = f"{snapshot.revision} ({', '.join(snapshot.refs) or 'no branch'})"
        parts = [
            line(snapshot.model),
            line(revision) if snapshot.revision else "folder",
            _size(facts["bytes"]),
            f"last read {facts['last_read'] or 'never'}",
            _users(facts["workers"]),
        ]
        out("  ".join(parts) + "\n")


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a name on the hub.", callback=not_empty)
    ],
    *,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag; by default main.", callback=not_empty)
    ] = None,
    cache: CacheOption = CACHE,
    as_json: JsonFlag = False,
) -> None:
    """Check the files of a model without a network: checksums, missing files, unfinished downloads.

    It reads all of the model. Exits with 1 if anything is wrong.
    """
    snapshot = find_snapshot(model, revision, cache.expanduser())
    found = check(snapshot)
    if as_json:
        fields = {
            **_named(snapshot),
            "by_checksum": found.by_checksum,
            "by_content": found.by_content,
            "unchecked": found.unchecked,
            "problems": [problem._asdict() for problem in found.problems],
        }
        out(orjson.dumps(fields).decode() + "\n")
    else:
        for file, problem in found.problems:
            out(f"{line(file)}  {line(problem)}\n")
        out(
            f"{line(snapshot.name)}  {found.by_checksum} files match their checksums, "
            f"{found.by_content} their headers or form; {found.unchecked} cannot be checked\n"
        )
    if found.problems:
        raise DamagedModelError(
            f"{snapshot.name} is not sound (problems: {len(found.problems)}). Download or copy it again"
        )


def _workers() -> list[Heartbeat] | None:
    """Return the live workers; ``None``, and a line on stderr, if Redis cannot be read."""

    async def read() -> list[Heartbeat]:
        async with Fleet.connect(producer_settings()) as fleet:
            return await fleet.workers()

    try:
        return asyncio.run(read())
    except (ServiceUnreachableError, ServiceRefusedError) as error:
        err(f"inferfleet: the workers are unknown: {error}\n")
        return None


def _named(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "model": snapshot.model,
        "revision": snapshot.revision,
        "refs": snapshot.refs,
        "path": str(snapshot.path),
    }


def _facts(snapshot: Snapshot, workers: Iterable[Heartbeat] | None) -> dict[str, Any]:
    size, last_read = snapshot.size_and_last_read()
    weights = snapshot.weights()
    return {
        **_named(snapshot),
        "bytes": size,
        "last_read": None if last_read is None else last_read.isoformat(timespec="seconds"),
        "workers": None
        if workers is None
        else [
            {"worker_id": it.worker_id, "model": it.model, "model_identity": it.model_identity}
            for it in workers
            if it.model_weights == weights
        ],
    }


def _users(workers: list[dict[str, str]] | None) -> str:
    if workers is None:
        return "workers unknown"
    users = [f"{it['worker_id']} as {it['model']} ({it['model_identity']})" for it in workers]
    return line("used by " + ", ".join(users)) if users else "no worker"


def _size(size: float) -> str:
    """Return a size for a person, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
