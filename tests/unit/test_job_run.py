"""One job while it runs: which tokens the journal has, and what stops it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, Job, Usage
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.wire.redis.attempts import Fence, Started, StartStatus
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.worker.broker import Delivery
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.stop_switch import Interruption


def chunk(*tokens: int, text: str = "", index: int = 0, delta: dict[str, Any] | None = None) -> TokenChunk:
    return TokenChunk(index=index, token_ids=tokens, text=text, delta=delta)


def make_run(**options: Any) -> JobRun:
    delivery = Delivery(
        subscription=None,  # type: ignore[arg-type]
        tag=1,
        body=b"",
        message_id=None,
        reply_to="from-the-message",
        headers={},
    )
    return JobRun(job=Job(body={}, **options), delivery=delivery)


# Tokens


def test_tokens_are_handed_out_once_and_joined() -> None:
    run = make_run()
    for part in (chunk(1, 2, text="a"), chunk(3, text="b")):
        run.add(part)
    assert (run.answer.tokens, run.answer.has_fresh_tokens) == (3, True)
    assert run.answer.take_pending() == PendingTokens(0, (chunk(1, 2, 3, text="ab"),))
    assert run.answer.take_pending() == PendingTokens(3)
    run.add(chunk(4, text="c"))
    assert run.answer.take_pending() == PendingTokens(3, (chunk(4, text="c"),))
    assert (run.answer.tokens, run.answer.has_fresh_tokens) == (4, False)
    assert run.answer.journaled == (chunk(1, 2, 3, text="ab"), chunk(4, text="c"))


def test_only_neighbours_of_one_choice_are_joined() -> None:
    run = make_run()
    parts = [chunk(1, text="a"), chunk(2, text="x", index=1), chunk(3, text="y", index=1), chunk(4, text="b")]
    for part in parts:
        run.add(part)
    assert run.answer.take_pending().chunks == (
        chunk(1, text="a"),
        chunk(2, 3, text="xy", index=1),
        chunk(4, text="b"),
    )


def test_a_delta_stands_by_itself() -> None:
    """Tool calls cannot be joined like text."""
    run = make_run()
    call = chunk(2, delta={"tool_calls": [{"index": 0}]})
    for part in (chunk(1, text="a"), call, call, chunk(3, text="b"), chunk(4, text="c")):
        run.add(part)
    assert run.answer.take_pending().chunks == (
        chunk(1, text="a"),
        call,
        call,
        chunk(3, 4, text="bc"),
    )


def test_a_resumed_run_counts_on_from_what_the_journal_has() -> None:
    run = make_run()
    run.answer.resume((chunk(1, 2), chunk(3)))
    assert (run.answer.tokens, run.answer.tokens_generated, run.answer.token_ids) == (3, 0, (1, 2, 3))
    run.add(chunk(4, 5, text="de"))
    assert (run.answer.tokens, run.answer.tokens_generated) == (5, 2)
    assert run.answer.take_pending() == PendingTokens(3, (chunk(4, 5, text="de"),))
    assert [token for part in run.answer.journaled for token in part.token_ids] == [1, 2, 3, 4, 5]


def test_a_granted_start_names_the_fence_and_whom_to_tell() -> None:
    run = make_run()
    assert (run.attempt, run.reply_to) == (0, "from-the-message")
    run.start(Started(StartStatus.STARTED, Fence("t", 3), tokens=0, charged=2, reply_to="from-the-record"))
    assert (run.attempt, run.charged, run.reply_to) == (3, 2, "from-the-record")


def test_the_time_to_the_first_token_is_that_of_the_first() -> None:
    run = make_run()
    assert run.first_token_s is None
    run.add(chunk(1))
    first = run.first_token_s
    assert first is not None
    run.add(chunk(2))
    assert run.first_token_s == first


# Interruptions


@pytest.mark.parametrize("reason", [reason for reason in Interruption if reason is not Interruption.TIMEOUT])
async def test_an_interruption_ends_the_block_and_says_why(reason: Interruption) -> None:
    run = make_run()

    async def work() -> None:
        async with run.stop_switch.armed(run.job.timeout_s):
            running.set()
            await asyncio.sleep(3600)

    running = asyncio.Event()
    task = asyncio.create_task(work())
    await running.wait()
    run.interrupt(reason)
    await asyncio.wait_for(task, PATIENCE_S)
    assert run.stop_switch.reason is reason


async def test_an_interruption_before_the_block_keeps_it_from_starting_to_wait() -> None:
    run = make_run()
    run.interrupt(Interruption.HAND_OVER)
    async with asyncio.timeout(PATIENCE_S), run.stop_switch.armed(run.job.timeout_s):
        await asyncio.sleep(3600)
    assert run.stop_switch.reason is Interruption.HAND_OVER


async def test_the_jobs_own_limit_ends_the_block() -> None:
    run = make_run(timeout_s=0.01)
    async with asyncio.timeout(PATIENCE_S), run.stop_switch.armed(run.job.timeout_s):
        await asyncio.sleep(3600)
    assert run.stop_switch.reason is Interruption.TIMEOUT


async def test_the_first_reason_counts() -> None:
    run = make_run()
    run.interrupt(Interruption.CANCELLED)
    run.interrupt(Interruption.HAND_OVER)
    async with asyncio.timeout(PATIENCE_S), run.stop_switch.armed(run.job.timeout_s):
        await asyncio.sleep(3600)
    assert run.stop_switch.reason is Interruption.CANCELLED


@pytest.mark.parametrize("reason", [Interruption.CANCELLED, Interruption.INTERRUPTED])
async def test_an_order_that_comes_before_the_pause_does_not_get_lost(reason: Interruption) -> None:
    run = make_run()
    async with run.stop_switch.armed(run.job.timeout_s):
        pass
    run.interrupt(reason)
    await asyncio.wait_for(run.pause(3600), PATIENCE_S)


async def test_a_pause_behind_a_generation_that_was_stopped_lasts() -> None:
    run = make_run()
    async with run.stop_switch.armed(run.job.timeout_s):
        run.interrupt(Interruption.SUPERSEDED)
        await asyncio.sleep(3600)
    pausing = asyncio.create_task(run.pause(3600))
    await asyncio.sleep(0)
    assert run.paused
    run.wake()
    await asyncio.wait_for(pausing, PATIENCE_S)


async def test_errors_in_the_block_pass_through() -> None:
    run = make_run()
    with pytest.raises(ZeroDivisionError):
        async with run.stop_switch.armed(run.job.timeout_s):
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with run.stop_switch.armed(run.job.timeout_s):
            raise TimeoutError("not ours")
    assert run.stop_switch.reason is None


async def test_a_block_that_times_out_while_it_is_stopped_is_stopped() -> None:
    run = make_run(timeout_s=0.01)
    async with asyncio.timeout(PATIENCE_S), run.stop_switch.armed(run.job.timeout_s):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise TimeoutError("the engine's own, while it aborted") from None
    assert run.stop_switch.reason is Interruption.TIMEOUT


async def test_a_cancelled_task_is_cancelled_and_not_interrupted() -> None:
    run = make_run(timeout_s=60)

    async def work() -> None:
        async with run.stop_switch.armed(run.job.timeout_s):
            running.set()
            await asyncio.sleep(3600)

    running = asyncio.Event()
    task = asyncio.create_task(work())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.stop_switch.reason is None


def test_the_head_of_an_answer_is_written_once_in_an_attempt_and_not_with_its_end() -> None:
    run = make_run()
    assert run.answer.take_pending() == PendingTokens(0)
    run.answer.read_prompt(model="m", tokens=7)
    run.add(chunk(1))
    written = run.answer.take_pending()
    assert written.head == AnswerHead(endpoint=Endpoint.CHAT, model="m", prompt_tokens=7)
    run.add(chunk(2))
    assert run.answer.take_pending().head is None

    later = make_run()
    later.answer.resume(written.chunks, written.head)
    assert later.answer.usage == Usage(prompt_tokens=7, completion_tokens=1)
    later.answer.read_prompt(model="m", tokens=7)
    later.add(chunk(3))
    assert later.answer.take_pending(ended=True).head is None
