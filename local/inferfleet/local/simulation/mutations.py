"""Faults put into the product on purpose: an explorer that does not find them would not find others.

Each is a change of the text of a script or of a function, made when a process begins. The text must be there,
else the mutation fails: whoever changes that text says here what the fault would be in the new one.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import textwrap
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

from inferfleet.local.simulation.plan import Kind
from inferfleet.wire.redis.script import SCRIPTS


class MutationError(Exception):
    """The text that a mutation changes is not there."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """``where`` is ``lua:script`` or ``module:Class.method``; each pair of ``changes`` is old and new text.

    ``scenario`` is where it shows; ``within`` in how many schedules of it it must be found.
    """

    where: str
    changes: tuple[tuple[str, str], ...]
    scenario: str
    within: int
    kinds: tuple[Kind, ...] = ()
    """What shows it; nothing needs to happen if empty."""
    also: tuple[Mutation, ...] = ()
    """What would hide it otherwise, because it mends what comes of it."""

    def apply(self) -> None:
        """Put it into this process.

        Raises:
            MutationError: The text is not there, or several times.

        """
        place, _, name = self.where.partition(":")
        if place == "lua":
            self._change_script(name)
        else:
            self._change_function(place, name)
        for other in self.also:
            other.apply()

    def _changed(self, text: str) -> str:
        for old, new in self.changes:
            if text.count(old) != 1:
                raise MutationError(f"{self.where} has {text.count(old)} times the text {old!r}")
            text = text.replace(old, new)
        return text

    def _change_script(self, name: str) -> None:
        script = SCRIPTS[name]
        script.load(self._changed(script.text))

    def _change_function(self, module_name: str, name: str) -> None:
        module = importlib.import_module(module_name)
        owner: Any = module
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        old = inspect.getattr_static(owner, last)
        text = self._changed(textwrap.dedent(inspect.getsource(old)))
        code = compile(
            text, f"<mutation of {self.where}>", "exec", flags=__future__.annotations.compiler_flag
        )
        names: dict[str, Any] = {}
        exec(code, vars(module), names)  # noqa: S102 - it is the product's own text, changed
        assert isinstance(names[last], FunctionType)  # noqa: S101 - nothing else is changed so far
        setattr(owner, last, names[last])


def _lua(script: str, old: str, new: str, scenario: str, within: int, *kinds: Kind) -> Mutation:
    return Mutation(f"lua:{script}", ((old, new),), scenario, within, kinds)


def _python(where: str, old: str, new: str, scenario: str, within: int, *kinds: Kind) -> Mutation:
    return Mutation(where, ((old, new),), scenario, within, kinds)


_SETTLEMENT = "inferfleet.worker.settlement:Settlement"
_LANES = "inferfleet.producer.lanes:Lanes"

MUTATIONS: dict[str, Mutation] = {
    "append_without_fence": _lua(
        "append",
        "if r[1] ~= 'running' or r[2] ~= fence then",
        "if r[1] ~= 'running' then",
        "plain",
        1000,
        Kind.STALL,
    ),
    "finish_without_fence": _lua(
        "finish", "if r[2] ~= fence then", "if false then", "plain", 1000, Kind.STALL
    ),
    "tokens_twice": _lua(
        "append", "if last > tonumber(r[3]) then", "if tokens_entry ~= '' then", "plain", 200, Kind.REPEAT
    ),
    "lease_forgotten": _lua(
        "start", "'lease', now + tonumber(lease_ms)", "'lease', 0", "plain", 400, Kind.CUT
    ),
    "start_not_idempotent": _lua(
        "start",
        "if begun then\n    return {r[9]",
        "if false then\n    return {r[9]",
        "plain",
        80,
        Kind.REPEAT,
    ),
    "ack_before_commit": _python(
        f"{_SETTLEMENT}._end",
        "if await self._commit(run, result):",
        "delivery.ack()\n    if await self._commit(run, result):",
        "plain",
        1000,
        Kind.CRASH,
    ),
    "ack_before_dead_letter": _python(
        f"{_SETTLEMENT}.settle",
        "if await self._dead_letter(run, delivery, failure):",
        "delivery.ack()\n            if await self._dead_letter(run, delivery, failure):",
        "plain",
        100,
        Kind.CRASH,
    ),
    "acked_at_drain": _python(
        f"{_SETTLEMENT}.settle",
        "on_requeue(run, entry)\n            await delivery.requeue()",
        "on_requeue(run, entry)\n            delivery.ack()",
        "plain",
        30,
        Kind.DRAIN,
    ),
    "turn_added_twice": _lua(
        "session_append", "if s[3] == job then", "if false then", "session", 100, Kind.REPEAT
    ),
    "advance_forgets_the_next": _lua(
        "session_advance",
        "return {'over', payload, unpack(lost)}\n  end",
        "return {'over', ''}\n  end",
        "session",
        800,
        Kind.REPEAT,
    ),
    "dead_front_forgotten": _python(
        f"{_LANES}._wait_in_lane",
        "if stop or entered.unpublished or await self._may_be_stuck(entered):",
        "if False:",
        "session",
        120,
        Kind.CRASH,
    ),
    "answer_forgotten": _lua(
        "session_begin", "if s[2] == job and s[3] then", "if false then", "session", 150, Kind.CRASH
    ),
    "record_expires_first": _lua(
        "cancel",
        "result_ttl_s, tombstone_ttl_s)\nreturn",
        "result_ttl_s, 1)\nreturn",
        "expires",
        20,
    ),
    "next_turn_forgotten": _python(
        f"{_SETTLEMENT}._end_turn",
        "await self._lanes.let_next_run(job, witness=delivery.witness or job)",
        "None",
        "session",
        20,
    ),
}

HARD_TO_FIND: dict[str, Mutation] = {
    "undo_without_asking": _lua(
        "close", "if others ~= '' then", "if false then", "key", 2000, Kind.CUT, Kind.HOLE
    ),
    "begun_by_an_ended_turn": replace(
        _lua(
            "session_begin",
            "if left ~= known_left then",
            "if false then",
            "session",
            400,
            Kind.CUT,
        ),
        also=(
            _python(
                f"{_LANES}._may_be_stuck",
                "return standing.over or standing is Standing.STALLED",
                "return False",
                "session",
                400,
            ),
        ),
    ),
    "second_message_kept": _python(
        "inferfleet.worker.processor:Processor._deliver_again",
        "run.delivery.ack()",
        "pass",
        "key",
        400,
        Kind.CRASH,
    ),
    "key_freed_without_compare": _lua(
        "key_change",
        "if redis.call('GET', idempotency_key) == present_holder then",
        "if true then",
        "key",
        1000,
        Kind.CUT,
    ),
    "published_without_compare": _lua(
        "session_published",
        "if s[1] == job then",
        "if true then",
        "session",
        1000,
        Kind.CRASH,
        Kind.STALL,
    ),
    "turn_without_fence": _lua(
        "session_append", "if s[2] ~= fence then", "if false then", "session", 400, Kind.STALL
    ),
    "restored_over_an_end": _lua(
        "restore",
        "if r[1] ~= 'running' or r[2] ~= fence then",
        "if r[2] ~= fence then",
        "plain",
        1000,
        Kind.EMPTY,
        Kind.CUT,
    ),
    "expired_forgotten": _lua(
        "start",
        "(attempt == 0 or r[9] == 'expired')",
        "attempt == 0",
        "expires",
        1000,
        Kind.CRASH,
        Kind.REPEAT,
    ),
}
"""Not found so far in as many schedules as they say; each can be put in by name."""
