"""Clients in another process, event loop or thread, closed, or never closed: they work, or say what to do.

Each program here runs as one of its own, with warnings as errors, and has to end by itself.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from tests.integration.conftest import PATIENCE_S, Connect, StartWorker, answer_to

from inferfleet.producer import Fleet, SyncFleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import ClientUnusableError, ServiceUnreachableError
from inferfleet.schemas.settings import ProducerSettings

RunProgram = Callable[[str], Awaitable[str]]


@pytest.fixture
def run(environment: dict[str, str], pool: str, fleet: Fleet, tmp_path: Path) -> RunProgram:
    """Run a program to its end; returns what it printed. ``POOL`` is a pool that is declared."""

    async def run(program: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(f"POOL = {pool!r}\n{dedent(program)}")
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-W", "error", str(file)],
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, printed.decode()
        return printed.decode()

    return run


# Another process


FORKED = """
    import os
    from inferfleet.producer import SyncFleet
    from inferfleet.schemas.errors import ClientUnusableError

    def told(call):
        try:
            call()
        except ClientUnusableError as error:
            return f"in process {os.getppid()}" in str(error) and "connect after the fork" in str(error)
"""


async def test_a_forked_process_is_told_at_once_by_every_call_and_its_parent_goes_on(run: RunProgram) -> None:
    printed = await run(
        FORKED
        + """
    with SyncFleet.connect() as fleet:
        job = fleet.submit("hi", pool=POOL)
        lines = fleet.stream(job)
        next(lines)
        if (child := os.fork()) == 0:
            calls = [
                lambda: fleet.submit("hi", pool=POOL), lambda: fleet.submit_many(["hi"], pool=POOL),
                lambda: fleet.get(job), lambda: fleet.wait(job), lambda: fleet.wait_many([job]),
                lambda: fleet.cancel(job), lambda: next(fleet.stream(job)), lambda: next(lines),
            ]
            print("child", [told(call) for call in calls])
            fleet.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent", fleet.get(job).state)
    """
    )
    assert printed.splitlines() == [f"child {[True] * 8}", "parent queued"]


async def test_a_forked_process_may_end_as_any_other_does(run: RunProgram) -> None:
    """It leaves the block, runs what is registered for its end, and disturbs nobody."""
    printed = await run(
        FORKED
        + """
    with SyncFleet.connect() as fleet:
        job = fleet.submit("hi", pool=POOL)
        if (child := os.fork()) == 0:
            raise SystemExit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print("parent", fleet.get(job).state)
    """
    )
    assert printed.splitlines() == ["child 7", "parent queued"]


INTERRUPTED = """
    import os, signal, sys, threading, time
    from inferfleet.producer import SyncFleet

    class Interruption(Exception):
        pass

    def interrupt(*_):
        raise Interruption

    signal.signal(signal.SIGUSR1, interrupt)

    def interrupt_once_blocked():
        main, reader = threading.main_thread().ident, fleet.original.fleet._reader
        while sys._current_frames()[main].f_code.co_name != "wait" or not reader._heeded:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
"""


async def test_a_signal_ends_a_blocking_call_and_what_the_call_did_in_the_background(run: RunProgram) -> None:
    """Ctrl-C in a stream, or the soft time limit of a task queue. The client stays usable."""
    printed = await run(
        INTERRUPTED
        + """
    with SyncFleet.connect() as fleet:
        job = fleet.submit("hi", pool=POOL)
        for call in (
            lambda: fleet.wait(job), lambda: list(fleet.stream(job)),
            lambda: list(fleet.text_stream(job)), lambda: list(fleet.as_completed([job])),
        ):
            threading.Thread(target=interrupt_once_blocked).start()
            try:
                call()
            except Interruption:
                print(fleet.get(job).state, fleet.original.fleet._reader._heeded)
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        threading.Thread(target=interrupt_once_blocked).start()
        try:
            for line in fleet.stream(job):
                pass
        except KeyboardInterrupt:
            print("Ctrl-C")
    """
    )
    assert printed.splitlines() == ["queued False"] * 4 + ["Ctrl-C"]


async def test_a_forked_process_connects_for_itself(run: RunProgram) -> None:
    printed = await run(
        FORKED
        + """
    with SyncFleet.connect() as fleet:
        job = fleet.submit("hi", pool=POOL)
        if (child := os.fork()) == 0:
            with SyncFleet.connect() as own:
                print("child", own.submit("hi", pool=POOL).pool == POOL)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", fleet.submit("hi", pool=POOL).pool == POOL)
    """
    )
    assert printed.splitlines() == ["child True", "parent True"]


async def test_a_client_that_awaits_is_of_no_use_to_a_forked_process_either(run: RunProgram) -> None:
    printed = await run(
        FORKED
        + """
    import asyncio, multiprocessing
    from inferfleet.producer import Fleet

    def child(fleet, job):
        session = fleet.session("s")
        calls = [
            lambda: fleet.submit("hi", pool=POOL), lambda: fleet.submit_many(["hi"], pool=POOL),
            lambda: fleet.get(job), lambda: fleet.get_many([job]), lambda: fleet.wait(job),
            lambda: fleet.wait_many([job]), lambda: anext(fleet.stream(job)), lambda: fleet.cancel(job),
            lambda: fleet.workers(), lambda: fleet.sessions(), lambda: fleet.declare_pool(POOL),
            lambda: fleet.drain("w"), lambda: session.send("hi", pool=POOL), lambda: session.get(),
            lambda: session.turns(), lambda: session.state(), lambda: session.delete(),
        ]
        async def call(it):
            return await it()
        print("child", all([told(lambda: asyncio.run(call(it))) for it in calls]))

    async def main():
        async with Fleet.connect() as fleet:
            job = await fleet.submit("hi", pool=POOL)
            process = multiprocessing.get_context("fork").Process(target=child, args=(fleet, job))
            process.start()
            await asyncio.to_thread(process.join)
            print("parent", (await fleet.get(job)).state)

    asyncio.run(main())
    """
    )
    assert printed.splitlines() == ["child True", "parent queued"]


# Never closed


async def test_a_process_ends_that_never_closed_its_client(run: RunProgram) -> None:
    printed = await run(
        """
    from inferfleet.producer import SyncFleet

    connection = SyncFleet.connect()
    fleet = connection.__enter__()
    print(len(fleet.submit("hi", pool=POOL).id))
    print("end")
    """
    )
    assert printed.splitlines() == ["36", "end"]


async def test_what_was_never_closed_is_closed_when_the_process_ends(run: RunProgram) -> None:
    """The broker would log a connection that ends without a word."""
    printed = await run(
        """
    import atexit, threading
    from inferfleet.producer import SyncFleet

    fleet = SyncFleet.connect()
    fleet.submit("hi", pool=POOL)
    (thread,) = [it for it in threading.enumerate() if it.name == "inferfleet-client"]
    atexit._run_exitfuncs()
    print(thread.is_alive())
    """
    )
    assert printed.splitlines() == ["False"]


async def test_a_process_ends_while_a_thread_still_waits(run: RunProgram) -> None:
    printed = await run(
        """
    import threading
    from inferfleet.producer import SyncFleet
    from inferfleet.schemas.errors import ServiceUnreachableError

    fleet = SyncFleet.connect()
    job = fleet.submit("hi", pool=POOL)

    def wait():
        for _ in fleet.stream(job):
            read.set()

    read = threading.Event()
    threading.Thread(target=wait, daemon=True).start()
    read.wait()
    print("end")
    """
    )
    assert printed.splitlines()[0] == "end"


async def test_a_process_ends_that_never_closed_a_client_that_awaits(run: RunProgram) -> None:
    printed = await run(
        """
    import asyncio
    from inferfleet.producer import Fleet

    async def main():
        connection = Fleet.connect()
        fleet = await connection.__aenter__()
        print(len((await fleet.submit("hi", pool=POOL)).id))

    asyncio.run(main())
    print("end")
    """
    )
    assert (printed.splitlines()[0], printed.splitlines()[-1]) == ("36", "end")


async def test_a_client_outlives_the_thread_that_connected_it(run: RunProgram) -> None:
    printed = await run(
        """
    import threading
    from inferfleet.producer import SyncFleet

    held = []
    thread = threading.Thread(target=lambda: held.append(SyncFleet.connect()))
    thread.start()
    thread.join()
    print(len(held[0].submit("hi", pool=POOL).id))
    """
    )
    assert printed.splitlines() == ["36"]


# Another event loop, and another thread


async def test_a_client_says_that_it_belongs_to_another_event_loop(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hi", pool=pool)

    async def calls() -> list[object]:
        return await asyncio.gather(
            *(fleet.submit("hi", pool=pool), fleet.get(job), fleet.wait(job), fleet.drain("w")),
            *(anext(fleet.stream(job)), fleet.session("s").send("hi", pool=pool), fleet.declare_pool(pool)),
            return_exceptions=True,
        )

    told = await asyncio.to_thread(lambda: asyncio.run(calls()))
    assert [type(it) for it in told] == [ClientUnusableError] * 7
    assert "another event loop" in str(told[0])
    assert (await fleet.get(job)).pool == pool


async def test_a_blocking_client_works_inside_a_running_loop(
    producer_settings: Callable[..., ProducerSettings], pool: str, start_worker: StartWorker
) -> None:
    """It blocks that loop, as any blocking call does."""
    with SyncFleet.connect(producer_settings()) as client:
        client._call(lambda: client._fleet.declare_pool(pool))
        job = client.submit("hi", pool=pool)
        await start_worker()
        assert (await asyncio.to_thread(client.wait, job, timeout_s=PATIENCE_S)).text == answer_to(job)


# Closed


async def test_a_closed_client_says_so_to_every_call(connect: Connect, pool: str) -> None:
    job = Job(body={})
    async with connect() as fleet:
        await fleet.declare_pool(pool)
    calls: list[Callable[[], object]] = [
        lambda: fleet.submit("hi", pool=pool),
        lambda: fleet.get(job),
        lambda: fleet.wait(job),
        lambda: anext(fleet.stream(job)),
        lambda: fleet.cancel(job),
        lambda: fleet.declare_pool(pool),
        lambda: fleet.drain("w"),
        lambda: fleet.workers(),
        lambda: fleet.session("s").send("hi", pool=pool),
    ]
    for call in calls:
        with pytest.raises(ServiceUnreachableError, match="this client was closed"):
            await asyncio.wait_for(call(), PATIENCE_S)  # type: ignore[arg-type]


def test_a_closed_blocking_client_says_so_and_may_be_closed_again(
    producer_settings: Callable[..., ProducerSettings],
) -> None:
    client = SyncFleet.connect(producer_settings())
    client.close()
    client.close()
    with client:
        pass
    job = Job(body={})
    for call in (lambda: client.get(job), lambda: client.submit("hi"), lambda: next(client.stream(job))):
        with pytest.raises(ServiceUnreachableError, match="this client was closed"):
            call()


def test_closing_a_blocking_client_ends_the_waits_of_other_threads(
    producer_settings: Callable[..., ProducerSettings], pool: str
) -> None:
    client = SyncFleet.connect(producer_settings())
    client._call(lambda: client._fleet.declare_pool(pool))
    job = client.submit("hi", pool=pool)
    lines = client.stream(job)
    next(lines)
    with ThreadPoolExecutor(2) as threads:
        waits: list[Future[Any]] = [threads.submit(client.wait, job), threads.submit(next, lines)]
        client.close()
        for wait in waits:
            with pytest.raises(ServiceUnreachableError, match="closed"):
                wait.result(PATIENCE_S)


def test_what_fails_at_the_connecting_is_an_error_and_leaves_no_thread(
    producer_settings: Callable[..., ProducerSettings],
) -> None:
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        SyncFleet.connect(producer_settings(redis_url="redis://127.0.0.1:1/0"))
    assert "inferfleet-client" not in {thread.name for thread in threading.enumerate()}
