"""Keeps the content of files in a folder or a bucket, by ``fsspec``.

The name of a file is its path below the URL of the storage. The methods block: an event loop calls them with
``apart``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from fsspec.implementations.local import LocalFileSystem  # pyright: ignore[reportMissingTypeStubs]
from fsspec.spec import AbstractBufferedFile  # pyright: ignore[reportMissingTypeStubs]

from inferfleet.schemas.errors import ConfigurationError, InferfleetError

T = TypeVar("T")

PIECE_BYTES: Final = 1 << 20
"""How much of a file is in memory while it is read or written."""

BLOCK_BYTES: Final = 8 << 20
"""How much of a new file is sent to a bucket at once. S3 accepts 10,000 parts of 5 MiB or more."""

CALLS_AT_ONCE: Final = 16


class StorageError(InferfleetError):
    """The file storage has failed. The message quotes no content."""


class Storage:
    """A folder or a bucket, the same one for all gateways."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._root: str
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"INFERFLEET_FILES_URL: {error}") from error
        except Exception as error:
            # Some file systems connect at once. Each has errors of its own; the URL may have a password.
            scheme = url.partition("://")[0]
            raise ConfigurationError(f"INFERFLEET_FILES_URL: cannot open {scheme}://… ({error})") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="storage")

    async def apart(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread of the storage."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def close(self) -> None:
        """Shut the threads down, without waiting for calls that hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Make sure that the storage can be reached.

        Raises:
            ConfigurationError: It cannot.

        """
        try:
            if self._local:
                # Not its parents: a volume that is not mounted yet would be taken for an empty one.
                Path(self._root).mkdir(exist_ok=True)
            self._fs.ls(self._root)
        except FileNotFoundError as error:
            # s3fs says the same of a bucket that has nothing below this prefix yet. Only if the bucket is
            # missing, the error has a cause. Do not ask for it: a role may have rights on the prefix only.
            if self._local:
                missing = Path(self._root).parent
                raise ConfigurationError(
                    f"INFERFLEET_FILES_URL: there is no folder {missing}; make it, or mount its volume"
                ) from error
            if error.__cause__ is not None:
                raise ConfigurationError(f"INFERFLEET_FILES_URL: there is no {self._root}") from error
        except Exception as error:
            raise ConfigurationError(f"INFERFLEET_FILES_URL: cannot read {self._root} ({error})") from error

    @contextmanager
    def writing(self, name: str) -> Generator[Any]:
        """Open a new file, which is there once the block has ended without an error.

        Raises:
            StorageError: It cannot be written.

        """
        file = self.open_new(name)
        try:
            yield file
        except BaseException:
            self.abandon(name, file)
            raise
        self.finish(name, file)

    def open_new(self, name: str) -> Any:
        """Open a new file. Whoever does calls ``finish`` or ``abandon`` with it.

        Raises:
            StorageError: It cannot be written.

        """
        with _told(f"write {name}", missing=False):
            if self._local:
                Path(self._path(name)).parent.mkdir(parents=True, exist_ok=True)
            return self._fs.open(self._path(name), "wb", block_size=BLOCK_BYTES)

    def write(self, name: str, file: Any, content: bytes) -> None:
        """Write to an open file.

        Raises:
            StorageError: It cannot be written.

        """
        with _told(f"write {name}", missing=False):
            file.write(content)

    def finish(self, name: str, file: Any) -> None:
        """Close a new file, and return when it is stored.

        Raises:
            StorageError: It cannot be written.

        """
        try:
            with _told(f"write {name}", missing=False):
                if self._local:
                    file.flush()
                    os.fsync(file.fileno())
                file.close()
        except StorageError:
            self.abandon(name, file)
            raise

    def abandon(self, name: str, file: Any) -> None:
        """Close a new file, and remove what has been written of it."""
        with suppress(Exception):
            if isinstance(file, AbstractBufferedFile):
                # Closing it would upload what has been written.
                file.closed = True
                file.discard()
            else:
                file.close()
                self._fs.rm_file(self._path(name))

    def read(self, name: str) -> Iterator[bytes]:
        """Read a file, a piece at a time.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It cannot be read.

        """
        with (
            _told(f"read {name}"),
            self._fs.open(self._path(name), "rb", block_size=PIECE_BYTES) as file,
        ):
            while piece := file.read(PIECE_BYTES):
                yield piece

    def lines(self, name: str) -> Iterator[bytes]:
        """Read a file, a line at a time.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It cannot be read.

        """
        # Not the file's own iterator: for a bucket, it reads a whole block for each line.
        rest = b""
        for piece in self.read(name):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the storage, unless the target is there.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It cannot be copied.

        """
        with _told(f"copy {source}"):
            if self._fs.exists(self._path(target)):
                return
            if not self._local:
                self._fs.cp_file(self._path(source), self._path(target))
                return
            # All of it or nothing: a gateway that dies meanwhile leaves only the unfinished name.
            unfinished = f"{target}.{os.urandom(8).hex()}"
            Path(self._path(target)).parent.mkdir(parents=True, exist_ok=True)
            self._fs.cp_file(self._path(source), self._path(unfinished))
            Path(self._path(unfinished)).replace(self._path(target))

    def at_hand(self, name: str, folder: Path) -> Path:
        """Copy a file into ``folder``, and return its path there: a shared volume may be slow, or hang.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It cannot be read.

        """
        path = folder / "input"
        with path.open("wb") as file:
            for piece in self.read(name):
                file.write(piece)
        return path

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted.

        Raises:
            StorageError: They cannot be read.

        """
        path = self._path(folder)
        with _told(f"list {folder}"):
            self._fs.invalidate_cache(path)
            try:
                found: list[str] = self._fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{each.rstrip('/').rpartition('/')[2]}" for each in found)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there.

        Raises:
            StorageError: It cannot be removed.

        """
        path = self._path(name)
        with _told(f"remove {name}"), suppress(FileNotFoundError):
            self._fs.invalidate_cache(path)
            self._fs.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


@contextmanager
def _told(what: str, *, missing: bool = True) -> Generator[None]:
    """Translate the errors of a storage, of which each kind has its own. A file may be ``missing``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageError) or (missing and isinstance(error, FileNotFoundError)):
            raise
        raise StorageError(f"the file storage cannot {what}: {error or type(error).__name__}") from error
