"""The storage of a gateway's files: a folder, and a store that has no folders and no renames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from inferfleet.gateway.batches.storage import Storage, StorageError
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


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    write(storage, "a/b", b"one\ntwo\n")
    write(storage, "a/c", b"three")

    assert b"".join(storage.read("a/b", piece_bytes=3)) == b"one\ntwo\n"
    assert list(storage.lines("a/b")) == [b"one\n", b"two\n"]
    assert storage.names("a") == ["a/b", "a/c"]
    assert storage.at_hand("a/c", tmp_path).read_bytes() == b"three"
    storage.copy("a/b", "d/e")
    storage.copy("a/c", "d/e")
    assert b"".join(storage.read("d/e")) == b"one\ntwo\n"
    assert storage.names("d") == ["d/e"]
    storage.remove("a/b")
    assert storage.names("a") == ["a/c"]
    storage.remove("a")
    storage.remove("a")
    assert storage.names("a") == []


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
