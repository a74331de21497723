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

from inferfleet.local.simulation.plan import Event
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
    faults: tuple[Event, ...] = ()
    """What shows it, at whatever step; nothing needs to happen if empty."""
    variants: tuple[int, ...] = ()
    """Those of the scenario in which it shows; all if empty."""
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


def _lua(
    script: str, old: str, new: str, scenario: str, within: int, *faults: str, variants: tuple[int, ...] = ()
) -> Mutation:
    return _python(f"lua:{script}", old, new, scenario, within, *faults, variants=variants)


def _python(
    where: str, old: str, new: str, scenario: str, within: int, *faults: str, variants: tuple[int, ...] = ()
) -> Mutation:
    """Each fault is written as in a schedule, without its step."""
    events = tuple(Event.parse(f"0:{fault}") for fault in faults)
    return Mutation(where, ((old, new),), scenario, within, events, variants)


def _either(fault: str) -> tuple[str, str]:
    """The same fault of one worker or producer and of the other: ``w`` stands for ``w1`` and ``w2``."""
    kind, _, target = fault.partition("=")
    return f"{kind}={target[0]}1{target[1:]}", f"{kind}={target[0]}2{target[1:]}"


_SETTLEMENT = "inferfleet.worker.settlement:Settlement"
_LANES = "inferfleet.producer.lanes:LaneEntry"

_FIRST_IS_REFUSED = (4, 5, 6, 7)
"""Variants of ``key`` in which the first caller cannot publish."""

_ALL_WAIT = (0, 4, 8, 12)
"""Variants of ``session`` in which each turn waits for those before it."""

_AND_FORCED = (4, 12)
"""Those of them in which the first turn's answer cannot be continued."""

MUTATIONS: dict[str, Mutation] = {
    "append_without_fence": _lua(
        "append",
        "if r[1] ~= 'running' or r[2] ~= fence then",
        "if r[1] ~= 'running' then",
        "slow",
        30,
        *_either("stall=w,60"),
    ),
    "finish_without_fence": _lua(
        "finish", "if r[2] ~= fence then", "if false then", "slow", 40, *_either("stall=w,60")
    ),
    "tokens_twice": _lua(
        "append",
        "if last > tonumber(r[3]) then",
        "if tokens_entry ~= '' then",
        "plain",
        60,
        *_either("repeat=w-redis"),
    ),
    "lease_forgotten": _lua(
        "start", "'lease', now + tonumber(lease_ms)", "'lease', 0", "plain", 40, *_either("cut=w-broker")
    ),
    "start_not_idempotent": _lua(
        "start",
        "if begun then\n    return {r[9]",
        "if false then\n    return {r[9]",
        "plain",
        30,
        *_either("repeat=w-redis"),
    ),
    "ack_before_commit": _python(
        f"{_SETTLEMENT}._end",
        "if await self._commit(run, result):",
        "delivery.ack()\n    if await self._commit(run, result):",
        "plain",
        200,
        *_either("crash=w"),
        *_either("hole=w-redis,6"),
    ),
    "ack_before_dead_letter": _python(
        f"{_SETTLEMENT}.settle",
        "if await self._dead_letter(run, delivery, failure):",
        "delivery.ack()\n            if await self._dead_letter(run, delivery, failure):",
        "plain",
        100,
        *_either("crash=w"),
    ),
    "acked_at_drain": _python(
        f"{_SETTLEMENT}.settle",
        "on_requeue(run, entry)\n            await delivery.requeue()",
        "on_requeue(run, entry)\n            delivery.ack()",
        "plain",
        30,
        *_either("drain=w"),
    ),
    "turn_added_twice": _lua(
        "session_append", "if s[3] == job then", "if false then", "session", 100, *_either("repeat=w-redis")
    ),
    "advance_forgets_the_next": _lua(
        "session_advance",
        "return {'over', payload, warm, unpack(lost)}\n  end",
        "return {'over', '', ''}\n  end",
        "session",
        200,
        *_either("repeat=w-redis"),
        variants=_ALL_WAIT,
    ),
    "dead_front_forgotten": _python(
        f"{_LANES}._wait_in_lane",
        "if stop or entered.unpublished or await self._may_be_stuck(entered):",
        "if False:",
        "session",
        40,
        *_either("crash=p"),
    ),
    "answer_forgotten": _lua(
        "session_begin",
        "if s[2] == job and s[3] then",
        "if false then",
        "session",
        200,
        *_either("crash=w"),
        *_either("crash=w,late"),
        variants=_AND_FORCED,
    ),
    "record_expires_first": _lua(
        "cancel",
        "result_ttl_s, keep_s)\nreturn",
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
    "followers_forgotten": _python(
        f"{_SETTLEMENT}._end_turn", "await self._followers.ended(job.id)", "None", "after", 20
    ),
    "followers_forgotten_by_the_next": _python(
        f"{_SETTLEMENT}._end_turn",
        "if followed or job.id in",
        "if job.id in",
        "after",
        100,
        *_either("crash=w"),
    ),
    "undo_without_asking": _lua(
        "close", "if others ~= '' then", "if false then", "key", 40, *_either("cut=p-broker,6")
    ),
    "begun_by_an_ended_turn": replace(
        _lua(
            "session_begin",
            "if left ~= known_left then",
            "if false then",
            "session",
            100,
            *_either("cut=w-redis,late,20"),
        ),
        also=(
            _python(
                f"{_LANES}._may_be_stuck",
                "return standing.over or standing is Standing.STALLED",
                "return False",
                "session",
                60,
            ),
        ),
    ),
    "second_message_kept": _python(
        "inferfleet.worker.processor:Processor._deliver_again",
        "run.delivery.ack()",
        "pass",
        "key",
        50,
        *_either("crash=w"),
        *_either("drain=w"),
    ),
    "revival_unnoticed": _python(
        "inferfleet.producer.submission:Submission._claim_and_record",
        "revived = not recorded.holder.startswith(claimed.holder)",
        "revived = False",
        "key",
        100,
        "hole=p2-redis,1",
        variants=_FIRST_IS_REFUSED,
    ),
    "index_forgotten": _python(
        "inferfleet.wire.redis.records:JobRecords.create",
        "entered = self.open_jobs.enter(job)",
        "entered = asyncio.get_running_loop().create_future(); entered.set_result(None)",
        "plain",
        100,
        "delete",
        *_either("crash=w"),
    ),
    "swept_only_if_waiting": _python(
        "inferfleet.worker.sweep:Sweep._look_at",
        "if max(job.held_ms",
        "if its.attempt == '0' and max(job.held_ms",
        "plain",
        100,
        "delete",
        *_either("crash=w"),
    ),
    "key_freed_without_compare": _lua(
        "key_change",
        "if redis.call('GET', idempotency_key) == present_holder then",
        "if true then",
        "key",
        300,
        *_either("cut=p-redis,late,6"),
        *_either("cut=p-broker,6"),
    ),
}

HARD_TO_FIND: dict[str, Mutation] = {
    "published_without_compare": _lua(
        "session_published",
        "if s[1] == job then",
        "if true then",
        "session",
        1000,
        *_either("crash=p"),
        *_either("stall=w,20"),
    ),
    "turn_without_fence": _lua(
        "session_append", "if s[2] ~= fence then", "if false then", "session", 400, *_either("stall=w,60")
    ),
    "restored_over_an_end": _lua(
        "restore",
        "if r[1] ~= 'running' or r[2] ~= fence then",
        "if r[2] ~= fence then",
        "plain",
        1000,
        "empty",
        *_either("cut=w-redis,late,20"),
    ),
    "expired_forgotten": _lua(
        "start",
        "(attempt == 0 or r[9] == 'expired')",
        "attempt == 0",
        "expires",
        1000,
        *_either("crash=w"),
        *_either("repeat=w-redis"),
    ),
}
"""Not found so far, in 300 schedules each at least; each can be put in by name."""
