"""A task group that ends although its tasks lose a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from inferfleet.wire.tasks import TaskGroup

PATIENCE_S = 30.0


async def deaf_once() -> None:
    """Lose the first cancellation, as ``asyncio.wait_for`` may before Python 3.12."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def body_fails_beside(*tasks: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Let the body of a group fail once its tasks have begun."""
    async with TaskGroup() as group:
        for task in tasks:
            group.create_task(task())
        await asyncio.sleep(0)
        raise ValueError("this one")


async def ended(task: asyncio.Task[None]) -> None:
    """Wait until a task has ended, without waiting for ever."""
    done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
    assert done


@pytest.mark.parametrize("body_ends", [False, True])
async def test_a_cancelled_group_ends(body_ends: bool) -> None:
    async def run() -> None:
        async with TaskGroup() as group:
            group.create_task(deaf_once())
            await asyncio.sleep(0)
            if not body_ends:
                await asyncio.Event().wait()

    running = asyncio.create_task(run())
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()

    await ended(running)
    assert running.cancelled()


@pytest.mark.parametrize("body_ends", [False, True])
async def test_the_error_of_a_task_ends_the_others_and_is_told(body_ends: bool) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("this one")

    async def run() -> None:
        async with TaskGroup() as group:
            group.create_task(deaf_once())
            group.create_task(fail())
            if not body_ends:
                await asyncio.Event().wait()

    running = asyncio.create_task(run())

    await ended(running)
    errors = running.exception()
    assert isinstance(errors, ExceptionGroup)
    assert [str(error) for error in errors.exceptions] == ["this one"]
    assert not running.cancelling()


async def test_the_error_of_the_body_ends_the_tasks_and_is_told() -> None:
    running = asyncio.create_task(body_fails_beside(deaf_once))

    await ended(running)
    assert isinstance(running.exception(), ExceptionGroup)


async def test_the_error_of_the_body_is_told_beside_that_of_a_task_that_ends_badly() -> None:
    async def ends_badly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("that one")

    running = asyncio.create_task(body_fails_beside(ends_badly, deaf_once))

    await ended(running)
    errors = running.exception()
    assert isinstance(errors, ExceptionGroup)
    assert {str(error) for error in errors.exceptions} == {"this one", "that one"}
    assert not running.cancelling()


async def test_a_cancellation_while_the_tasks_of_a_failed_body_end_leaves_its_error() -> None:
    running = asyncio.create_task(body_fails_beside(deaf_once))
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()

    await ended(running)
    assert isinstance(running.exception(), ExceptionGroup)
    assert running.cancelling()


async def test_a_group_waits_for_tasks_that_begin_while_it_waits() -> None:
    told: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        told.append("later")

    async with TaskGroup() as group:

        async def first() -> None:
            await asyncio.sleep(0)
            group.create_task(later())

        group.create_task(first())

    assert told == ["later"]
