"""Finds the LoRA adapters of a worker by their names, and keeps the version with which an answer began.

An adapter is a folder with ``adapter_config.json`` and ``adapter_model.*``. Whoever trains it may replace the
folder at any time, and the engine may read it late, or again. So the engine only reads copies, each of which
is one version, and never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from typing import Any, Final

from inferfleet.schemas import FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.ports import GenerationError

CONFIG: Final = "adapter_config.json"

_FILES: Final = (CONFIG, "adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One version of an adapter. ``folder`` is the worker's own copy."""

    name: str
    fingerprint: str
    folder: Path

    @property
    def version(self) -> str:
        """A name that no other version has."""
        return f"{self.name}@{self.fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSources:
    """Where adapters are: the subfolders of ``folder``, and more by name, as folders or names on the hub."""

    folder: Path | None = None
    named: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, *, adapters_dir: str, lora_modules: Any) -> AdapterSources:
        """Read the settings. ``lora_modules`` is vLLM's option: a list of ``name=path``, or of objects.

        Raises:
            ConfigurationError: One of them is not what it should be.

        """
        folder = Path(adapters_dir) if adapters_dir else None
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"INFERFLEET_ADAPTERS_DIR: {adapters_dir!r} is not a folder")
        if not isinstance(lora_modules or [], list):
            raise _not_modules(lora_modules)
        return cls(folder=folder, named=dict(map(_named, lora_modules or ())))

    def __bool__(self) -> bool:
        """Return whether there can be adapters."""
        return bool(self.folder or self.named)


class AdapterFiles:
    """The adapters of one engine. Its methods block: call them in a thread, and for one name one at a time.

    ``locate`` returns the folder of an adapter on the hub, after a download.
    """

    def __init__(self, sources: AdapterSources, *, locate: Callable[[str], str]) -> None:
        self._folder = sources.folder
        self._named = sources.named
        self._locate = locate
        self._located: dict[str, Path] = {}
        self._latest: dict[str, tuple[Stamp, Adapter]] = {}
        self._copies: TemporaryDirectory[str] | None = None
        self._copying = Lock()

    def names(self) -> tuple[str, ...]:
        """List the adapters. One that is being written may be among them."""
        names = set(self._named)
        if self._folder is not None:
            with suppress(OSError):
                names.update(
                    filter(_is_name, (each.parent.name for each in self._folder.glob(f"*/{CONFIG}")))
                )
        return tuple(sorted(names))

    def find(self, name: str) -> Adapter | None:
        """Return the present version of an adapter; ``None`` if there is none with this name.

        Raises:
            GenerationError: Its files cannot be read.

        """
        try:
            source = self._source(name)
            if source is None:
                return None
            stamp = _stamp(source)
            known = self._latest.get(name)
            if known is None or known[0] != stamp:
                with self._copying:
                    known = self._latest[name] = (stamp, self._copy(name, source))
                if _stamp(source) != stamp:
                    del self._latest[name]
                    raise OSError("its files were changed while they were read")
        except OSError as error:
            raise GenerationError(
                FailureCode.MODEL_UNAVAILABLE, f"model: the adapter {name!r} cannot be read now: {error}"
            ) from error
        return known[1]

    def forget(self, adapter: Adapter, *, kept: Mapping[str, Adapter]) -> None:
        """Remove the copy of a version. One with the same contents as a version that is ``kept`` stays."""
        with self._copying:
            known = self._latest.get(adapter.name)
            if known is not None and known[1] == adapter:
                del self._latest[adapter.name]
            used = [*kept.values(), *(each for _, each in self._latest.values())]
            if adapter.folder not in {each.folder for each in used}:
                shutil.rmtree(adapter.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the copies."""
        if self._copies is not None:
            self._copies.cleanup()

    def _source(self, name: str) -> Path | None:
        place = self._named.get(name)
        if place is not None:
            path = Path(place) if Path(place).is_dir() else self._on_hub(place)
            if not (path / CONFIG).is_file():
                raise GenerationError(
                    FailureCode.INVALID_REQUEST,
                    f"model: for the adapter {name!r}, lora_modules names {place!r}, which is neither a "
                    f"folder with {CONFIG} nor an adapter on the hub",
                )
            return path
        if self._folder is None or not _is_name(name):
            return None
        path = self._folder / name
        return path if (path / CONFIG).is_file() else None

    def _on_hub(self, place: str) -> Path:
        """Return the folder of an adapter on the hub, which is asked once."""
        path = self._located.get(place)
        if path is None:
            try:
                path = Path(self._locate(place))
            except Exception as error:
                raise OSError(f"the hub does not answer: {error}") from error
            if path.is_dir():
                self._located[place] = path
        return path

    def _copy(self, name: str, source: Path) -> Adapter:
        if self._copies is None:
            self._copies = TemporaryDirectory(prefix="inferfleet-adapters-", ignore_cleanup_errors=True)
        copies = Path(self._copies.name)
        begun = Path(mkdtemp(dir=copies))
        hashed = hashlib.blake2b(digest_size=16)
        for file in _FILES:
            if (source / file).is_file():
                with Path(shutil.copyfile(source / file, begun / file)).open("rb") as content:
                    hashed.update(json.dumps([file]).encode())
                    hashed.update(hashlib.file_digest(content, "blake2b").digest())
        folder = copies / hashed.hexdigest()
        if folder.exists():
            shutil.rmtree(begun)
        else:
            begun.rename(folder)
        return Adapter(name=name, fingerprint=folder.name, folder=folder)


def _named(module: Any) -> tuple[str, str]:
    match module:
        case str() if "=" in module:
            name, _, place = module.partition("=")
        case {"name": str(name), "path": str(place)}:
            pass
        case _:
            name = place = ""
    if not name or not place:
        raise _not_modules(module)
    return name, place


def _not_modules(found: Any) -> ConfigurationError:
    return ConfigurationError(
        "engine_args: lora_modules should be a list of 'name=path', or of objects with name and path, not "
        f"{found!r}"
    )


def _is_name(name: str) -> bool:
    """Return whether the name is that of a folder in a folder, and of none elsewhere."""
    return not name.startswith(".") and not set(name) & set("/\\\0") and 0 < len(os.fsencode(name)) < 256


def _stamp(source: Path) -> Stamp:
    """Return what changes with every change of the files."""
    stats = ((file, (source / file).stat()) for file in _FILES if (source / file).is_file())
    return tuple((file, stat.st_ino, stat.st_size, stat.st_ctime_ns) for file, stat in stats)
