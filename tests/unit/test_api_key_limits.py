"""What a job counts for, and when there is enough again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferfleet.gateway.admission import ANSWER_TOKENS, estimated_tokens
from inferfleet.producer.job_making import make_job
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.passages import Retrieve
from inferfleet.schemas.work import MOST_TOKENS
from inferfleet.wire.redis.shared_limits import MINUTE_S, seconds_until

CHAT: dict[str, Any] = {"messages": []}


@pytest.mark.parametrize(
    ("endpoint", "body", "answers"),
    [
        (Endpoint.CHAT, CHAT, ANSWER_TOKENS),
        (Endpoint.CHAT, {**CHAT, "max_tokens": 10}, 10),
        (Endpoint.CHAT, {**CHAT, "max_tokens": 10, "max_completion_tokens": 20, "n": 3}, 60),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 10, "n": 2}, 40),
        (Endpoint.COMPLETIONS, {"prompt": [[1], [2]], "max_tokens": 10}, 20),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2], "max_tokens": 10}, 10),
        (Endpoint.COMPLETIONS, {"prompt": ["a"], "prompt_embeds": ["b", "c"], "max_tokens": 10}, 30),
        # Read as engines read them.
        (Endpoint.CHAT, {**CHAT, "max_tokens": "100.0", "n": "2.0"}, 200),
        # No member of a completion, so nothing has checked it.
        (Endpoint.COMPLETIONS, {"prompt": "a", "max_tokens": 10, "max_completion_tokens": -5000}, 10),
        (Endpoint.COMPLETIONS, {"prompt": "a", "max_tokens": 10, "max_completion_tokens": "abc"}, 10),
        (Endpoint.EMBEDDINGS, {"input": "a", "max_tokens": 10}, 0),
    ],
)
def test_a_job_counts_as_its_bytes_and_the_most_that_it_may_answer(
    endpoint: Endpoint, body: dict[str, Any], answers: int
) -> None:
    padded = {**body, "user": "x" * 4000}
    assert 0 <= estimated_tokens(Job(endpoint=endpoint, body=padded)) - answers - 1000 < 50


def test_a_job_that_retrieves_counts_its_passages_too() -> None:
    job = Job(body=CHAT, retrieve=Retrieve(index="docs", k=8))
    assert estimated_tokens(job) - estimated_tokens(Job(body=CHAT)) == 2000


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(st.integers(0, 9), max_size=2),
    st.sampled_from(["1", "2.0", "9" * 4300, "-1", " 3", "1e3", "abc"]),
)


@given(
    endpoint=st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS]),
    members=st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens", "n", "prompt", "prompt_embeds", "echo"]),
        values,
    ),
)
def test_every_valid_job_counts(endpoint: Endpoint, members: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}]} if endpoint is Endpoint.CHAT else {"prompt": "a"}
    try:
        job = make_job({**asked, **members}, {"endpoint": endpoint}, max_body_bytes=100_000)
    except InvalidJobError:
        return

    assert 1 <= estimated_tokens(job) < 2 * MOST_TOKENS


@pytest.mark.parametrize("previous", [0, 1, 40, 100])
@pytest.mark.parametrize("current", [0, 1, 70, 100])
@pytest.mark.parametrize("left_s", [1.0, 30.0, 59.0])
@pytest.mark.parametrize("amount", [1, 50, 100])
def test_after_the_wait_there_is_enough(previous: int, current: int, left_s: float, amount: int) -> None:
    """And not before."""
    room = 100 - amount

    def weighs(in_s: float) -> int:
        """What the two windows weigh then, in whole milliseconds as in Redis."""
        left_ms = round(1000 * (left_s - in_s))
        if left_ms >= 0:
            return math.floor(previous * left_ms / 60_000) + current
        return math.floor(current * max(60_000 + left_ms, 0) / 60_000)

    wait_s = seconds_until(room, previous, left_s, current, left_s + MINUTE_S)
    assert weighs(wait_s) <= room
    assert wait_s == 0 or weighs(wait_s - 0.01) > room
    assert wait_s <= (1 if amount == 1 else 2) * MINUTE_S + 0.001
