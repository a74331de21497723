"""The file of API keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inferfleet.gateway.api_keys import (
    ApiKey,
    HashedSecret,
    KeyRing,
    changed_keys,
    new_key_id,
    new_secret,
    read_keys,
)
from inferfleet.schemas.errors import ConfigurationError

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def made(key_id: str | None = None, *, until: datetime | None = None) -> tuple[str, ApiKey]:
    key_id = key_id or new_key_id()
    text, secret = new_secret(key_id)
    secret = HashedSecret(sha256=secret.sha256, until=until)
    return text, ApiKey(id=key_id, tenant="acme", secrets=(secret,), created_at=NOW)


def test_commands_that_run_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def create(_: int) -> str:
        key = made()[1]
        with changed_keys(file) as keys:
            keys.append(key)
        return key.id

    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(create, range(40)))

    assert {key.id for key in read_keys(file).keys} == ids
    assert list(tmp_path.iterdir()) == [file]


def test_a_change_keeps_a_link_and_the_rights_of_the_file(tmp_path: Path) -> None:
    file, link = tmp_path / "real" / "keys.json", tmp_path / "keys.json"
    file.parent.mkdir()
    link.symlink_to(file)
    with changed_keys(link):
        pass
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)

    with changed_keys(link) as keys:
        keys.append(made()[1])

    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert len(read_keys(link).keys) == 1


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with changed_keys(file) as keys:
        keys.append(made()[1])
    before = file.read_bytes()

    def fail() -> None:
        with changed_keys(file) as keys:
            keys.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert file.read_bytes() == before
    for unusable in (file / "x", tmp_path / "nowhere" / "keys.json"):
        with (
            pytest.raises(
                ConfigurationError, match=r"written \(.+\); choose one that can be written, in a folder"
            ),
            changed_keys(unusable),
        ):
            pass


def test_a_file_that_is_no_file_of_keys_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with pytest.raises(ConfigurationError, match="`inferfleet keys create` makes one"):
        read_keys(file)
    file.write_text("{")
    with pytest.raises(ConfigurationError, match=r"is no file of API keys: the content: is not JSON"):
        read_keys(file)


async def test_only_the_whole_text_of_a_live_key_opens(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    (good, key), (old, expired) = made(), made(until=NOW)
    (last, lasting) = made(until=NOW + timedelta(seconds=1))
    with changed_keys(file) as keys:
        keys += [key, expired, lasting]
    ring = KeyRing(file, now=lambda: NOW)

    assert ring.find(good) == key
    assert ring.find(last) == lasting
    others = ["", "ifk", f"ifk-{key.id}", f"ifk-{key.id}-", good[:-1], f"{good}x", good.upper(), old]
    swapped = good.replace(key.id, lasting.id)
    assert [ring.find(text) for text in (*others, swapped, key.secrets[0].sha256)] == [None] * 10


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 2}', '{"keys": [{"id": "000000000000"}]}', '{"key": []}'],
)
def test_a_file_that_is_none_of_keys_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="is no file of API keys"):
        read_keys(file)


def test_two_keys_with_one_id_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with changed_keys(file) as keys:
        keys += [made("000000000000")[1], made("000000000000")[1]]
    with pytest.raises(ConfigurationError, match="two have the same id"):
        read_keys(file)
