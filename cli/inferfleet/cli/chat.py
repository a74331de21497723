"""``inferfleet chat``: a conversation at the prompt, or through a pipe."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console

from inferfleet.cli.failing import INTERRUPTED
from inferfleet.cli.options import PoolOption, PriorityOption, not_empty, producer_settings
from inferfleet.cli.printing import print_stream
from inferfleet.cli.terminal import err, line, out
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_making import JobOptions, read_priority
from inferfleet.schemas.errors import JobFailedError
from inferfleet.schemas.job import DEFAULT_POOL, Job
from inferfleet.schemas.printable import printable


def command(
    *,
    session: Annotated[
        str | None,
        typer.Option(help="Session to continue; a new one by default.", callback=not_empty),
    ] = None,
    pool: PoolOption = DEFAULT_POOL,
    priority: PriorityOption = "normal",
    system: Annotated[str | None, typer.Option(help="System message for a new session.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum number of tokens per answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
) -> None:
    """Chat with a model: each line that you type is a turn, and its answer is printed as it arrives.

    Ctrl-C during an answer stops it and leaves no trace of the turn in the session. Ctrl-C at the prompt
    exits with 130; Ctrl-D and /exit exit with 0. When stdin is a pipe, every line is a turn, stdout has only
    the answers, and Ctrl-C exits with 130. At the end, stderr names the command that continues the session.
    """
    given = {"max_tokens": max_tokens, "temperature": temperature}
    chat = Chat(
        session_id=session or str(uuid4()),
        body={name: value for name, value in given.items() if value is not None},
        options={"pool": pool, "priority": read_priority(priority), "stream": True},
    )
    try:
        asyncio.run(chat.run(system))
    finally:
        if chat.begun and (chat.interactive or chat.interrupted or sys.exc_info()[0] is not None):
            err(f"inferfleet: continue with `inferfleet chat --session {line(chat.session_id)}`\n")
    if chat.interrupted:
        raise typer.Exit(INTERRUPTED)
    if chat.failed and not chat.interactive:
        raise typer.Exit(1)


class Chat:
    """One run of the command."""

    def __init__(self, *, session_id: str, body: dict[str, Any], options: JobOptions) -> None:
        self.interactive = sys.stdin.isatty()
        self.failed = False
        self.begun = False
        """Whether there is a session to continue."""
        self.interrupted = False
        """Whether Ctrl-C ended the chat. At a terminal, Ctrl-C during an answer stops only that answer."""
        self.session_id = session_id
        self._body = body
        self._options = options
        self._console = Console(stderr=True)
        self._interrupt = asyncio.Event()

    async def run(self, system: str | None) -> None:
        """Take turns until the input ends."""
        async with Fleet.connect(producer_settings()) as fleet:
            session = fleet.session(self.session_id)
            record = await session.get()
            begun = self.begun = record is not None and record.turns > 0
            if self.interactive:
                turns = record.turns if record else 0
                greeting = f"session {line(self.session_id)}, {turns} turns; /exit leaves"
                self._console.print(greeting, style="dim", markup=False, highlight=False)
            if system and begun:
                err("inferfleet: the session has turns already, so --system has no effect on it\n")
            instructions = [{"role": "system", "content": system}] if system and not begun else []
            with self._interrupts():
                lines = _lines_of_stdin()
                while (words := await self._next(lines)) is not None and words.strip() != "/exit":
                    if not words.strip():
                        continue
                    messages = [*instructions, {"role": "user", "content": words.strip()}]
                    self.begun = True
                    job = await session.send(messages, body=self._body, **self._options)
                    instructions = [] if await self._answer(fleet, job) else instructions
                    if self.interrupted:
                        break

    async def _next(self, lines: asyncio.Queue[str | None]) -> str | None:
        """Return the next line; ``None`` at the end of the input, or after Ctrl-C."""
        if self.interactive:
            self._console.print("[bold]you>[/bold] ", end="")
            self._interrupt.clear()
        reading = asyncio.create_task(lines.get())
        if await self._came_before_ctrl_c(reading):
            words = reading.result()
        else:
            reading.cancel()
            self.interrupted = True
            words = None
        if words is None and self.interactive:
            self._console.print()
        return words

    async def _answer(self, fleet: Fleet, job: Job) -> bool:
        """Print the answer as it arrives. Return false if the turn failed."""
        printing = asyncio.create_task(print_stream(fleet, job.id, as_json=False))
        if not await self._came_before_ctrl_c(printing):
            self.interrupted = not self.interactive
            await fleet.cancel(job)
        try:
            await printing
        except JobFailedError as error:
            self.failed = True
            out("\n")
            sys.stdout.flush()
            words = printable(str(error)) if self._console.is_terminal else str(error)
            self._console.print(words, style="red", markup=False, highlight=False)
            return False
        return True

    async def _came_before_ctrl_c(self, task: asyncio.Task[Any]) -> bool:
        """Wait for a task or Ctrl-C. An earlier Ctrl-C counts too, unless a prompt was printed since."""
        interrupt = asyncio.create_task(self._interrupt.wait())
        await asyncio.wait({task, interrupt}, return_when=asyncio.FIRST_COMPLETED)
        interrupt.cancel()
        return task.done()

    @contextmanager
    def _interrupts(self) -> Generator[None]:
        """Make Ctrl-C an event, instead of the end of the process."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt.set)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def _lines_of_stdin() -> asyncio.Queue[str | None]:
    """Read lines in a thread: nothing else works for a terminal, a pipe and a file alike.

    The thread ends with the process. It uses its own file object, so that it holds no lock of ``sys.stdin``.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        # RuntimeError: the loop is closed, because the user has left.
        with suppress(RuntimeError), open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
            for number, line in enumerate(stdin):
                # Editors on Windows begin a file with a byte order mark.
                encoding = "utf-8" if number else "utf-8-sig"
                loop.call_soon_threadsafe(lines.put_nowait, line.decode(encoding, errors="replace"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    Thread(target=read, daemon=True).start()
    return lines
