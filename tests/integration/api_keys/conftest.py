"""A file of API keys, and clients that have them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.integration.conftest import PATIENCE_S

from inferfleet.gateway.api_keys import ApiKey, changed_keys, new_key_id, new_secret

Enter = Callable[[str, str], httpx2.AsyncClient]


class Keys:
    """A file of keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with changed_keys(path):
            pass

    def create(self, tenant: str, **allowed: Any) -> str:
        key_id = new_key_id()
        text, secret = new_secret(key_id)
        made_at = datetime.now(UTC)
        key = ApiKey(id=key_id, tenant=tenant, secrets=(secret,), created_at=made_at, **allowed)
        with changed_keys(self.path) as keys:
            keys.append(key)
        return text


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


@pytest.fixture
async def enter() -> AsyncIterator[Enter]:
    """Make clients of a gateway, by its address and a key."""
    made: list[httpx2.AsyncClient] = []

    def enter(url: str, key: str) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        made.append(httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, headers=headers))
        return made[-1]

    yield enter
    for client in made:
        await client.aclose()


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
