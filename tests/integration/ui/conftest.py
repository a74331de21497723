"""What the tests of the web page share: readers of a gateway's pages, with and without API keys."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest
from tests.integration.conftest import PATIENCE_S, RunningGateway, StartGateway

from inferfleet.agents import AgentRuns
from inferfleet.gateway import api_keys
from inferfleet.gateway.api_keys import ApiKey, changed_keys, new_key_id, new_secret
from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.run import ModelAnswered, ModelCalled, QuestionAsked, QuestionKind, RunState, Step

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}\x1b[31m"
"""What a prompt, a metadata value or an id may have, and a page must show as text."""

NO_JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


class Reader(httpx2.AsyncClient):
    """Reads the pages of one gateway as a browser does, without following redirects."""

    def __init__(self, gateway: RunningGateway) -> None:
        super().__init__(base_url=gateway.url, timeout=PATIENCE_S)
        self.origin = {"origin": gateway.url}

    async def page(self, path: str, status: int = 200) -> str:
        answer = await self.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    async def submit(self, path: str, **fields: str) -> httpx2.Response:
        """Send a form of one of the pages."""
        return await self.post(path, data=fields, headers=self.origin)


def assert_escaped(page: str) -> None:
    """The page shows the hostile text, and has nothing of it as markup."""
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page


async def waiting_run(fleet: Fleet, queue: str, *, tenant: str = DEFAULT_TENANT, text: str = "pay") -> str:
    """Start a run, and let it wait for approval as a runner does. Return its id."""
    runs = AgentRuns(fleet)
    run_id = await runs.start("clerk", text, queue=queue, tenant=tenant)
    function = {"name": "pay", "arguments": json.dumps({"to": text}, ensure_ascii=False)}
    calls = [{"id": "1", "type": "function", "function": function}]
    steps: list[Step] = [
        ModelCalled(job_id=NO_JOB),
        ModelAnswered(message={"role": "assistant", "content": text, "tool_calls": calls}, tokens=12),
        QuestionAsked(call="0.0", question=QuestionKind.APPROVAL),
    ]
    await runs.records.claim(run_id, fence="one", runner="one", lease_s=60)
    await runs.records.append(
        run_id, steps, fence="one", lease_s=60, position=0, moved_on=True, cost=Decimal("0.0125")
    )
    await runs.records.settle(run_id, RunState.WAITING, fence="one", told=0)
    return run_id


async def start_rollout(fleet: Fleet, pool: str) -> str:
    """Start a rollout of a pool that no worker serves. Return the canary pool."""
    canary = f"{pool}-v2"
    for name in (pool, canary):
        await fleet.declare_pool(name)
    steps = (5, 50, 100)
    await Rollouts(fleet).start(pool, to=canary, steps=steps, interval_s=3600, allow_no_workers=True)
    return canary


@pytest.fixture
async def gateway(fleet: Fleet, start_gateway: StartGateway, tmp_path: Path) -> RunningGateway:
    """A gateway without keys, which has files."""
    return await start_gateway(files_url=str(tmp_path / "files"), state_check_interval_s=0.2)


@pytest.fixture
async def reader(gateway: RunningGateway) -> AsyncIterator[Reader]:
    async with Reader(gateway) as reader:
        yield reader


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of keys, which the gateway reads again for each request."""
    monkeypatch.setattr(api_keys, "READ_AGAIN_S", 0.0)
    path = tmp_path / "keys.json"
    with changed_keys(path):
        pass
    return path


def new_key(path: Path, tenant: str) -> str:
    key_id = new_key_id()
    text, secret = new_secret(key_id)
    key = ApiKey(id=key_id, tenant=tenant, secrets=(secret,), created_at=datetime.now(UTC))
    with changed_keys(path) as keys:
        keys.append(key)
    return text


@pytest.fixture
async def guarded(
    fleet: Fleet, start_gateway: StartGateway, tmp_path: Path, key_file: Path
) -> RunningGateway:
    """A gateway with keys."""
    return await start_gateway(files_url=str(tmp_path / "files"), api_keys_file=key_file)


SignIn = Callable[[str], Awaitable[Reader]]


@pytest.fixture
async def sign_in(guarded: RunningGateway, key_file: Path) -> AsyncIterator[SignIn]:
    """Make a key for a tenant, and sign in with it."""
    async with AsyncExitStack() as stack:

        async def enter(tenant: str) -> Reader:
            reader = await stack.enter_async_context(Reader(guarded))
            key = new_key(key_file, tenant)
            answer = await reader.submit("/ui/sign-in", key=key)
            assert answer.status_code == 303, answer.text
            return reader

        yield enter
