"""The storage of a gateway's files: a folder, and a store that has no folders and no renames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from inferfleet.gateway.batches.storage import BLOCK_BYTES, PIECE_BYTES, Storage, StorageError
from inferfleet.schemas.errors import ConfigurationError


@pytest.fixture(params=["folder", "url", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = {"folder": str(tmp_path), "url": f"file://{tmp_path}/new", "memory": "memory://bucket/prefix"}
    storage = Storage(url[request.param])
    if request.param != "memory":
        storage.check()
    yield storage
    storage.close()
    MemoryFileSystem.store.clear()


def write(storage: Storage, name: str, content: bytes) -> None:
    with storage.writing(name) as file:
        storage.write(name, file, content)


def test_what_is_written_is_read(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferfleet.gateway.batches.storage.PIECE_BYTES", 3)
    write(storage, "a/b", b"one\ntwo\n")
    write(storage, "a/c", b"three")

    assert b"".join(storage.read("a/b")) == b"one\ntwo\n"
    assert list(storage.lines("a/b")) == [b"one\n", b"two\n"]
    assert storage.names("a") == ["a/b", "a/c"]
    assert storage.at_hand("a/c", tmp_path) == tmp_path / "input"
    assert (tmp_path / "input").read_bytes() == b"three"
    storage.copy("a/b", "d/e")
    storage.copy("a/c", "d/e")
    assert b"".join(storage.read("d/e")) == b"one\ntwo\n"
    assert storage.names("d") == ["d/e"]
    storage.remove("a/b")
    assert storage.names("a") == ["a/c"]
    storage.remove("a")
    storage.remove("a")
    assert storage.names("a") == []


def test_a_bucket_gives_and_takes_pieces(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = storage._fs.open

    class OnlyRead:
        """A file whose lines must not be read by its own means, which are slow."""

        def __init__(self, file: Any) -> None:
            self.read = file.read

        def __enter__(self) -> OnlyRead:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def opened(path: str, mode: str, *, block_size: int) -> Any:
        sizes.append(block_size)
        file = real(path, mode, block_size=block_size)
        return file if mode == "wb" else OnlyRead(file)

    monkeypatch.setattr(storage._fs, "open", opened)
    content = b"\nshort\n" + b"x" * 3 * PIECE_BYTES + b"\nend"
    write(storage, "a", content)

    assert list(storage.lines("a")) == content.splitlines(keepends=True)
    assert b"".join(storage.read("a")) == content
    assert sizes == [BLOCK_BYTES, PIECE_BYTES, PIECE_BYTES]


def test_a_folder_is_made_but_not_where_it_is_to_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no"):
        Storage(f"{tmp_path}/mount/files").check()


def test_what_is_not_there_is_not_found(storage: Storage, tmp_path: Path) -> None:
    for call in (
        lambda: next(storage.read("x")),
        lambda: next(storage.lines("x")),
        lambda: storage.copy("x", "y"),
    ):
        with pytest.raises(FileNotFoundError):
            call()


def test_what_is_interrupted_is_not_there(storage: Storage) -> None:
    with suppress(RuntimeError), storage.writing("a/b") as file:
        storage.write("a/b", file, b"x" * 10_000_000)
        raise RuntimeError

    assert storage.names("a") == []


def test_a_storage_that_refuses_says_what_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    storage = Storage(str(tmp_path))

    with pytest.raises(StorageError, match="cannot write a/b"):
        write(storage, "a/b", b"x")
    with pytest.raises(ConfigurationError, match="INFERFLEET_FILES_URL"):
        Storage(f"{tmp_path}/a").check()
    with pytest.raises(ConfigurationError, match="INFERFLEET_FILES_URL"):
        Storage("nothing://x")
    storage.close()
