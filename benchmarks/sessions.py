"""What a turn costs in Redis, by the length of its session.

    python benchmarks/sessions.py [--turns 10 100 2000 20000] [--rounds 300] [--services native]

For each length: a session with so many turns, then ``rounds`` turns through the whole life of a lane
(enter, published, begin, append, advance), one at a time. Prints the median and the 95th percentile in
microseconds, what reading the history for a prompt costs, and the ratio to the shortest session.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TypeVar

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.schemas import Job, Usage
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.connection import command_pipeline, open_redis
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.session_histories import AppendStatus, BeginStatus, SessionHistories
from inferfleet.wire.redis.session_lanes import EnterStatus, Payload, SessionLanes
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.wire.tasks import cancel_and_wait

TEXT = "what a person or a model says in a turn, some two hundred characters of it, " * 3
TOKENS = 120
LIMIT_TOKENS = 4000
WARM_UP = 20
REUSED_FROM = 1000

T = TypeVar("T")
Timings = dict[str, list[float]]


class Length:
    """Sessions of one length. A short one is made anew for each turn, so that it stays short."""

    def __init__(self, pipeline: CommandPipeline, turns: int) -> None:
        settings = ServiceSettings(max_session_bytes=2**40)
        self._lanes = SessionLanes(pipeline=pipeline, settings=settings)
        self._histories = SessionHistories(pipeline=pipeline, settings=settings)
        self._records = SessionRecords(pipeline=pipeline, settings=settings)
        self._turns = turns
        self._past = [_turn(new_job_id()) for _ in range(turns)]
        self._session_id = ""
        self.timings: Timings = {}

    async def take_turn(self, *, read: bool) -> None:
        """One turn at the end of a session; with ``read``, also the reads of a prompt."""
        if not self._session_id or self._turns < REUSED_FROM:
            self._session_id = f"bench-{new_job_id()}"
            await self._records.create(
                self._session_id, self._past, state=None, idle_ttl_s=600, max_history_tokens=None
            )
        job = Job(session_id=self._session_id, body={"messages": [{"role": "user", "content": TEXT}]})
        started = time.perf_counter()
        assert (await self._lanes.enter(Payload(job, "bench"))).status is EnterStatus.RUN
        await self._lanes.published(job)
        fence = Fence(job.id, 1)
        assert (await self._histories.begin(job, fence=fence)).status is BeginStatus.BEGUN
        turn = _turn(job.id)
        append = self._histories.append(job, fence=fence, turn=turn, answer=b"{}", state=None)
        assert await self._timed("append", append) is AppendStatus.OK
        assert await self._lanes.advance(job) is None
        self._note("whole turn", time.perf_counter() - started)
        if read:
            await self._timed("read all", self._histories.turns(self._session_id))
            limited = self._histories.turns(self._session_id, max_tokens=LIMIT_TOKENS)
            await self._timed(f"read {LIMIT_TOKENS} tokens", limited)

    async def _timed(self, step: str, work: Awaitable[T]) -> T:
        started = time.perf_counter()
        result = await work
        self._note(step, time.perf_counter() - started)
        return result

    def _note(self, step: str, seconds: float) -> None:
        self.timings.setdefault(step, []).append(seconds)


async def run(url: str, turns: list[int], rounds: int) -> None:
    """Measure all lengths in turn, so that the machine's other work meets each of them, and print a table."""
    async with open_redis(url) as client:
        pipeline = command_pipeline(client, patience_s=None)
        running = asyncio.create_task(pipeline.run())
        lengths = {count: Length(pipeline, count) for count in turns}
        for number in range(rounds + WARM_UP):
            for length in lengths.values():
                await length.take_turn(read=number % 10 == 0)
                if number == WARM_UP:
                    length.timings.clear()
        await cancel_and_wait(running)
    first = next(iter(lengths.values()))
    print(f"{'turns':>7}  {'step':<18} {'median µs':>10} {'p95 µs':>10} {'ratio':>7}")
    for count, length in lengths.items():
        for step, values in length.timings.items():
            median = statistics.median(values)
            p95 = statistics.quantiles(values, n=20)[-1]
            ratio = median / statistics.median(first.timings[step])
            print(f"{count:>7}  {step:<18} {median * 1e6:>10.0f} {p95 * 1e6:>10.0f} {ratio:>7.2f}")


def _turn(job_id: str) -> Turn:
    messages = ({"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT})
    usage = Usage(prompt_tokens=TOKENS, completion_tokens=TOKENS // 2)
    return Turn(job_id=job_id, messages=messages, at=datetime.now(UTC), usage=usage, tokens=TOKENS)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 100, 2000, 20_000])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--services", type=ServicesChoice, default=ServicesChoice.NATIVE)
    options = parser.parse_args()
    with running_services(options.services) as services:
        asyncio.run(run(services.redis_url, options.turns, options.rounds))


if __name__ == "__main__":
    main()
