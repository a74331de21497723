"""Fingerprints of model files, which distinguish models without reading all of their gigabytes.

Small files are read whole. A weight file is represented by its name and size and by samples: for a
safetensors file by its header (name, type, shape and place of every tensor) and a sample from the middle of
each tensor, for any other file by samples at even distances. So two checkpoints of one shape differ as soon
as training has changed a sample. A change that leaves every sample as it was is not detected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth"})
READ_WHOLE: Final = frozenset({".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"})

SAMPLE_BYTES: Final = 1024
MOST_SAMPLES: Final = 512
"""The most samples of one file. A 70B model in 30 files takes about 700 reads."""

_HEADER_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 100 * 1024 * 1024
"""The longest header that the safetensors format allows, in bytes."""

_SNAPSHOT: Final = re.compile(r"/snapshots/([0-9a-f]{40})/?$")


def digest(value: object) -> str:
    """Return a short hash of anything that JSON can encode; functions and classes count by their name."""
    text = json.dumps(value, sort_keys=True, default=_spell)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def commit_of(path: str) -> str:
    """Return the commit in the path of a Hugging Face snapshot, which identifies all files; else empty."""
    found = _SNAPSHOT.search(path)
    return found[1] if found else ""


def open_unnoticed(file: Path) -> BufferedReader:
    """Open a file without changing when it was last read, where the system allows that.

    So looking at a model does not count as using it.
    """
    without = getattr(os, "O_NOATIME", 0)

    def opener(path: str, flags: int) -> int:
        try:
            return os.open(path, flags | without)
        except PermissionError:  # another user's file
            return os.open(path, flags)

    return open(file, "rb", opener=opener)


def fingerprint(path: Path) -> str:
    """Return the fingerprint of a model: a folder with all its files, or one file. Empty if it is neither."""
    commit = commit_of(str(path))
    if commit or not path.exists():
        return commit
    hashed = hashlib.blake2b(digest_size=16)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        suffix = file.suffix.lower()
        if file.name.startswith(".") or not file.is_file() or suffix not in WEIGHT_SUFFIXES | READ_WHOLE:
            continue
        size = file.stat().st_size
        hashed.update(json.dumps([file.name, size]).encode())
        with open_unnoticed(file) as content:
            if suffix in READ_WHOLE:
                hashed.update(hashlib.file_digest(content, "blake2b").digest())
            else:
                for start, length in _samples(content, size):
                    content.seek(start)
                    hashed.update(content.read(length))
    return hashed.hexdigest()


def _samples(content: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Return the parts of a weight file to read, as (start, length)."""
    header = int.from_bytes(content.read(_HEADER_LENGTH_BYTES), "little")
    if header <= min(size, _LONGEST_HEADER):
        try:
            tensors: dict[str, Any] = json.loads(content.read(header))
            spans = sorted(
                tensor["data_offsets"] for name, tensor in tensors.items() if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # not safetensors
        else:
            first = _HEADER_LENGTH_BYTES + header
            middles = [max(begin, (begin + end - SAMPLE_BYTES) // 2) for begin, end in spans]
            return [(0, first), *((first + middle, SAMPLE_BYTES) for middle in _some(middles))]
    return [(size * part // MOST_SAMPLES, SAMPLE_BYTES) for part in range(MOST_SAMPLES)]


def _some(places: list[int]) -> list[int]:
    return places[:: -(-len(places) // MOST_SAMPLES) or 1]


def _spell(value: Any) -> str:
    return getattr(value, "__qualname__", None) or str(value)
