"""How many jobs of a batch are in flight."""

from __future__ import annotations

import asyncio

import pytest

from inferfleet.producer import window as windows
from inferfleet.producer.window import FIRST_LIMIT, Window


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(windows, "LONGEST_PAUSE_S", 0.0)


async def turns(number: int = 3) -> None:
    """Let everything happen that is due."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_it_doubles_until_the_queue_is_full_for_the_first_time_and_then_grows_by_one_a_round() -> None:
    window = Window(1000)
    for _ in range(FIRST_LIMIT):
        entered = await window.enter()
        window.accepted()
    assert window.limit == 2 * FIRST_LIMIT

    window.refused(entered, full=True)
    assert window.limit == FIRST_LIMIT
    for _ in range(FIRST_LIMIT + 1):
        window.accepted()
    assert window.limit == FIRST_LIMIT + 1
    window.close()


async def test_after_many_refusals_it_doubles_again_until_it_is_near_to_where_it_was() -> None:
    window = Window(1000)
    while window.limit < 512:
        await window.enter()
        window.accepted()
        window.leave()
    # A queue that others have filled, while jobs of this batch end.
    for _ in range(9):
        window.refused(await window.enter(), full=True)
        await turns()
        await window.enter()
        window.accepted()
        window.leave()
    assert window.limit < 5

    for _ in range(20):
        window.accepted()
    assert window.limit > 20
    for _ in range(1000):
        window.accepted()
    assert 30 < window.limit < 256
    window.close()


async def test_refusals_of_one_round_halve_it_once() -> None:
    window = Window(8)
    rounds = [await window.enter() for _ in range(8)]

    for entered in rounds:
        window.refused(entered, full=True)

    assert (window.limit, window.in_flight) == (4, 0)
    window.refused(await window.enter(), full=True)
    assert window.limit == 2
    window.close()


async def test_it_never_closes_and_never_passes_its_most() -> None:
    window = Window(4)
    for _ in range(5):
        window.refused(await window.enter(), full=True)
    assert window.limit == 1
    for _ in range(100):
        window.accepted()
    assert window.limit == 4


async def test_an_outage_pauses_it_and_does_not_halve_it() -> None:
    window = Window(8)
    window.refused(await window.enter(), full=False)
    assert window.limit == 8
    await window.enter()


async def test_a_refused_job_goes_before_those_that_have_not_been_tried() -> None:
    window = Window(1)
    order: list[str] = []

    async def go(name: str, *, again: bool = False) -> None:
        await window.enter(again=again)
        order.append(name)
        window.leave()

    entered = await window.enter()
    new = [asyncio.create_task(go(name)) for name in ("a", "b")]
    await turns()
    window.refused(entered, full=True)
    await asyncio.gather(go("refused", again=True), *new)

    assert order == ["refused", "a", "b"]


async def test_a_cancelled_job_leaves_its_place_to_others() -> None:
    window = Window(1)
    await window.enter()
    waiting = asyncio.create_task(window.enter())
    given = asyncio.create_task(window.enter())
    await turns()
    waiting.cancel()
    await turns()
    window.leave()
    # It has its place by now, and does not know of it yet.
    given.cancel()
    await turns()

    assert waiting.cancelled()
    assert given.cancelled()
    assert window.in_flight == 0
