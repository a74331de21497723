"""The jobs of a batch that has bad luck with heartbeats and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_batches.conftest import KEY_ID, order

from inferfleet.gateway import api_keys
from inferfleet.gateway.batches.jobs import NEW_KEY_S, BatchJobs
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.models import Models
from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import InvalidJobError, ServiceUnreachableError, UnknownPoolError
from inferfleet.schemas.job import Job

MODEL = "maker/model"


class PassingFleet:
    """Accepts jobs for pools that have a queue. No worker is live unless ``beating`` says so."""

    response_records = None

    def __init__(self) -> None:
        self.beating: dict[str, str] = {}
        self.queues = {"gpu"}
        self.submitted: list[Job] = []

    async def workers(self) -> list[Any]:
        return [SimpleNamespace(pool=pool, model=model, adapters=()) for model, pool in self.beating.items()]

    async def find(self, *_: Any, **__: Any) -> None:
        return None

    async def submit(self, job: Job, **_: Any) -> Job:
        if job.pool not in self.queues:
            raise UnknownPoolError("no queue")
        self.submitted.append(job)
        return job


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> PassingFleet:
    monkeypatch.setattr("inferfleet.producer.openai.models.VALID_S", 0.0)
    return PassingFleet()


def jobs(
    fleet: PassingFleet,
    pools: dict[str, str],
    *,
    keys: Any = None,
    key_id: str | None = None,
    now_ms: int = 0,
) -> BatchJobs:
    gateway = SimpleNamespace(
        trusted_fleet=fleet,
        trusted_api=OpenAIApi(cast("Any", fleet), models=Models(fleet.workers)),
        keys=keys,
        admission_of=lambda _: None,
        metrics=GatewayMetrics(CollectorRegistry()),
        batches=SimpleNamespace(now_ms=lambda: now_ms),
    )
    return BatchJobs(
        cast("Gateway", gateway), order(key_id=key_id), pool=None, pools=pools, check=lambda: None
    )


def job(model: str = MODEL) -> Job:
    return Job(endpoint=Endpoint.CHAT, body={"model": model, "messages": []}, idempotency_key="k")


@pytest.mark.parametrize("model", [MODEL, "small"])
async def test_jobs_of_a_model_go_to_its_last_pool_while_no_worker_beats(
    fleet: PassingFleet, model: str
) -> None:
    pools: dict[str, str] = {}
    fleet.beating = {model: "gpu"}
    await jobs(fleet, pools).submit(job(model))
    fleet.beating = {}

    # Also for the gateway that takes the batch over.
    await jobs(fleet, dict(pools)).submit(job(model))

    assert [(each.pool, each.body["model"]) for each in fleet.submitted] == [("gpu", model)] * 2


async def test_jobs_of_an_alias_name_no_model(fleet: PassingFleet) -> None:
    pools: dict[str, str] = {}
    for _ in range(2):
        await jobs(fleet, pools).submit(job("gpu"))

    assert [(each.pool, each.body) for each in fleet.submitted] == [("gpu", {"messages": []})] * 2


async def test_jobs_wait_if_the_queue_of_their_models_last_pool_is_gone(fleet: PassingFleet) -> None:
    fleet.queues = set()
    for model in (MODEL, "gpu"):
        with pytest.raises(ServiceUnreachableError):
            await jobs(fleet, {model: "gpu"}).submit(job(model))


async def test_a_model_that_was_never_served_is_refused(fleet: PassingFleet) -> None:
    fleet.beating = {MODEL: "gpu"}
    for model in ("maker/other", "other"):
        with pytest.raises(InvalidJobError, match="unknown"):
            await jobs(fleet, {MODEL: "gpu"}).submit(job(model))


@pytest.mark.parametrize(
    ("keys", "age_s", "refused"),
    [
        (None, 10 * NEW_KEY_S, ServiceUnreachableError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: False), 0.0, ServiceUnreachableError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: True), 0.0, InvalidJobError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: False), NEW_KEY_S, InvalidJobError),
    ],
)
async def test_only_a_key_that_was_revoked_makes_lines_fail(
    fleet: PassingFleet, keys: Any, age_s: float, refused: type[Exception]
) -> None:
    fleet.beating = {MODEL: "gpu"}
    with pytest.raises(refused, match="key"):
        await jobs(fleet, {}, keys=keys, key_id=KEY_ID, now_ms=int(age_s * 1000)).submit(job())
    assert fleet.submitted == []


async def test_a_gateway_knows_which_keys_it_has_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "READ_AGAIN_S", 0.0)
    path = tmp_path / "keys"
    now = datetime.now(UTC)
    secret = api_keys.new_secret(KEY_ID)[1]
    with api_keys.changed_keys(path) as keys:
        keys.append(api_keys.ApiKey(id=KEY_ID, tenant="a", secrets=(secret,), created_at=now))
    ring = api_keys.KeyRing(path, now=lambda: now)
    with api_keys.changed_keys(path) as keys:
        keys.clear()

    assert ring.get(KEY_ID) is None
    assert ring.has_had(KEY_ID)
    assert not ring.has_had(KEY_ID[::-1])
