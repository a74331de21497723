"""The part of Redis that the product uses, in memory: one command at a time, in virtual time.

``tests/simulation`` replays a simulation's commands on a real Redis and compares the replies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from inferfleet.local.simulation.answers import OK, Answer, RedisError, Status
from inferfleet.local.simulation.scripts import Scripts
from inferfleet.local.simulation.streams import LAST, Stream, first_id, last_id, parse_id

T = TypeVar("T")


class Scores(dict[bytes, float]):
    """A sorted set."""

    def copy(self) -> Scores:
        """Return a copy that does not change with this set."""
        return Scores(self)


Snapshot = tuple[dict[bytes, Any], dict[bytes, int]]


class Store:
    """All keys. ``now_us`` returns the time in microseconds."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self._data: dict[bytes, Any] = {}
        self._expires: dict[bytes, int] = {}
        self._scripts = Scripts(self._run)
        self._commands: dict[bytes, Callable[..., Answer]] = {
            name.removeprefix("_do_").replace("_", " ").upper().encode(): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }
        self.grown: set[bytes] = set()
        """Streams that have grown since the last check."""

    def run(self, command: list[bytes]) -> Answer:
        """Run one command, and return its reply; an error is a reply like any other."""
        try:
            return self._run(command)
        except RedisError as error:
            return error
        except Exception as error:
            # The loop would drop it, and the next reply would be taken for the one of this command.
            raise SystemExit(f"the simulated Redis cannot run {command}: {error!r}") from error

    def snapshot(self) -> Snapshot:
        """Return a copy of everything that is stored."""
        return (
            {key: value if isinstance(value, bytes) else value.copy() for key, value in self._data.items()},
            self._expires.copy(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, and forget the scripts, as after a restart."""
        data, expires = snapshot
        self._data = {k: v if isinstance(v, bytes) else v.copy() for k, v in data.items()}
        self._expires = expires.copy()
        self._scripts.forget()

    def clear(self) -> None:
        """Delete all keys."""
        self._data.clear()
        self._expires.clear()

    def _run(self, command: list[bytes]) -> Answer:
        name = command[0].upper()
        do = self._commands.get(name)
        if do is None:
            raise RedisError(f"ERR unknown command '{name.decode()}'")
        return do(*command[1:])

    # Keys

    def _get(self, key: bytes, kind: type[Any]) -> Any:
        expires = self._expires.get(key)
        if expires is not None and expires <= self.now_us() // 1000:
            self._drop(key)
        value = self._data.get(key)
        if value is not None and not isinstance(value, kind):
            raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _made(self, key: bytes, kind: type[Any]) -> Any:
        value = self._get(key, kind)
        if value is None:
            value = self._data[key] = kind()
        return value

    def _fields(self, key: bytes) -> dict[bytes, bytes]:
        return cast("dict[bytes, bytes]", self._get(key, dict) or {})

    def _items(self, key: bytes) -> list[bytes]:
        return cast("list[bytes]", self._get(key, list) or [])

    def _scores(self, key: bytes) -> dict[bytes, float]:
        return cast("dict[bytes, float]", self._get(key, Scores) or {})

    def _drop(self, key: bytes) -> None:
        self._data.pop(key, None)
        self._expires.pop(key, None)

    def _tidy(self, key: bytes) -> None:
        if not self._data[key]:
            self._drop(key)

    def _do_del(self, *keys: bytes) -> int:
        there = [key for key in dict.fromkeys(keys) if self._get(key, object) is not None]
        for key in there:
            self._drop(key)
        return len(there)

    def _do_exists(self, *keys: bytes) -> int:
        return sum(self._get(key, object) is not None for key in keys)

    def _do_expire(self, key: bytes, seconds: bytes) -> int:
        return self._do_pexpire(key, b"%d" % (int(seconds) * 1000))

    def _do_pexpire(self, key: bytes, milliseconds: bytes) -> int:
        if self._get(key, object) is None:
            return 0
        self._expires[key] = self.now_us() // 1000 + int(milliseconds)
        return 1

    def _do_ttl(self, key: bytes) -> int:
        left = self._do_pttl(key)
        return left if left < 0 else (left + 500) // 1000

    def _do_pttl(self, key: bytes) -> int:
        if self._get(key, object) is None:
            return -2
        return -1 if key not in self._expires else self._expires[key] - self.now_us() // 1000

    def _do_type(self, key: bytes) -> Status:
        kinds: dict[Any, str] = {
            bytes: "string",
            dict: "hash",
            list: "list",
            Stream: "stream",
            Scores: "zset",
        }
        return Status(kinds.get(cast("Any", type(self._get(key, object))), "none"))

    def _do_scan(self, _cursor: bytes, *_options: bytes) -> Answer:
        return [b"0", [key for key in list(self._data) if self._get(key, object) is not None]]

    # Strings

    def _do_get(self, key: bytes) -> Answer:
        return self._get(key, bytes)

    def _do_set(self, key: bytes, value: bytes, *options: bytes) -> Answer:
        words = [option.upper() for option in options]
        there: Any = self._get(key, object)
        if (b"NX" in words and there is not None) or (b"XX" in words and there is None):
            return there if b"GET" in words else None
        self._drop(key)
        self._data[key] = value
        if b"EX" in words:
            self._do_expire(key, options[words.index(b"EX") + 1])
        if b"PX" in words:
            self._do_pexpire(key, options[words.index(b"PX") + 1])
        return there if b"GET" in words else OK

    # Hashes

    def _do_hset(self, key: bytes, *pairs: bytes) -> int:
        if not pairs or len(pairs) % 2:
            raise RedisError("ERR wrong number of arguments for 'hset' command")
        fields = self._made(key, dict)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(fields) - before

    def _do_hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        fields = self._made(key, dict)
        if field in fields:
            return 0
        fields[field] = value
        return 1

    def _do_hget(self, key: bytes, field: bytes) -> Answer:
        return self._fields(key).get(field)

    def _do_hmget(self, key: bytes, *fields: bytes) -> Answer:
        there = self._fields(key)
        return [there.get(field) for field in fields]

    def _do_hgetall(self, key: bytes) -> Answer:
        return dict(self._fields(key))

    def _do_hkeys(self, key: bytes) -> Answer:
        return list(self._fields(key))

    def _do_hlen(self, key: bytes) -> int:
        return len(self._fields(key))

    def _do_hexists(self, key: bytes, field: bytes) -> int:
        return int(field in self._fields(key))

    def _do_hdel(self, key: bytes, *fields: bytes) -> int:
        there = self._fields(key)
        if not there:
            return 0
        gone = sum(there.pop(field, None) is not None for field in fields)
        self._tidy(key)
        return gone

    def _do_hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        fields = self._made(key, dict)
        try:
            new = int(fields.get(field, b"0")) + int(by)
        except ValueError:
            raise RedisError("ERR hash value is not an integer") from None
        fields[field] = b"%d" % new
        return new

    # Lists

    def _do_rpush(self, key: bytes, *values: bytes) -> int:
        items = self._made(key, list)
        items.extend(values)
        return len(items)

    def _do_lpush(self, key: bytes, *values: bytes) -> int:
        items = self._made(key, list)
        items[:0] = reversed(values)
        return len(items)

    def _do_lpop(self, key: bytes) -> Answer:
        items = self._items(key)
        if not items:
            return None
        first = items.pop(0)
        self._tidy(key)
        return first

    def _do_llen(self, key: bytes) -> int:
        return len(self._items(key))

    def _do_lindex(self, key: bytes, index: bytes) -> Answer:
        items = self._items(key)
        return items[int(index)] if -len(items) <= int(index) < len(items) else None

    def _do_lrange(self, key: bytes, first: bytes, last: bytes) -> Answer:
        return _slice(self._items(key), int(first), int(last))

    def _do_ltrim(self, key: bytes, first: bytes, last: bytes) -> Status:
        items = self._items(key)
        if items:
            items[:] = _slice(items, int(first), int(last))
            self._tidy(key)
        return OK

    def _do_lrem(self, key: bytes, count: bytes, value: bytes) -> int:
        items = self._items(key)
        if not items:
            return 0
        if int(count):
            raise RedisError("ERR LREM with a count is not simulated")
        gone = items.count(value)
        items[:] = [item for item in items if item != value]
        self._tidy(key)
        return gone

    # Streams

    def _do_xadd(self, key: bytes, *rest: bytes) -> bytes:
        words = list(rest)
        keep = None
        if words[0].upper() == b"MAXLEN":
            about = 2 if words[1] in {b"~", b"="} else 1
            # "About" keeps whole nodes in Redis: nothing of the few lines here is dropped.
            keep = None if words[1] == b"~" else int(words[about])
            words = words[about + 1 :]
        stream: Stream = self._made(key, Stream)
        line_id, fields = words[0], words[1:]
        now = self.now_us() // 1000
        if line_id == b"*":
            new = (now, 0) if now > stream.last[0] else (stream.last[0], stream.last[1] + 1)
        else:
            new = parse_id(line_id, 0)
            if new <= stream.last:
                raise RedisError(
                    "ERR The ID specified in XADD is equal or smaller than the target stream top item"
                )
        stream.lines.append((new, fields))
        stream.last = new
        if keep is not None:
            del stream.lines[: max(0, len(stream.lines) - keep)]
        self.grown.add(key)
        return b"%d-%d" % new

    def _do_xlen(self, key: bytes) -> int:
        stream: Stream | None = self._get(key, Stream)
        return 0 if stream is None else len(stream.lines)

    def _do_xrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Answer:
        stream: Stream | None = self._get(key, Stream)
        lines: list[Answer] = [] if stream is None else stream.between(first_id(first), last_id(last))
        return lines[: int(options[1])] if options else lines

    def _do_xrevrange(self, key: bytes, last: bytes, first: bytes, *options: bytes) -> Answer:
        lines = self._do_xrange(key, first, last)[::-1]
        return lines[: int(options[1])] if options else lines

    def xread(self, keys: list[bytes], positions: list[bytes], count: int | None) -> Answer:
        """Return the lines behind these positions; ``None`` if there are none."""
        found: dict[bytes, Answer] = {}
        for key, position in zip(keys, positions, strict=True):
            stream: Stream | None = self._get(key, Stream)
            if stream is not None and (lines := stream.between(first_id(b"(" + position), LAST)):
                found[key] = lines[:count]
        return found or None

    def _do_xread(self, *words: bytes) -> Answer:
        count, _, keys, positions = xread_arguments(words)
        return self.xread(keys, positions, count)

    # Sorted sets

    def _do_zadd(self, key: bytes, *words: bytes) -> int:
        only = words[0].upper()
        pairs = words[1:] if only in {b"NX", b"XX"} else words
        entries = list(zip(pairs[::2], pairs[1::2], strict=True))
        if only == b"XX":
            entries = [entry for entry in entries if entry[1] in self._scores(key)]
            if not entries:
                return 0
        scores: Scores = self._made(key, Scores)
        before = len(scores)
        for score, member in entries:
            if only != b"NX" or member not in scores:
                scores[member] = float(score)
        return len(scores) - before

    def _do_zrem(self, key: bytes, *members: bytes) -> int:
        scores = self._scores(key)
        if not scores:
            return 0
        gone = sum(scores.pop(member, None) is not None for member in members)
        self._tidy(key)
        return gone

    def _ranked(self, key: bytes) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in self._scores(key).items())

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Answer:
        return _members(_slice(self._ranked(key), int(first), int(last)), options)

    def _do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> Answer:
        found = self._between(key, low, high)
        words = [option.upper() for option in options]
        if b"LIMIT" in words:
            first, count = map(int, options[words.index(b"LIMIT") + 1 :][:2])
            found = found[first : first + count]
        return _members(found, options)

    def _do_zcard(self, key: bytes) -> int:
        return len(self._scores(key))

    def _do_zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(self._between(key, low, high))

    def _do_zscore(self, key: bytes, member: bytes) -> Answer:
        score = self._scores(key).get(member)
        return None if score is None else b"%.17g" % score

    def _between(self, key: bytes, low: bytes, high: bytes) -> list[tuple[float, bytes]]:
        return [
            (score, member)
            for score, member in self._ranked(key)
            if _above(score, low) and _above(-score, b"(-" + high[1:] if high[:1] == b"(" else _minus(high))
        ]

    def _do_zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> int:
        gone = [member for _, member in self._between(key, low, high)]
        return self._do_zrem(key, *gone) if gone else 0

    # The server

    def _do_time(self) -> Answer:
        now = self.now_us()
        return [b"%d" % (now // 1_000_000), b"%d" % (now % 1_000_000)]

    def _do_hello(self, *_: bytes) -> Answer:
        return {
            b"server": b"redis",
            b"version": b"7.4.0",
            b"proto": 3,
            b"mode": b"standalone",
            b"role": b"master",
        }

    def _do_ping(self) -> Status:
        return Status("PONG")

    def _do_client(self, *_: bytes) -> Status:
        return OK

    def _do_info(self, *_: bytes) -> bytes:
        return b"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"

    # Scripts

    def _do_script(self, what: bytes, text: bytes) -> bytes:
        if what.upper() != b"LOAD":
            raise RedisError("ERR only SCRIPT LOAD is simulated")
        return self._scripts.load(text)

    def _do_evalsha(self, sha: bytes, count: bytes, *rest: bytes) -> Answer:
        return self._scripts.run(sha, rest[: int(count)], rest[int(count) :])


def xread_arguments(words: tuple[bytes, ...]) -> tuple[int | None, int | None, list[bytes], list[bytes]]:
    """Parse ``XREAD``'s arguments: count, how long to block in ms, keys, and positions."""
    upper = [word.upper() for word in words]
    streams = upper.index(b"STREAMS")
    options = dict(zip(upper[:streams:2], words[1:streams:2], strict=True))
    rest = list(words[streams + 1 :])
    half = len(rest) // 2
    count, block = options.get(b"COUNT"), options.get(b"BLOCK")
    return count and int(count), block and int(block), rest[:half], rest[half:]  # type: ignore[return-value]


def _slice(items: list[T], first: int, last: int) -> list[T]:
    size = len(items)
    first = max(0, first + size if first < 0 else first)
    return items[first : (last + size if last < 0 else last) + 1]


def _members(found: list[tuple[float, bytes]], options: tuple[bytes, ...]) -> Answer:
    """Return the members, and their scores if the options ask for them."""
    if b"WITHSCORES" not in {option.upper() for option in options}:
        return [member for _, member in found]
    return [word for score, member in found for word in (member, b"%.17g" % score)]


def _minus(bound: bytes) -> bytes:
    return bound[1:] if bound[:1] == b"-" else b"-" + bound


def _above(score: float, bound: bytes) -> bool:
    return score > float(bound[1:]) if bound[:1] == b"(" else score >= float(bound)
