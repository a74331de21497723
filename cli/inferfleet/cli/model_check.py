"""Checks the files of a model on disk without a network: what is damaged, and what is missing.

The hub's cache names each blob by its checksum: SHA-256 for large files, git's SHA-1 for others. A folder
that ``hf download --local-dir`` has filled keeps the same checksums in hidden files. In other folders there
are only the headers of safetensors files, which say how long each is, the index of the shards, and whether
JSON is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from inferfleet.cli.model_snapshots import Snapshot
from inferfleet.worker.engines.fingerprint import WEIGHT_SUFFIXES, open_unnoticed

READERS: Final = 4
"""How many files are read at the same time."""

_SHARD: Final = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\..*)")
_DOWNLOADS: Final = Path(".cache/huggingface/download")
_LENGTH_BYTES: Final = 8


class Problem(NamedTuple):
    """What is wrong with a file."""

    file: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of a check. The files that have no problem are counted by what was checked of them."""

    by_checksum: int
    by_content: int
    unchecked: int
    problems: list[Problem]


def check(snapshot: Snapshot) -> Checked:
    """Read all files of a model and return what is wrong with them."""
    files = list(snapshot.files())
    checksums = {file: checksum for file in files if (checksum := _checksum(snapshot.path, file))}

    def check_file(file: Path) -> str | None:
        try:
            return _problem(file, checksums.get(file))
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    with ThreadPoolExecutor(READERS) as readers:
        found = dict(zip(files, readers.map(check_file, files), strict=True))
    sound = [file for file, problem in found.items() if problem is None]
    by_content = [file for file in sound if file not in checksums and file.suffix in _CONTENT_CHECKS]
    return Checked(
        by_checksum=len(checksums.keys() & set(sound)),
        by_content=len(by_content),
        unchecked=len(sound) - len(checksums.keys() & set(sound)) - len(by_content),
        problems=[
            *(Problem(str(file), problem) for file, problem in found.items() if problem is not None),
            *_missing(snapshot.path, {str(file.relative_to(snapshot.path)) for file in files}),
            *_incomplete(snapshot),
        ],
    )


def _problem(file: Path, checksum: str | None) -> str | None:
    if not file.exists():
        return f"is a link to {file.readlink()}, which is missing"
    if checksum is not None and (actual := _digest(file, checksum)) != checksum:
        return f"is damaged: its checksum is {actual}, and should be {checksum}"
    return _CONTENT_CHECKS[file.suffix](file) if file.suffix in _CONTENT_CHECKS else None


def _checksum(root: Path, file: Path) -> str | None:
    """Return the checksum that the download left for a file, if it is one."""
    if file.is_symlink():
        target = file.readlink()
        etag = target.name if target.parent.name == "blobs" else ""
    else:
        note = root / _DOWNLOADS / f"{file.relative_to(root)}.metadata"
        lines = note.read_text().splitlines() if note.is_file() else []
        etag = lines[1] if len(lines) > 1 else ""
    return etag if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) else None


def _digest(file: Path, like: str) -> str:
    with open_unnoticed(file) as content:
        if len(like) == hashlib.sha256().digest_size * 2:
            return hashlib.file_digest(content, "sha256").hexdigest()
        # As git names a file.
        blob = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(content, lambda: blob).hexdigest()


def _check_safetensors(file: Path) -> str | None:
    size = file.stat().st_size
    with open_unnoticed(file) as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size:
            return f"is cut off: its {size} bytes do not hold its header"
        try:
            header: dict[str, Any] = json.loads(content.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            expected = _LENGTH_BYTES + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return "has no readable safetensors header"
    return None if size == expected else f"has {size} bytes, but {expected} by its header"


def _check_json(file: Path) -> str | None:
    try:
        with open_unnoticed(file) as content:
            json.load(content)
    except ValueError as error:
        return f"is not JSON: {error}"
    return None


_CONTENT_CHECKS: Final = {".safetensors": _check_safetensors, ".json": _check_json}


def _missing(root: Path, names: set[str]) -> Iterator[Problem]:
    """Name the shards that others, or an index, speak of; and weights, if there are none."""
    expected: set[str] = set()
    for name in names:
        if (shard := _SHARD.fullmatch(name)) is not None:
            first, _, last, suffix = shard.groups()
            expected |= {f"{first}{number:05}-of-{last}{suffix}" for number in range(1, int(last) + 1)}
        if name.endswith(".index.json"):
            expected |= _indexed(root / name)
    yield from (Problem(str(root / name), "is missing") for name in sorted(expected - names))
    if not expected and not any(Path(name).suffix in WEIGHT_SUFFIXES for name in names):
        yield Problem(str(root), "has no weights")


def _indexed(index: Path) -> set[str]:
    """Return the shards that an index names; none if it is damaged, which is a problem of its own."""
    try:
        with open_unnoticed(index) as content:
            shards: object = json.load(content)["weight_map"]
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    return (
        {str(shard) for shard in cast("Mapping[str, object]", shards).values()}
        if isinstance(shards, dict)
        else set()
    )


def _incomplete(snapshot: Snapshot) -> Iterator[Problem]:
    repository = snapshot.repository
    downloads = repository / "blobs" if repository is not None else snapshot.path / _DOWNLOADS
    for file in sorted(downloads.rglob("*.incomplete")):
        yield Problem(str(file), f"is an incomplete download, of {file.stat().st_size} bytes so far")
