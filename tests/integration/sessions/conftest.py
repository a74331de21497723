"""A session of its own for each test, and what its history is to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
)

from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Endpoint, Job, Result
from inferfleet.worker.engines.simulated import expected_text

SLOW = {"simulated": {"tokens": 400, "step_delay_s": 0.02}}


@pytest.fixture
def session(fleet: Fleet) -> Session:
    return fleet.session(f"s-{uuid4()}")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def conversation(
    *texts: str, after: Sequence[Mapping[str, Any]] = (), **body: Any
) -> list[Mapping[str, Any]]:
    """The history after these turns. An answer depends on everything before it."""
    messages = list(after)
    for text in texts:
        messages.append(user(text))
        answer = expected_text(Endpoint.CHAT, {"messages": messages, **body})
        messages.append({"role": "assistant", "content": answer})
    return messages


async def finished(fleet: Fleet, *jobs: Job) -> list[Result]:
    return await fleet.wait_many(jobs, timeout_s=PATIENCE_S)


async def exists(fleet: Fleet, job: Job) -> bool:
    return (await fleet.get_many([job]))[job.id] is not None


async def is_idle(session: Session) -> bool:
    record = await session.get()
    return record is None or record.owner is None
