"""Which pool a request goes to that names a model, while a rollout splits the jobs of a pool."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import pytest

from inferfleet.producer.openai.models import Models
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import Job
from inferfleet.schemas.rollout import RolloutRule

AT = datetime(2026, 1, 1, tzinfo=UTC)


def worker(pool: str, model: str) -> Heartbeat:
    return Heartbeat(
        worker_id=f"{pool}-{model}",
        pool=pool,
        phase=WorkerPhase.READY,
        engine="simulated",
        model=model,
        version="1",
        running=0,
        waiting=0,
        kv_cache_usage=0.0,
        tokens_generated=0,
        finished_per_s=0.0,
        started_at=AT,
        seen_at=AT,
    )


def models_of(*alive: Heartbeat, weight: float) -> Models:
    async def workers() -> list[Heartbeat]:
        return list(alive)

    async def rules() -> dict[str, RolloutRule]:
        return {"chat": RolloutRule(to="chat-v2", weight=weight)}

    return Models(workers, rules=rules, pool="none")


@pytest.mark.parametrize(
    ("stable", "weight", "pool"),
    [
        pytest.param(["same"], 5, "chat", id="both serve it"),
        pytest.param(["same"], 0, "chat", id="aborting"),
        pytest.param(["other"], 5, "chat-v2", id="the pool itself would answer with another model"),
        pytest.param(["other"], 0, "chat-v2", id="aborting, and only the canary pool serves it"),
        pytest.param(["other"], 100, "chat", id="no job stays in the pool itself"),
        pytest.param([], 100, "chat", id="the pool itself has no workers any more"),
    ],
)
async def test_a_model_is_never_answered_by_another_one(
    stable: Collection[str], weight: float, pool: str
) -> None:
    alive = [worker("chat-v2", "same"), *(worker("chat", model) for model in stable)]
    models = models_of(*alive, weight=weight)
    assert (await models.route("same", pool=None)).pool == pool
    assert (await models.get("same"))["pool"] == pool


@pytest.mark.parametrize(("weight", "workers"), [(100, 1), (5, 1), (0, 0)])
async def test_the_workers_of_the_canary_pool_count_as_they_may_get_the_job(
    weight: float, workers: int
) -> None:
    """Else a gateway that refuses without workers refuses all jobs once the pool itself has none."""
    models = models_of(worker("chat-v2", "same"), weight=weight)
    assert (await models.route("chat", pool=None)).workers == workers
    assert (await models.route(None, pool="chat")).workers == workers


@pytest.mark.parametrize("weight", [0, 5, 100])
@pytest.mark.parametrize("served", [(), ("chat",), ("chat-v2",), ("chat", "chat-v2")])
async def test_a_job_is_judged_by_the_workers_of_the_side_on_which_it_is(
    weight: float, served: tuple[str, ...]
) -> None:
    models = models_of(*(worker(pool, "same") for pool in served), weight=weight)
    rule = RolloutRule(to="chat-v2", weight=weight)
    route = await models.route(None, pool="chat")
    jobs = [Job(pool="chat", body={}) for _ in range(200)]
    assert {rule.takes(job) for job in jobs} == ({weight == 100} if weight in {0, 100} else {False, True})
    for job in jobs:
        side = "chat-v2" if rule.takes(job) else "chat"
        assert bool(route.of(job).workers) is (side in served)


@pytest.mark.parametrize(("stable", "pool"), [((), "chat-v2"), (("french",), "chat")])
async def test_an_adapter_is_asked_for_where_a_worker_has_it(stable: tuple[str, ...], pool: str) -> None:
    alive = [
        worker("chat-v2", "same").model_copy(update={"adapters": ("french", "german")}),
        worker("chat", "same").model_copy(update={"adapters": stable}),
    ]
    models = models_of(*alive, weight=5)
    assert (await models.route("french", pool=None)).pool == pool
    assert (await models.get("french"))["pool"] == pool
    assert (await models.route("german", pool=None)).pool == "chat-v2"
