"""API keys, and the file that has them, hashed.

A key is ``ifk-ID-SECRET``. The file has the SHA-256 of the whole key, which is enough because the secret is
256 random bits: nobody can try them all. A slow hash or a salt would protect nothing, and cost every request.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import PoolName
from inferfleet.schemas.limits import MOST
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.problems import describe
from inferfleet.schemas.shares import LEAST_WEIGHT, MOST_WEIGHT

logger = logging.getLogger(__name__)

MARK: Final = "ifk"
"""How every key begins, so that scanners of source code find it."""

READ_AGAIN_S: Final = 1.0
"""How old the keys may be that a request is checked against."""

_NOBODY: Final = hashlib.sha256(b"").hexdigest()

TenantName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits, dots, underscores and dashes; 1 to 63 characters."""

Limit = Annotated[int, Field(ge=1, le=MOST), NUMBER]


class _Model(BaseModel):
    # A misspelt limit must not be no limit.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class HashedSecret(_Model):
    """The SHA-256 of a whole key, and until when the key counts; without ``until``, until it is revoked."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    until: AwareDatetime | None = None


class ApiKey(_Model):
    """A key: whose it is, and what its bearer may do. Without a limit, there is none.

    While it is rotated it has two secrets. ``max_unfinished_jobs`` is how many of its jobs may be waiting or
    running at the same time. Beyond ``guaranteed_tokens_per_minute``, its jobs get a lower priority. With
    fair shares, a tenant of the ``weight`` 2 gets twice as much as one of the weight 1, or none.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    tenant: TenantName
    secrets: Annotated[tuple[HashedSecret, ...], Field(min_length=1)]
    pools: tuple[PoolName, ...] | None = None
    max_priority: Annotated[int, Field(ge=0, le=9), NUMBER] = 9
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    guaranteed_tokens_per_minute: Limit | None = None
    max_unfinished_jobs: Annotated[int, Field(ge=1, le=100_000), NUMBER] | None = None
    weight: Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT), NUMBER] | None = None
    created_at: AwareDatetime

    def opened_by(self, presented: str, *, now: datetime) -> bool:
        """Return whether this is the key, in the same time whether or not it is."""
        digest = _digest(presented)
        found = False
        for secret in self.secrets:
            live = secret.until is None or now < secret.until
            found |= hmac.compare_digest(digest, secret.sha256) and live
        return found


class KeysDocument(_Model):
    """What is in the file."""

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def new_secret(key_id: str) -> tuple[str, HashedSecret]:
    """Make a key's text, which nobody can read again, and what is kept of it."""
    text = f"{MARK}-{key_id}-{secrets.token_urlsafe(32)}"
    return text, HashedSecret(sha256=_digest(text))


def new_key_id() -> str:
    """Make the id of a new key."""
    return secrets.token_hex(6)


def read_keys(path: Path) -> KeysDocument:
    """Read the file.

    Raises:
        ConfigurationError: It cannot be read, or is no file of keys.

    """
    return _parse(_bytes_of(path), path)


@contextmanager
def changed_keys(path: Path) -> Generator[list[ApiKey]]:
    """Let the block change the list of keys, and replace the file by what it has become.

    Others that change it wait meanwhile. Readers see it before or after. A file that does not exist has no
    keys.

    Raises:
        ConfigurationError: The file cannot be read or written.

    """
    try:
        path = path.resolve()
        folder = os.open(path.parent, os.O_RDONLY)
    except (OSError, RuntimeError) as error:
        # Before Python 3.13 a loop of links is a RuntimeError.
        raise _unusable(path, error, _CHOOSE) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = list(read_keys(path).keys) if path.exists() else []
        yield keys
        try:
            _replace(path, KeysDocument(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True) + "\n")
        except OSError as error:
            raise _unusable(path, error, _CHOOSE) from error
    finally:
        os.close(folder)


class KeyRing:
    """The keys of a gateway, which reads the file again while it is used.

    A file that has become unreadable leaves the keys as they were, and is an error in the log: a mistake in
    it must not lock everybody out.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime]) -> None:
        self._path = path
        self._now = now
        self._content = _bytes_of(path)
        self._keys = _by_id(_parse(self._content, path).keys)
        self._ids = set(self._keys)
        """Of all keys that were ever read."""
        self._until = 0.0
        self._problem = ""

    def find(self, presented: str) -> ApiKey | None:
        """Return the key with this text."""
        self._refresh()
        _, _, rest = presented.partition("-")
        key = self._keys.get(rest.partition("-")[0])
        if key is None:
            # As long as with one.
            hmac.compare_digest(_digest(presented), _NOBODY)
            return None
        return key if key.opened_by(presented, now=self._now()) else None

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key with this id; ``None`` if there is none any more."""
        self._refresh()
        return self._keys.get(key_id)

    def has_had(self, key_id: str) -> bool:
        """Return whether there has been a key with this id since the gateway started."""
        return key_id in self._ids

    def _refresh(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._until:
            return
        self._until = now + READ_AGAIN_S
        try:
            content = _bytes_of(self._path)
            if content != self._content:
                self._keys = _by_id(_parse(content, self._path).keys)
                self._ids |= self._keys.keys()
                self._content = content
                logger.info("read %d API keys from %s", len(self._keys), self._path)
        except ConfigurationError as error:
            if str(error) != self._problem:
                logger.error("%s; the keys that were read before still count", error)
            self._problem = str(error)
        else:
            self._problem = ""


def _by_id(keys: Sequence[ApiKey]) -> dict[str, ApiKey]:
    return {key.id: key for key in keys}


def _digest(presented: str) -> str:
    return hashlib.sha256(presented.encode()).hexdigest()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from error


def _parse(content: bytes, path: Path) -> KeysDocument:
    try:
        document = KeysDocument.model_validate_json(content)
    except ValidationError as error:
        problem = describe(error, whole="the content")
        raise ConfigurationError(f"{path} is no file of API keys: {problem}") from error
    if len(_by_id(document.keys)) < len(document.keys):
        raise ConfigurationError(f"{path} is no file of API keys: two have the same id")
    return document


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            if path.exists():
                # The gateway may be another user, who may read it.
                present = path.stat()
                os.fchmod(file.fileno(), present.st_mode & 0o777)
                with suppress(PermissionError):
                    os.fchown(file.fileno(), present.st_uid, present.st_gid)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_CHOOSE: Final = "choose one that can be written, in a folder that exists"


def _unusable(
    path: Path, error: OSError | RuntimeError, what_to_do: str = "`inferfleet keys create` makes one"
) -> ConfigurationError:
    problem = error.strerror if isinstance(error, OSError) else error
    return ConfigurationError(
        f"the file of API keys, {path}, cannot be read or written ({problem}); {what_to_do} "
        "(INFERFLEET_API_KEYS_FILE)"
    )
