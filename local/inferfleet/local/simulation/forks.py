"""Plays many schedules: a world is built once, and each schedule plays in a fork of it.

A fork takes some milliseconds where connecting a fleet takes a hundred, and nothing of one schedule is left
for the next.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import selectors
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from inferfleet.local.simulation.mutations import HARD_TO_FIND, MUTATIONS
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.play import Played, play
from inferfleet.local.simulation.world import World


@dataclass(slots=True)
class _Base:
    """A process in which a world stands ready."""

    pid: int
    plans: Any
    results: Any


class Players:
    """``at_once`` processes that play schedules of the product, or of a mutation of it."""

    def __init__(self, bases: list[_Base]) -> None:
        self._bases = bases

    def play(self, plan: Plan) -> Played:
        """Play one schedule."""
        return next(iter(self.play_all([plan])))

    def play_all(self, plans: Iterable[Plan]) -> Iterator[Played]:
        """Play schedules, and give what came of each as soon as it is known, in any order."""
        waiting = iter(plans)
        with selectors.DefaultSelector() as selector:
            busy = 0
            for base in self._bases:
                if (plan := next(waiting, None)) is not None:
                    _send(base.plans, plan)
                    selector.register(base.results, selectors.EVENT_READ, base)
                    busy += 1
            while busy:
                for key, _ in selector.select():
                    base = key.data
                    played = pickle.load(base.results)  # noqa: S301 - it comes from a fork of this process
                    if (plan := next(waiting, None)) is not None:
                        _send(base.plans, plan)
                    else:
                        selector.unregister(base.results)
                        busy -= 1
                    yield played

    def trace(self, plan: Plan) -> None:
        """Play a schedule and print each step."""
        _send(self._bases[0].plans, (plan, True))
        pickle.load(self._bases[0].results)  # noqa: S301


@contextmanager
def players(*, at_once: int = 1, mutation: str | None = None) -> Generator[Players]:
    """Have processes that play schedules while the block runs."""
    bases = [_start(mutation) for _ in range(at_once)]
    try:
        yield Players(bases)
    finally:
        for base in bases:
            _send(base.plans, None)
            base.plans.close()
            base.results.close()
            os.waitpid(base.pid, 0)


def _send(pipe: Any, what: Any) -> None:
    pickle.dump(what, pipe)
    pipe.flush()


def _start(mutation: str | None) -> _Base:
    (plans_in, plans_out), (results_in, results_out) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(plans_in)
        os.close(results_out)
        return _Base(pid, os.fdopen(plans_out, "wb"), os.fdopen(results_in, "rb"))
    os.close(plans_out)
    os.close(results_in)
    return _leave_after(partial(_serve, mutation, plans_in, results_out))


def _leave_after(work: Callable[[], None]) -> NoReturn:
    """Be of no use for anything else: not even cleaning up."""
    status = 1
    try:
        work()
        status = 0
    except BrokenPipeError:
        # Nobody wants to know any more.
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _serve(mutation: str | None, plans_in: int, results_out: int) -> None:
    logging.disable(logging.CRITICAL)
    gc.disable()
    if mutation is not None:
        (MUTATIONS | HARD_TO_FIND)[mutation].apply()
    world = World()
    world.build()
    gc.freeze()
    with os.fdopen(plans_in, "rb") as plans, os.fdopen(results_out, "wb") as results:
        while True:
            plan = pickle.load(plans)  # noqa: S301 - it comes from the process that this is a fork of
            if plan is None:
                return
            show = isinstance(plan, tuple)
            pid = os.fork()
            if not pid:
                _leave_after(partial(_play, results, world, plan[0] if show else plan, trace=show))
            os.waitpid(pid, 0)


def _play(results: Any, world: World, plan: Plan, *, trace: bool) -> None:
    _send(results, play(world, plan, trace=trace))
