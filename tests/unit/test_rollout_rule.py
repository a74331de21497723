"""Which jobs the rule of a rollout puts into the canary pool."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import pytest

from inferfleet.gateway.admission import Admission
from inferfleet.gateway.api_keys import ApiKey, new_key_id, new_secret
from inferfleet.producer.openai.refusals import RefusedError
from inferfleet.schemas import Job
from inferfleet.schemas.rollout import RolloutRule


def test_all_turns_of_a_session_are_on_one_side_and_those_at_a_small_weight_stay_at_a_greater_one() -> None:
    jobs = [Job(body={}, session_id=f"s{n % 100}") for n in range(1000)]
    taken = [
        {job.session_id for job in jobs if RolloutRule(to="v2", weight=weight).takes(job)}
        for weight in (0, 5, 25, 50, 100)
    ]
    assert taken[0] == set()
    assert len(taken[-1]) == 100
    assert all(less < more for less, more in pairwise(taken))
    for weight in (5, 50):
        rule = RolloutRule(to="v2", weight=weight)
        sides = {(job.session_id, rule.takes(job)) for job in jobs}
        assert len(sides) == 100


def test_the_same_idempotency_key_is_on_the_same_side_and_that_of_another_tenant_need_not_be() -> None:
    rule = RolloutRule(to="v2", weight=50)

    def side(key: str, tenant: str) -> bool:
        return rule.takes(Job(body={}, idempotency_key=key, tenant=tenant))

    keys = [f"k{n}" for n in range(50)]
    assert [side(key, "a") for key in keys] == [side(key, "a") for key in keys]
    assert [side(key, "a") for key in keys] != [side(key, "b") for key in keys]


def test_another_canary_gets_other_jobs() -> None:
    jobs = [Job(body={}) for _ in range(100)]
    sides = [[RolloutRule(to=to, weight=50).takes(job) for job in jobs] for to in ("v2", "v3")]
    assert sides[0] != sides[1]


def test_a_job_that_starts_later_stays_where_it_is() -> None:
    later = Job(body={}, not_before=datetime(2030, 1, 1, tzinfo=UTC))
    assert not RolloutRule(to="v2", weight=100).takes(later)


def test_a_key_needs_the_right_on_the_pool_that_was_asked_for_and_none_on_the_canary() -> None:
    key_id = new_key_id()
    _, secret = new_secret(key_id)
    key = ApiKey(id=key_id, tenant="acme", secrets=(secret,), pools=("chat",), created_at=datetime.now(UTC))
    admission = Admission(key, cast("Any", None), limited=lambda _: None, demoted=lambda: None)
    admission.check([Job(pool="chat-v2", submitted_to="chat", body={})])
    with pytest.raises(RefusedError, match="may not use the pool 'chat-v2'"):
        admission.check([Job(pool="chat", submitted_to="chat-v2", body={})])
