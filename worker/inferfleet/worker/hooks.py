"""Hooks that watch attempts: metrics, log lines, and others, each in a file of its own.

An observer derives from ``Hooks`` and overrides the events that it needs; ``assembly.py`` lists all
observers. A hook runs inside the attempt: it must be quick, must not raise, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from typing_extensions import override

from inferfleet.schemas import Failure, Result
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.worker.broker import Delivery
from inferfleet.worker.job_run import JobRun

F = TypeVar("F", bound=Callable[..., None])


class Hooks:
    """Ignores every event."""

    def on_start(self, run: JobRun, body: Mapping[str, Any]) -> None:
        """The engine is about to get a job, with this request."""

    def on_tokens(self, run: JobRun, tokens: int) -> None:
        """The engine has generated so many tokens."""

    def on_engine_end(self, run: JobRun, seconds: float) -> None:
        """The engine has finished or stopped an attempt that it has had for so long."""

    def on_preempt(self, run: JobRun) -> None:
        """A running job has lost its slot to a more urgent one, and waits for another slot."""

    def on_waste(self, run: JobRun, tokens: int, reason: str) -> None:
        """So many tokens, perhaps 0, have to be generated again."""

    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        """An attempt requeued its job, for a retry or for another worker."""

    def on_engine_death(self, run: JobRun) -> None:
        """The engine died during an attempt, which is charged. ``on_requeue`` follows."""

    def on_end(self, run: JobRun | None, result: Result) -> None:
        """A result was committed. ``run`` is ``None`` if no message of the job was readable."""

    def on_dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> None:
        """A message was dead-lettered. ``run`` is ``None`` if it could not be read as a job."""

    def on_republish(self, jobs: int) -> None:
        """So many jobs were published again, because their messages were lost."""

    def on_flush(self, tokens: int, seconds: float) -> None:
        """The journals of all due runs were written, with so many tokens; it took so long."""


class AllHooks(Hooks):
    """Passes each event to several hooks, in their order."""

    def __init__(self, hooks: Iterable[Hooks]) -> None:
        hooks = tuple(hooks)
        # Bound once, and only overridden methods: tokens arrive thousands of times a second.
        self._on_start = _overriding(Hooks.on_start, (hook.on_start for hook in hooks))
        self._on_tokens = _overriding(Hooks.on_tokens, (hook.on_tokens for hook in hooks))
        self._on_engine_end = _overriding(Hooks.on_engine_end, (hook.on_engine_end for hook in hooks))
        self._on_preempt = _overriding(Hooks.on_preempt, (hook.on_preempt for hook in hooks))
        self._on_waste = _overriding(Hooks.on_waste, (hook.on_waste for hook in hooks))
        self._on_requeue = _overriding(Hooks.on_requeue, (hook.on_requeue for hook in hooks))
        self._on_engine_death = _overriding(Hooks.on_engine_death, (hook.on_engine_death for hook in hooks))
        self._on_end = _overriding(Hooks.on_end, (hook.on_end for hook in hooks))
        self._on_dead_letter = _overriding(Hooks.on_dead_letter, (hook.on_dead_letter for hook in hooks))
        self._on_republish = _overriding(Hooks.on_republish, (hook.on_republish for hook in hooks))
        self._on_flush = _overriding(Hooks.on_flush, (hook.on_flush for hook in hooks))

    @override
    def on_start(self, run: JobRun, body: Mapping[str, Any]) -> None:
        for hook in self._on_start:
            hook(run, body)

    @override
    def on_tokens(self, run: JobRun, tokens: int) -> None:
        for hook in self._on_tokens:
            hook(run, tokens)

    @override
    def on_engine_end(self, run: JobRun, seconds: float) -> None:
        for hook in self._on_engine_end:
            hook(run, seconds)

    @override
    def on_preempt(self, run: JobRun) -> None:
        for hook in self._on_preempt:
            hook(run)

    @override
    def on_waste(self, run: JobRun, tokens: int, reason: str) -> None:
        for hook in self._on_waste:
            hook(run, tokens, reason)

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        for hook in self._on_requeue:
            hook(run, entry)

    @override
    def on_engine_death(self, run: JobRun) -> None:
        for hook in self._on_engine_death:
            hook(run)

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        for hook in self._on_end:
            hook(run, result)

    @override
    def on_dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> None:
        for hook in self._on_dead_letter:
            hook(run, delivery, failure)

    @override
    def on_republish(self, jobs: int) -> None:
        for hook in self._on_republish:
            hook(jobs)

    @override
    def on_flush(self, tokens: int, seconds: float) -> None:
        for hook in self._on_flush:
            hook(tokens, seconds)


def _overriding(nothing: Callable[..., None], hooks: Iterable[F]) -> tuple[F, ...]:
    return tuple(hook for hook in hooks if getattr(hook, "__func__", None) is not nothing)
