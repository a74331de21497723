"""Models on disk, as downloads leave them: the hub's cache, a download's folder, a plain folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def safetensors(*, values: int = 4, fill: int = 0) -> bytes:
    """A file with one tensor."""
    tensor = {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * values


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES: Mapping[str, bytes] = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: safetensors(fill=1),
    SHARDS[1]: safetensors(fill=2),
    "tokenizer/vocab.txt": b"a\nb\n",
}


def etag(name: str, content: bytes) -> str:
    """What the hub calls a file: SHA-256 if it is in LFS, else what git calls it."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


def hub_snapshot(root: Path, model: str, commit: str, *refs: str, files: Mapping[str, bytes] = FILES) -> Path:
    """Put a snapshot into the hub's cache below ``root``; returns its folder."""
    repository = root / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for name, content in files.items():
        blob = repository / "blobs" / etag(name, content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (name.count("/") + 2), "blobs", blob.name))
    for ref in refs:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def plain_folder(folder: Path, files: Mapping[str, bytes] = FILES, *, downloaded: bool = False) -> Path:
    """Write a folder; with what ``hf download --local-dir`` notes of each file, if it was downloaded."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if downloaded:
            note = folder / ".cache/huggingface/download" / f"{name}.metadata"
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{'a' * 40}\n{etag(name, content)}\n1764000000.0\n")
    return folder
