"""Runs Redis' Lua scripts. fakeredis would make a new Lua state for each call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from lupa import lua51

from inferfleet.local.simulation.answers import Answer, RedisError, Status


class Scripts:
    """The loaded scripts of a store. ``command`` runs the commands that they call."""

    def __init__(self, command: Callable[[list[bytes]], Answer]) -> None:
        self._command = command
        self._lua: Any = cast("Any", lua51.LuaRuntime)(encoding=None, unpack_returned_tuples=False)
        self._table = self._lua.table_from
        self._lua.globals()[b"python_call"] = self._call
        self._lua.execute(_REDIS)
        self._compiled: dict[bytes, Any] = {}
        """The compiled scripts, by their text. They keep no state between two calls."""
        self._loaded: dict[bytes, Any] = {}

    def load(self, text: bytes) -> bytes:
        """Load a script, and return its SHA-1."""
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        if text not in self._compiled:
            self._compiled[text] = self._lua.compile(b"local KEYS, ARGV = ...\n" + text)
        self._loaded[sha] = self._compiled[text]
        return sha

    def forget(self) -> None:
        """Unload all scripts."""
        self._loaded.clear()

    def run(self, sha: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Answer:
        """Run a script.

        Raises:
            RedisError: The script is not loaded, or it failed.

        """
        script = self._loaded.get(sha)
        if script is None:
            raise RedisError("NOSCRIPT No matching script. Please use EVAL.")
        try:
            return _from_lua(script(self._table(keys), self._table(arguments)))
        except lua51.LuaError as error:
            raise RedisError(f"ERR {error}") from None

    def _call(self, protected: bool, *words: Any) -> Any:
        try:
            command = [word if type(word) is bytes else _argument(word) for word in words]
            answer = self._command(command)
            # Most are, and matching costs more.
            return answer if type(answer) is bytes or type(answer) is int else self._to_lua(answer)
        except RedisError as error:
            if protected:
                return self._table({b"err": str(error).encode()})
            raise

    def _to_lua(self, answer: Answer) -> Any:
        match answer:
            case None:
                return False
            case Status():
                return self._table({b"ok": answer.encode()})
            case list():
                return self._table(
                    [part if type(part) is bytes else self._to_lua(part) for part in _parts(answer)]
                )
            case _:
                return answer


_REDIS = b"""
redis = {
  call = function(...) return python_call(false, ...) end,
  pcall = function(...) return python_call(true, ...) end,
}
"""


def _parts(answer: Answer) -> list[Answer]:
    return cast("list[Answer]", answer)


def _argument(word: Any) -> bytes:
    """Encode an argument that a script passes to a command, as Redis does."""
    if isinstance(word, (int, float)) and not isinstance(word, bool):
        return b"%.17g" % word
    raise RedisError("ERR Lua redis lib command arguments must be strings or integers")


def _from_lua(value: Any) -> Answer:
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, (int, float)):
        return int(value)
    if isinstance(value, bytes):
        return value
    if (error := value[b"err"]) is not None:
        raise RedisError(error.decode())
    if (status := value[b"ok"]) is not None:
        return Status(status.decode())
    return list(_items(value))


def _items(table: Any) -> Iterator[Answer]:
    index = 1
    while (item := table[index]) is not None:
        yield _from_lua(item)
        index += 1
