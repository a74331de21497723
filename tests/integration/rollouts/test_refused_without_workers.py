"""A gateway that refuses requests without workers asks for workers on the side on which the job would be."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, chat, eventually
from tests.integration.rollouts.conftest import SetWeight, until_ready

from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.rollout import RolloutRule
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import read_rules


@pytest.mark.parametrize(
    "canary_serves", [False, True], ids=["only the pool itself serves", "only the canary"]
)
async def test_a_request_is_refused_if_its_side_has_no_worker_and_accepted_if_it_has(
    fleet: Fleet,
    pipeline: CommandPipeline,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    pool: str,
    canary: str,
    set_weight: SetWeight,
    canary_serves: bool,
) -> None:
    served = canary if canary_serves else pool
    await start_worker(pool=served)
    await until_ready(fleet, served)
    await set_weight(50)
    # Listed, as it is while it has workers or a controller.
    await fleet.declare_pool(pool)

    async def followed() -> bool:
        return pool in await read_rules(pipeline)

    await eventually(followed)
    gateway = await start_gateway(refuse_without_workers=True)
    rule = RolloutRule(to=canary, weight=50)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:

        async def ask(**options: Any) -> httpx2.Response:
            return await http.post(
                "/v1/chat/completions", json={"model": pool, **chat(), "inferfleet": options}
            )

        sessions = [f"{pool}-{n}" for n in range(8)]
        for session in sessions:
            on_canary = rule.takes(Job(pool=pool, body={}, session_id=session))
            answer = await ask(session_id=session)
            if on_canary is canary_serves:
                assert (answer.status_code, answer.headers["inferfleet-workers"]) == (200, "1")
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers"), (
                    answer.text
                )

        # Without a session, the id that the gateway gives it decides.
        answers = [await ask() for _ in range(24)]
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 200:
                assert (await fleet.get(answer.headers["inferfleet-job"])).pool == served
