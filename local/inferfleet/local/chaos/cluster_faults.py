"""The faults of three RabbitMQ nodes and three Redis servers with Sentinels.

One at a time, so that two of three are there. The seed shuffles them; each comes once before any comes again.

Some make a service forget what it has answered. Before the next of these, every job that was there at the
last one must have ended: what one service forgets, the other brings back, and nothing brings back what both
have forgotten. The other faults go first meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Any, Final

import redis
from aio_pika.exceptions import AMQPError
from redis.backoff import NoBackoff
from redis.retry import Retry

from inferfleet.local.chaos.appended import AppendedResults
from inferfleet.local.chaos.cluster import DOWN_AFTER_MS, SIZE, Cluster
from inferfleet.local.chaos.collect import read_records
from inferfleet.local.chaos.harness import PATIENCE_S, POLL_INTERVAL_S, Harness, Link
from inferfleet.local.chaos.ledger import LedgerTail
from inferfleet.local.chaos.limits import few_files, full_disk, no_clocks, no_disks, no_file_limits
from inferfleet.local.chaos.proxy import Direction
from inferfleet.local.chaos.service_faults import NothingHitError
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
from inferfleet.local.services.redis_process import RedisProcess
from inferfleet.schemas import JournalEntry
from inferfleet.schemas.names import job_queue
from inferfleet.wire.rabbitmq.connection import open_amqp


class ClusterFault(StrEnum):
    """The kinds of faults of a cluster."""

    BROKER_NODE_KILL = "broker_node_kill"
    BROKER_NODE_PAUSE = "broker_node_pause"
    BROKER_NODE_PART = "broker_node_part"
    BROKER_NODE_WIPE = "broker_node_wipe"
    BROKER_WIPE = "broker_wipe"
    QUEUE_PURGE = "queue_purge"
    QUEUE_DELETE = "queue_delete"
    REDIS_MASTER_KILL = "redis_master_kill"
    REDIS_MASTER_PAUSE = "redis_master_pause"
    REDIS_MASTER_PART = "redis_master_part"
    REDIS_LAGGING_FAILOVER = "redis_lagging_failover"
    REDIS_EMPTIED = "redis_emptied"
    BROKER_DISK_FULL = "broker_disk_full"
    REDIS_DISK_FULL = "redis_disk_full"
    REDIS_CLOCK_JUMP = "redis_clock_jump"
    REDIS_FILES_LIMIT = "redis_files_limit"


NEEDS: Final = {
    ClusterFault.BROKER_DISK_FULL: no_disks,
    ClusterFault.REDIS_DISK_FULL: no_disks,
    ClusterFault.REDIS_CLOCK_JUMP: no_clocks,
    ClusterFault.REDIS_FILES_LIMIT: no_file_limits,
}
"""Says of some faults what is missing here to inject them."""

FILLING: Final = frozenset({ClusterFault.BROKER_DISK_FULL, ClusterFault.REDIS_DISK_FULL})
"""These need servers with small disks."""

FORGETTING: Final = frozenset(
    {
        ClusterFault.BROKER_WIPE,
        ClusterFault.QUEUE_PURGE,
        ClusterFault.QUEUE_DELETE,
        ClusterFault.REDIS_MASTER_KILL,
        ClusterFault.REDIS_MASTER_PAUSE,
        ClusterFault.REDIS_MASTER_PART,
        ClusterFault.REDIS_LAGGING_FAILOVER,
        ClusterFault.REDIS_EMPTIED,
        ClusterFault.REDIS_DISK_FULL,
    }
)
"""After these, a service may not know any more what it has answered."""

SUBMITTING_S: Final = 10.0
"""For how long after a service forgot something, a job that was being submitted then may not be accepted."""

PAUSE_S: Final = (0.5, 3 * DOWN_AFTER_MS / 1000)
"""For how long a node is paused or cut off: for less and for more than its replacement takes."""

LAG_S: Final = (0.5, 2.0)
"""How far replicas lag behind at a failover."""

MESSAGES_S: Final = 20.0
"""How long a purge waits for messages in the queue."""

WHOLE_S: Final = 90.0
"""How long a cluster may take to be whole again."""

SILENT_S: Final = 0.3
"""How long a paused server must not answer."""


JUMP_S: Final = (-120, 120)
"""How far a clock jumps, backwards or forwards."""

JUMPED_S: Final = 10.0
"""How long a process may take to notice that its clock has jumped."""


def possible_faults() -> frozenset[ClusterFault]:
    """Return the faults that can be injected here."""
    return frozenset(fault for fault in ClusterFault if missing(fault) is None)


def missing(fault: ClusterFault) -> str | None:
    """Say what is missing here to inject a fault; ``None`` if nothing is."""
    return NEEDS[fault]() if fault in NEEDS else None


class ClusterFaults:
    """Draws and injects the faults of one cluster."""

    every_s = (2.0, 6.0)

    def __init__(
        self,
        cluster: Cluster,
        harness: Harness,
        *,
        appended: AppendedResults,
        tails: Sequence[LedgerTail],
        faults: Collection[ClusterFault],
        links: Sequence[Link],
        rng: random.Random,
    ) -> None:
        self._cluster = cluster
        self._broker = cluster.broker
        self._store = cluster.store
        self._harness = harness
        self._appended = appended
        self._tails = tails
        self._faults = sorted(faults)
        self._links = links
        self._deck: list[ClusterFault] = []
        self._rng = rng
        self._forgot_at: float | None = None
        """When a service last forgot something, if that may matter yet."""
        self._unsettled: set[str] | None = None
        """The jobs that were there then, as soon as they are known, and have not ended."""
        self.earlier_journals: dict[str, tuple[JournalEntry, ...]] = {}
        """The journals of the jobs that had ended before Redis was emptied."""
        self._untried = set(self._faults)
        self._each_was_tried = asyncio.Event()

    async def draw(self, rng: random.Random) -> ClusterFault:
        """Draw the next fault from the shuffled ones: the first that need not wait until jobs have ended."""
        while True:
            if not self._deck:
                self._deck = rng.sample(self._faults, len(self._faults))
            all_is_well = await self._all_is_well()
            for fault in self._deck:
                if all_is_well or fault not in FORGETTING:
                    self._deck.remove(fault)
                    return fault
            await asyncio.sleep(POLL_INTERVAL_S * 10)

    async def inject(self, fault: StrEnum) -> None:
        """Inject a fault, end it, and wait until the cluster is whole."""
        try:
            await self._inject(ClusterFault(fault))
        finally:
            if fault in FORGETTING:
                self._forgot_at, self._unsettled = time.monotonic(), None
            self._untried.discard(ClusterFault(fault))
            if not self._untried:
                self._each_was_tried.set()

    async def until_each_was_tried(self) -> None:
        """Wait until each planned fault was injected once."""
        await self._each_was_tried.wait()

    async def unknown(self, job_ids: Collection[str]) -> set[str]:
        """Return those of these jobs that had a result, and of which Redis knows nothing any more."""
        return await self._appended.unknown(self._harness.redis, job_ids)

    async def lost_results(self, job_ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs that had another result than now, or have none any more."""
        return await self._appended.lost(self._harness.redis, job_ids)

    async def _all_is_well(self) -> bool:
        """Return whether every job has ended that was there when a service last forgot something."""
        if self._forgot_at is None:
            return True
        if time.monotonic() < self._forgot_at + SUBMITTING_S:
            return False
        ended = self._ended()
        if self._unsettled is None:
            self._unsettled = {job_id for tail in self._tails for job_id in tail.accepted}
        self._unsettled -= ended
        self._unsettled -= await self.unknown(self._unsettled)
        if not self._unsettled:
            self._forgot_at = None
        return not self._unsettled

    def _ended(self) -> set[str]:
        for tail in self._tails:
            tail.read()
        return {job_id for tail in self._tails for job_id in tail.ended}

    async def _inject(self, fault: ClusterFault) -> None:
        match fault:
            case ClusterFault.BROKER_NODE_KILL:
                await self._kill_node()
            case ClusterFault.BROKER_NODE_PAUSE:
                await self._pause_node()
            case ClusterFault.BROKER_NODE_PART:
                await self._part_node()
            case ClusterFault.BROKER_NODE_WIPE:
                await self._wipe_node()
            case ClusterFault.BROKER_WIPE:
                await self._wipe_broker()
            case ClusterFault.QUEUE_PURGE:
                await self._purge()
            case ClusterFault.QUEUE_DELETE:
                await self._delete()
            case ClusterFault.REDIS_MASTER_KILL:
                await self._kill_master()
            case ClusterFault.REDIS_MASTER_PAUSE:
                await self._pause_master()
            case ClusterFault.REDIS_MASTER_PART:
                await self._part_master()
            case ClusterFault.REDIS_LAGGING_FAILOVER:
                await self._fail_over_to_lagging()
            case ClusterFault.REDIS_EMPTIED:
                await self._empty_redis()
            case ClusterFault.BROKER_DISK_FULL:
                await self._fill_broker_disk()
            case ClusterFault.REDIS_DISK_FULL:
                await self._fill_redis_disk()
            case ClusterFault.REDIS_CLOCK_JUMP:
                await self._jump()
            case ClusterFault.REDIS_FILES_LIMIT:
                await self._limit_files()

    # RabbitMQ

    async def _kill_node(self) -> None:
        leader, other = await self._leader()
        await asyncio.to_thread(leader.kill)
        await self._last()
        await asyncio.to_thread(leader.start)
        await self._until_nodes_are_whole(other)

    async def _pause_node(self) -> None:
        leader, other = await self._leader()
        async with _paused(leader.pid, port=leader.port, opening=b"AMQP\0\0\x09\x01"):
            await self._last()
        await self._until_nodes_are_whole(other)

    async def _part_node(self) -> None:
        leader, other = await self._leader()
        await asyncio.to_thread(self._broker.part, leader)
        try:
            await self._last()
            if await asyncio.to_thread(lambda: self._broker.running(asked=other)) != SIZE - 1:
                raise NothingHitError("the other nodes still see the one that was cut off")
        finally:
            await asyncio.to_thread(self._broker.heal, leader)
            await self._until_nodes_are_whole(other)

    async def _wipe_node(self) -> None:
        leader, other = await self._leader()
        await asyncio.to_thread(leader.kill)
        await self._last()
        await asyncio.to_thread(self._broker.replace, leader)
        await self._until_nodes_are_whole(other)

    async def _wipe_broker(self) -> None:
        marker = f"{self._harness.pool}-marker"
        async with open_amqp(self._broker.url, timeout_s=PATIENCE_S, name="chaos") as connection:
            channel = await connection.channel()
            await channel.declare_queue(marker, durable=True)
        await asyncio.to_thread(self._broker.kill)
        await asyncio.to_thread(self._broker.start, keep_data=False)
        await self._until_nodes_are_whole(self._broker.nodes[0])
        if await self._exists(marker):
            raise NothingHitError("a queue is still there")

    async def _purge(self) -> None:
        deadline = time.monotonic() + MESSAGES_S
        async with open_amqp(self._broker.url, timeout_s=PATIENCE_S, name="chaos") as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(job_queue(self._harness.pool), ensure=False)
            while not (await queue.purge()).message_count:
                if time.monotonic() > deadline:
                    raise NothingHitError("no message waited in the queue")
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _delete(self) -> None:
        async with open_amqp(self._broker.url, timeout_s=PATIENCE_S, name="chaos") as connection:
            channel = await connection.channel()
            # Fails if there is none.
            queue = await channel.declare_queue(job_queue(self._harness.pool), passive=True)
            await queue.delete(if_unused=False, if_empty=False)

    async def _fill_broker_disk(self) -> None:
        leader, other = await self._leader()
        try:
            with full_disk(leader.data):
                await self._last()
                alarms = await asyncio.to_thread(other.control, "eval", "rabbit_alarm:get_alarms().")
                if "disk" not in alarms and leader.running:
                    raise NothingHitError(f"no node raises an alarm: {alarms.strip()}")
        finally:
            # As an operator would: what could not be written may have stopped parts of the node.
            await asyncio.to_thread(leader.kill)
            await asyncio.to_thread(leader.start)
            await self._until_nodes_are_whole(other)

    async def _leader(self) -> tuple[RabbitMQProcess, RabbitMQProcess]:
        """Return the node that leads the pool's queue, and another one."""
        leader = await asyncio.to_thread(self._broker.home_of, job_queue(self._harness.pool))
        return leader, next(node for node in self._broker.nodes if node is not leader)

    async def _exists(self, queue: str) -> bool:
        async with open_amqp(self._broker.url, timeout_s=PATIENCE_S, name="chaos") as connection:
            channel = await connection.channel()
            with suppress(AMQPError):
                await channel.declare_queue(queue, passive=True)
                return True
        return False

    async def _until_nodes_are_whole(self, asked: RabbitMQProcess) -> None:
        await asyncio.to_thread(self._broker.wait_until_whole, asked=asked, timeout_s=WHOLE_S)

    # Redis

    async def _kill_master(self) -> None:
        master = await self._master()
        await asyncio.to_thread(master.kill)
        await self._until_replaced(master)
        await asyncio.to_thread(self._store.restart, master)
        await self._until_servers_are_whole()

    async def _pause_master(self) -> None:
        master = await self._master()
        async with _paused(master.pid, port=master.port, opening=b"PING\r\n"):
            await self._last()
        await self._until_servers_are_whole()

    async def _part_master(self) -> None:
        """Cut the master off from its replicas and the Sentinels. Its clients still reach it."""
        master = await self._master()
        inside = self._cluster.inside[master]
        inside.hold(*Direction)
        try:
            await self._until_replaced(master)
            await self._last()
        finally:
            inside.reset()
            inside.heal()
        await self._until_servers_are_whole()

    async def _fail_over_to_lagging(self) -> None:
        """Kill the master after it has answered writes that no replica has."""
        master, replicas = await self._master(), await asyncio.to_thread(lambda: self._store.replicas)
        try:
            for replica in replicas:
                os.kill(replica.pid, signal.SIGSTOP)
            # Otherwise the replicas would find in their sockets what the master has written meanwhile.
            await asyncio.to_thread(_ask, master, "CLIENT", "KILL", "TYPE", "replica")
            await asyncio.sleep(self._rng.uniform(*LAG_S))
            answered = (await self._replication(master))["master_repl_offset"]
            await asyncio.to_thread(master.kill)
        finally:
            for replica in replicas:
                os.kill(replica.pid, signal.SIGCONT)
        await self._until_replaced(master)
        new_master = await self._master()
        # The first byte that the new master has written itself.
        kept = (await self._replication(new_master))["second_repl_offset"] - 1
        await asyncio.to_thread(self._store.restart, master)
        await self._until_servers_are_whole()
        if kept >= answered:
            raise NothingHitError(f"the new master has all {answered} bytes of the old one")

    async def _empty_redis(self) -> None:
        ended = [job_id for job_id in self._ended() if job_id not in self.earlier_journals]
        self.earlier_journals |= (await read_records(self._harness, ended))[0]
        master = await self._master()
        script = "local n = redis.call('DBSIZE'); redis.call('FLUSHALL'); return n"
        if not await asyncio.to_thread(_ask, master, "EVAL", script, 0):
            raise NothingHitError("Redis was empty")

    async def _fill_redis_disk(self) -> None:
        """Fill the master's disk. With ``appendfsync always``, Redis ends itself then."""
        master = await self._master()
        try:
            with full_disk(master.data):
                await asyncio.sleep(PAUSE_S[1])
                if master.running:
                    raise NothingHitError("the master does not need its disk")
        finally:
            await asyncio.to_thread(master.kill)
            await self._until_replaced(master)
            await asyncio.to_thread(self._store.restart, master)
            await self._until_servers_are_whole()

    async def _jump(self) -> None:
        """Let the master's clock jump, and back again."""
        master = await self._master()
        clock = self._cluster.clocks[master]
        ahead_s = self._rng.randint(*JUMP_S) or JUMP_S[1]
        clock.set(ahead_s)
        try:
            await self._until_clock_is(master, ahead_s)
            await self._last()
        finally:
            clock.set(0)
            await self._until_clock_is(master, 0)

    async def _until_clock_is(self, server: RedisProcess, ahead_s: int) -> None:
        deadline = time.monotonic() + JUMPED_S
        while abs((await asyncio.to_thread(_ask, server, "TIME"))[0] - time.time() - ahead_s) > 1.5:
            if time.monotonic() > deadline:
                raise NothingHitError(f"the clock is not {ahead_s:+} s ahead")
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _limit_files(self) -> None:
        """Let the master accept no connection, and let all clients lose theirs."""
        master = await self._master()
        with few_files(master.pid):
            for link in self._links:
                link.store.reset()
            if await asyncio.to_thread(_answers, master.port, b"PING\r\n"):
                raise NothingHitError("the master still accepts connections")
            await self._last()

    async def _master(self) -> RedisProcess:
        return await asyncio.to_thread(lambda: self._store.master)

    async def _replication(self, server: RedisProcess) -> dict[str, Any]:
        answer: dict[str, Any] = await asyncio.to_thread(_ask, server, "INFO", "replication")
        return answer

    async def _until_replaced(self, master: RedisProcess) -> None:
        await asyncio.to_thread(self._store.wait_until_replaced, master)

    async def _until_servers_are_whole(self) -> None:
        await asyncio.to_thread(self._store.wait_until_whole, timeout_s=WHOLE_S)

    async def _last(self) -> None:
        await asyncio.sleep(self._rng.uniform(*PAUSE_S))


@asynccontextmanager
async def _paused(pid: int, *, port: int, opening: bytes) -> AsyncGenerator[None]:
    """Stop a server's process during the block. It must not answer the opening of its protocol."""
    os.kill(pid, signal.SIGSTOP)
    try:
        if await asyncio.to_thread(_answers, port, opening):
            raise NothingHitError(f"process {pid} answers although it is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _answers(port: int, opening: bytes) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=SILENT_S) as connection:
        connection.sendall(opening)
        try:
            return bool(connection.recv(1))
        except TimeoutError:
            return False


def _ask(server: RedisProcess, *command: Any) -> Any:
    with redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client:
        asked: Any = client
        return asked.execute_command(*command)
