"""Plays many schedules: a world is built once, and each fork of it plays a few in a row.

A fork costs as much as a schedule, most of it for memory that the two no longer share. Connecting a fleet
costs five times as much.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import selectors
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NoReturn, cast

from inferfleet.local.simulation.mutations import HARD_TO_FIND, MUTATIONS
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.play import Played, play_in_a_row
from inferfleet.local.simulation.world import World

IN_A_ROW = 25
"""How many schedules a fork plays, each in the world that has healed from those before it."""

Plans = tuple[Plan, ...]
"""Schedules that are played one after the other in one world."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Play these in a row, and return the result of each; or, with ``trace``, the steps of the last one."""

    plans: Plans
    trace: bool = False


@dataclass(slots=True)
class _Base:
    """A process with a world that is ready."""

    pid: int
    asked: Any
    answers: Any


class Players:
    """Processes that play schedules of the product or of a mutation, managed by one process in between."""

    def __init__(self, bases: list[_Base]) -> None:
        self._aside, *self._bases = bases

    def play(self, *plans: Plan) -> Played:
        """Play schedules in a row up to one that breaks a promise, and return the result of the last."""
        _send(self._aside.asked, _Asked(plans))
        return _received(self._aside)[-1]

    def trace(self, *plans: Plan) -> list[str]:
        """Play schedules in a row, and describe each step in which the last plan could act."""
        _send(self._aside.asked, _Asked(plans, trace=True))
        return cast("list[str]", pickle.load(self._aside.answers))  # noqa: S301 - as below

    def play_all(self, plans: Iterable[Plan], *, in_a_row: int = IN_A_ROW) -> Iterator[Played]:
        """Play schedules, some in a row, and yield the result of each, in any order.

        Schedules behind one that breaks a promise are played in a new world.
        """
        waiting = iter(plans)
        rests = deque[Plans]()

        def some() -> Plans:
            return rests.popleft() if rests else tuple(islice(waiting, in_a_row))

        with selectors.DefaultSelector() as selector:
            idle, asked = deque(self._bases), dict[int, Plans]()
            while True:
                while idle and (row := some()):
                    base = idle.popleft()
                    _send(base.asked, _Asked(row))
                    asked[base.pid] = row
                    selector.register(base.answers, selectors.EVENT_READ, base)
                if not asked:
                    return
                for key, _ in selector.select():
                    base = key.data
                    played = _received(base)
                    selector.unregister(base.answers)
                    idle.append(base)
                    if rest := asked.pop(base.pid)[len(played) :]:
                        rests.append(rest)
                    yield from played


@contextmanager
def players(*, at_once: int = 1, mutation: str | None = None) -> Generator[Players]:
    """Run processes that play schedules while the block runs."""
    bases = [_start(mutation) for _ in range(1 + at_once)]
    try:
        yield Players(bases)
    finally:
        for base in bases:
            _send(base.asked, None)
            base.asked.close()
            base.answers.close()
            os.waitpid(base.pid, 0)


def _send(pipe: Any, what: Any) -> None:
    pickle.dump(what, pipe)
    pipe.flush()


def _received(base: _Base) -> list[Played]:
    return cast("list[Played]", pickle.load(base.answers))  # noqa: S301 - it comes from a fork of this process


def _start(mutation: str | None) -> _Base:
    (asked_in, asked_out), (answers_in, answers_out) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(asked_in)
        os.close(answers_out)
        return _Base(pid, os.fdopen(asked_out, "wb"), os.fdopen(answers_in, "rb"))
    os.close(asked_out)
    os.close(answers_in)
    return _leave_after(partial(_serve, mutation, asked_in, answers_out))


def _leave_after(work: Callable[[], None]) -> NoReturn:
    """Do the work, then exit the process without any cleanup."""
    status = 1
    try:
        work()
        status = 0
    except BrokenPipeError:
        # Nobody reads the result any more.
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _serve(mutation: str | None, asked_in: int, answers_out: int) -> None:
    logging.disable(logging.CRITICAL)
    gc.disable()
    if mutation is not None:
        (MUTATIONS | HARD_TO_FIND)[mutation].apply()
    world = World()
    world.build()
    gc.freeze()
    with os.fdopen(asked_in, "rb") as questions, os.fdopen(answers_out, "wb") as answers:
        while True:
            asked = pickle.load(questions)  # noqa: S301 - it comes from the process that this is a fork of
            if asked is None:
                return
            pid = os.fork()
            if not pid:
                _leave_after(partial(_answer, answers, world, asked))
            if os.waitpid(pid, 0)[1]:
                raise RuntimeError("a schedule was not played to its end")


def _answer(answers: Any, world: World, asked: _Asked) -> None:
    played = list(play_in_a_row(world, asked.plans))
    steps = (world.loop.trace or [])[: played[-1].steps]
    _send(
        answers,
        [" ".join(map(str, (f"{at:.3f}", name, *what))) for at, name, what in steps]
        if asked.trace
        else played,
    )
