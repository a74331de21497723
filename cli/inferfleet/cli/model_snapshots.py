"""Finds models on a volume: snapshots in the cache layout of Hugging Face's hub, and plain folders.

It reads the layout itself: huggingface_hub is installed only beside an engine, and its own `hf cache verify`
asks the hub for the checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.fingerprint import fingerprint

MAIN = "main"
"""The branch that an engine loads if no revision is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One model on disk. ``revision`` is the commit, empty for a plain folder; ``refs`` are its branches."""

    model: str
    path: Path
    revision: str = ""
    refs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model with its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def repository(self) -> Path | None:
        """The folder in the cache with the blobs, refs and snapshots of the model."""
        return self.path.parents[1] if self.revision else None

    def files(self) -> Iterator[Path]:
        """List the files, also links that lead nowhere, without hidden folders."""
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names))

    def size_and_last_read(self) -> tuple[int, datetime | None]:
        """Return the size in bytes, and when any of the files was read last, as the file system notes it."""
        found = [file.stat() for file in self.files() if file.exists()]
        latest = max((each.st_atime for each in found), default=None)
        return (
            sum(each.st_size for each in found),
            None if latest is None else datetime.fromtimestamp(latest, UTC),
        )

    def weights(self) -> str:
        """Return what the identity of a worker says of these weights."""
        return self.revision or fingerprint(self.path)


def find_snapshots(root: Path) -> list[Snapshot]:
    """Find all models below a folder.

    Raises:
        ConfigurationError: The folder, or one below it, cannot be read.

    """

    def refuse(error: OSError) -> None:
        raise ConfigurationError(
            f"{error.filename} cannot be read: {error.strerror}; --cache names another folder"
        ) from error

    found: list[Snapshot] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        here = Path(folder)
        if here.name.startswith("models--") and "snapshots" in folders:
            try:
                found += _of_repository(here)
            except OSError as error:
                refuse(error)
        elif "config.json" in names:
            found.append(Snapshot(model=str(here), path=here))
        else:
            folders[:] = sorted(
                name for name in folders if not name.startswith((".", "datasets--", "spaces--"))
            )
            continue
        folders.clear()
    return found


def find_snapshot(model: str, revision: str | None, root: Path) -> Snapshot:
    """Find the snapshot that an engine would load: of a folder, or of a name and a commit, branch or tag.

    Raises:
        ConfigurationError: There is none.

    """
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise ConfigurationError(f"--revision is for a name on the hub, but {model!r} is a folder")
        return Snapshot(model=model, path=folder)
    known = [it for it in find_snapshots(root) if it.model == model]
    for snapshot in known:
        if (revision or MAIN) in {snapshot.revision, *snapshot.refs}:
            return snapshot
    if not known:
        raise ConfigurationError(
            f"{model!r} is neither a folder nor a model below {root}: `inferfleet model list` shows what is "
            "there; --cache names another folder"
        )
    revisions = ", ".join(" ".join([it.revision, *it.refs]) for it in known)
    raise ConfigurationError(
        f"{model!r} has no revision {revision or MAIN!r} below {root}: name one of these with --revision: "
        f"{revisions}"
    )


def _of_repository(repository: Path) -> list[Snapshot]:
    """List the snapshots of a repository: ``models--OWNER--NAME/{blobs,refs,snapshots}``."""
    refs = repository / "refs"
    heads = [ref for ref in sorted(refs.rglob("*")) if ref.is_file()]
    commits = {str(ref.relative_to(refs)): ref.read_text().strip() for ref in heads}
    return [
        Snapshot(
            model=repository.name.removeprefix("models--").replace("--", "/"),
            path=path,
            revision=path.name,
            refs=tuple(ref for ref, commit in commits.items() if commit == path.name),
        )
        for path in sorted((repository / "snapshots").iterdir())
    ]
