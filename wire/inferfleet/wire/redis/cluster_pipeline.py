"""Sends the commands of many tasks to the nodes of a Redis Cluster, each on its own pipelined connection.

Commands for keys of one slot run in the given order, also when the slot moves to another node meanwhile.
Commands for different slots have no order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError

from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.wire.home import Home
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis import refusals
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.cluster import ClusterClient, slot_of
from inferfleet.wire.redis.pipeline import AWAY, CommandPipeline, ScriptsForgottenError, Waiting
from inferfleet.wire.redis.pipelined_connection import pack
from inferfleet.wire.redis.script import Argument
from inferfleet.wire.tasks import TaskGroup

logger = logging.getLogger(__name__)

_WITHOUT_KEY: Final = frozenset({"TIME", "PING"})

_REDIRECTIONS: Final = 8
"""After so many redirections in a row a command pauses: the nodes do not agree yet."""

_PAUSE_S: Final = 0.1

_ASKING: Final = pack(("ASKING",))


@dataclass(slots=True, eq=False)
class _Routed(Waiting):
    """A command with the slot of its keys."""

    slot: int = 0
    redirections: int = 0


class ClusterPipeline(CommandPipeline):
    """Routes each command to the pipeline of the node that has its keys.

    Patience and refusals are those of a single server, for each node by itself.
    """

    ordered = False

    def __init__(
        self,
        cluster: ClusterClient,
        *,
        patience_s: float | None,
        clock: RedisClock | None = None,
        home: Home | None = None,
    ) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._home = home
        self._closed = False
        self.clock = clock or RedisClock()
        self._pipelines: dict[str, _NodePipeline] = {}
        self._running: TaskGroup | None = None
        self.outage = _Outages(self._pipelines)
        self.on_connect = []

    @property
    def connections(self) -> int:  # type: ignore[override]
        """How many connections were made, and how often a slot was found elsewhere.

        Either may lead to a Redis that does not have earlier writes.
        """
        return self._cluster.changes + sum(node.connections for node in self._pipelines.values())

    @property
    def answers(self) -> int:  # type: ignore[override]
        """How many commands the nodes have answered, redirections included."""
        return sum(node.answers for node in self._pipelines.values())

    @property
    def answer_seconds(self) -> float:  # type: ignore[override]
        """How long these took in all."""
        return sum(node.answer_seconds for node in self._pipelines.values())

    @property
    def circuit_open(self) -> bool:
        """Whether no connection to a node is attempted for a moment."""
        return any(node.circuit_open for node in self._in_use())

    async def servers(self) -> Sequence[CommandPipeline]:
        """Return a pipeline for each node that has keys."""
        try:
            await self._cluster.refresh()
        except (RedisError, OSError) as error:
            if refusals.is_refusal(error):
                raise refusals.refused(error) from error
            raise ServiceUnreachableError(f"Redis does not answer ({error})") from error
        return [self._node(name) for name in self._cluster.masters]

    @property
    def refused(self) -> ServiceRefusedError | None:  # type: ignore[override]
        """Why a node refuses what is needed, while it does."""
        return next((node.refused for node in self._in_use() if node.refused is not None), None)

    async def execute(self, *command: Argument) -> Any:
        """Run one command and return its reply.

        ``WAIT`` goes to all nodes in use, and its reply is the lowest of theirs; 0 if one has been replaced
        meanwhile.
        """
        if command[0] != "WAIT":
            return await self.enqueue(*command)
        if not self._cluster.learned:
            await self.servers()
        changes = self._cluster.changes
        nodes = [node.enqueue(*command) for node in self._in_use()]
        replies: list[Any] = await asyncio.gather(*nodes, return_exceptions=True)
        if failed := [reply for reply in replies if isinstance(reply, BaseException)]:
            if self._cluster.changes == changes:
                raise failed[0]
            return 0
        return min(replies, default=0)

    def _queue(self, command: tuple[Argument, ...], packed: bytes, answer: asyncio.Future[Any]) -> None:
        slot = slot_of(_key(command))
        self._node(self._cluster.owner(slot)).take(
            _Routed(command[0], packed, answer, time.monotonic(), slot=slot)
        )

    async def run(self) -> None:
        """Send and receive until cancelled. The owner's task group runs this."""
        try:
            async with TaskGroup() as self._running:
                for node in self._pipelines.values():
                    self._running.create_task(node.run())
                try:
                    await asyncio.Event().wait()
                finally:
                    self._closed = True
        finally:
            self._running = None
            self.close()

    def close(self) -> None:
        """Fail all commands that wait, and those that come later."""
        self._closed = True
        for node in self._pipelines.values():
            node.close()

    def redirect(self, node: _NodePipeline, waiting: _Routed, error: AskError) -> None:
        """Send a command to the node that has its slot; if the slot has moved, those behind it, too."""
        target = self._node(self._cluster.redirected(node.name, error))
        waiting.redirections += 1
        if waiting.redirections > _REDIRECTIONS:
            waiting.redirections = 0
            asyncio.get_running_loop().call_later(_PAUSE_S, target.take, waiting)
        elif isinstance(error, MovedError):
            target.take(waiting, *node.withdraw(lambda slot: slot == waiting.slot))
        else:
            # The slot is about to move, and this key has gone ahead. Only this command is meant.
            target.take(_ignored(_ASKING), waiting)

    def look_soon(self) -> None:
        """Look again in the background."""
        if self._running is not None and not self._closed:
            self._running.create_task(self.look_again())

    async def look_again(self) -> None:
        """Learn which node has which slot, and move the commands that wait at another."""
        try:
            await self._cluster.refresh()
        except (RedisError, OSError) as error:
            logger.debug("cannot learn the nodes of the cluster: %s", error)
            return
        for name, node in list(self._pipelines.items()):
            for waiting in node.withdraw(lambda slot: self._cluster.owner(slot) != name):  # noqa: B023
                self._node(self._cluster.owner(waiting.slot)).take(waiting)
            if name not in self._cluster.masters:
                node.leave()

    def _in_use(self) -> list[_NodePipeline]:
        """Return the pipelines that were used, without those of nodes that have no slots any more."""
        return [self._pipelines[name] for name in self._cluster.masters if name in self._pipelines]

    def _node(self, name: str) -> _NodePipeline:
        if name not in self._pipelines:
            self._pipelines[name] = node = _NodePipeline(
                self._cluster.node(name),
                name=name,
                cluster=self,
                patience_s=self._patience_s,
                clock=self.clock,
            )
            node.on_connect = self.on_connect
            if self._closed:
                node.close()
            elif self._running is not None:
                self._running.create_task(node.run())
        return self._pipelines[name]


class _NodePipeline(CommandPipeline):
    """The pipeline of one node."""

    def __init__(self, client: Any, *, name: str, cluster: ClusterPipeline, **options: Any) -> None:
        super().__init__(client, **options)
        self.name = name
        self._cluster = cluster

    def take(self, *waiting: Waiting) -> None:
        """Queue commands."""
        self._unsent.extend(waiting)
        self._send_soon()
        if self._closed:
            self.close()

    def withdraw(self, concerned: Callable[[int], bool]) -> list[_Routed]:
        """Take the commands back whose slot is ``concerned`` and that have no answer yet, in their order.

        The answers to those that were sent are ignored. This node may run one of them nevertheless, which
        does no harm: every command may be sent twice.
        """
        taken = [
            waiting
            for waiting in (*self._unanswered, *self._unsent, *self._refused)
            if isinstance(waiting, _Routed) and concerned(waiting.slot)
        ]
        for waiting in self._unanswered:
            waiting.in_doubt = True
        self._forget(taken)
        return taken

    def leave(self) -> None:
        """Fail what only this node could answer: it has no keys any more."""
        self.outage.ended()
        left = [one for one in (*self._unanswered, *self._unsent) if not isinstance(one, _Routed)]
        for waiting in left:
            if not waiting.answer.done():
                waiting.answer.set_exception(
                    ServiceUnreachableError(f"the node {self.name} has no part of the Redis Cluster any more")
                )
        self._forget(left)

    def _forget(self, forgotten: Sequence[Waiting]) -> None:
        """Send these no more; ignore the answers to those that were sent."""
        gone = set(forgotten)
        self._unanswered = deque(
            _ignored(waiting.packed) if waiting in gone else waiting for waiting in self._unanswered
        )
        self._unsent = deque(waiting for waiting in self._unsent if waiting not in gone)
        self._refused -= gone

    async def _converse(self) -> None:
        try:
            await super()._converse()
        except ScriptsForgottenError:
            raise
        except AWAY:
            # Before a command is given up: another node may have its slot.
            await self._cluster.look_again()
            raise

    def _take_back(self) -> None:
        # What is ignored has been sent to another node since.
        self._unanswered = deque(waiting for waiting in self._unanswered if waiting.verb)
        self._unsent = deque(waiting for waiting in self._unsent if waiting.verb)
        super()._take_back()

    def _check(self, refusal: ResponseError) -> None:
        if not isinstance(refusal, AskError):
            super()._check(refusal)

    def _refuse(self, waiting: Waiting, refusal: ResponseError) -> None:
        if isinstance(refusal, AskError) and isinstance(waiting, _Routed):
            self._cluster.redirect(self, waiting, refusal)
            return
        if isinstance(refusal, ClusterDownError):
            # Perhaps only this node has lost the others.
            self._cluster.look_soon()
        super()._refuse(waiting, refusal)


class _Outages(Outage):
    """The outages of all nodes together."""

    def __init__(self, pipelines: Mapping[str, CommandPipeline]) -> None:
        self._pipelines = pipelines

    @property
    def count(self) -> int:  # type: ignore[override]
        return sum(pipeline.outage.count for pipeline in self._pipelines.values())

    @property
    def seconds(self) -> float:
        return sum(pipeline.outage.seconds for pipeline in self._pipelines.values())


def _key(command: tuple[Argument, ...]) -> str | bytes:
    """Return the key that decides the node of a command; any node will do for one without."""
    if command[0] in _WITHOUT_KEY:
        return b""
    key = command[3 if command[0] in {"EVAL", "EVALSHA"} else 1]
    return key if isinstance(key, bytes) else str(key)


def _ignored(packed: bytes) -> Waiting:
    """Make a command without a verb, whose answer nobody reads."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    answer.cancel()
    return Waiting("", packed, answer, time.monotonic())
