"""What a job counts for, and when there is enough again."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.gateway.admission import ANSWER_TOKENS, estimated_tokens
from inferfleet.schemas import Endpoint, Job
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
        (Endpoint.EMBEDDINGS, {"input": "a", "max_tokens": 10}, 0),
    ],
)
def test_a_job_counts_as_its_bytes_and_the_most_that_it_may_answer(
    endpoint: Endpoint, body: dict[str, Any], answers: int
) -> None:
    padded = {**body, "user": "x" * 4000}
    assert 0 <= estimated_tokens(Job(endpoint=endpoint, body=padded)) - answers - 1000 < 50


@pytest.mark.parametrize("previous", [0, 1, 40, 100])
@pytest.mark.parametrize("current", [0, 1, 70, 100])
@pytest.mark.parametrize("left_s", [1.0, 30.0, 59.0])
@pytest.mark.parametrize("amount", [1, 50, 100])
def test_after_the_wait_there_is_enough(previous: int, current: int, left_s: float, amount: int) -> None:
    room = 100 - amount
    wait_s = seconds_until(room, previous, left_s, current, left_s + MINUTE_S)

    # What the two windows weigh then.
    if wait_s < left_s:
        weighs = previous * (left_s - wait_s) / MINUTE_S + current
    else:
        weighs = current * max(MINUTE_S - (wait_s - left_s), 0) / MINUTE_S
    assert weighs <= room + 1e-9
    assert wait_s <= 2 * MINUTE_S
