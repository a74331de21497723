"""A private Redis Cluster from the binary on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from inferfleet.local.services.child_process import POLL_INTERVAL_S
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import START_TIMEOUT_S, RedisProcess
from inferfleet.schemas.errors import ServiceUnreachableError

NODE_TIMEOUT_MS = 5_000
"""How long a node may be silent before the others replace it by its replica."""

FAILOVER_TIMEOUT_S = 5.5
"""How long a replica tries to become the master. The masters vote only now and then."""

SLOTS = 16_384


class RedisCluster:
    """Masters that share the slots, and a replica of each if asked for. Not thread-safe.

    ``tls`` has the options of Redis that name certificates and keys. With it the nodes speak TLS with each
    other, and with clients at ``tls_ports``.
    """

    def __init__(
        self,
        *,
        server: str,
        folder: Path,
        reaper: Reaper,
        masters: int = 3,
        replicated: bool = False,
        tls: Mapping[str, str] | None = None,
    ) -> None:
        count = masters * (2 if replicated else 1)
        self.tls_ports = [free_port() for _ in range(count)] if tls else []
        self.nodes = [
            RedisProcess(
                server=server,
                folder=folder / f"node-{number}",
                reaper=reaper,
                configuration={
                    "cluster-enabled": "yes",
                    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                    "cluster-port": str(free_port()),
                    **({"tls-cluster": "yes", "tls-port": str(self.tls_ports[number]), **tls} if tls else {}),
                },
            )
            for number in range(count)
        ]
        self._size = masters
        self.version = ""

    @property
    def url(self) -> str:
        """The URL with all nodes."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    @property
    def named_servers(self) -> dict[int, int]:
        """The ports that the nodes name to clients, each with the node's own."""
        return {node.port: node.port for node in self.nodes}

    @property
    def masters(self) -> list[RedisProcess]:
        """The nodes that have slots, according to the first node that runs."""
        ports = {master[1] for _, _, master, *_ in self._ask(self._running(), "CLUSTER SLOTS")}
        return [node for node in self.nodes if node.port in ports]

    def start(self) -> None:
        """Start the nodes that do not run, form the cluster if it is new, and wait until it serves.

        All nodes agree then about who has which slots. A master that was away while its replica took over
        thinks for a moment that it still has them.
        """
        for node in self.nodes:
            if not node.running:
                node.launch()
        for node in self.nodes:
            node.wait_until_ready()
        self.version = self.nodes[0].version
        if self._known(self.nodes[0]) == 1:
            self._form()
        self._wait_until(lambda: all(self._whole(node) for node in self.nodes), "is whole")
        self._wait_until(lambda: len({self._map(node) for node in self.nodes}) == 1, "agrees about its slots")

    def kill(self) -> None:
        """Kill all nodes with SIGKILL."""
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        """Kill all nodes for good."""
        self.kill()

    def move_slot(self, slot: int, *, source: RedisProcess, target: RedisProcess) -> None:
        """Move a slot with its keys, as an operator would."""
        self.begin_move(slot, source=source, target=target)
        self.finish_move(slot, source=source, target=target)

    def begin_move(self, slot: int, *, source: RedisProcess, target: RedisProcess) -> None:
        """Move a slot's keys. Until the end of the move, the source sends clients on for each missing key."""
        self._ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self._id(source))
        self._ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self._id(target))
        while keys := self._ask(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            self._ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def finish_move(self, slot: int, *, source: RedisProcess, target: RedisProcess) -> None:
        """Let the slot belong to the target, which must have its keys."""
        for node in (target, source, *(other for other in self.masters if other not in {source, target})):
            self._ask(node, "CLUSTER SETSLOT", slot, "NODE", self._id(target))

    def fail_over(self, slot: int) -> None:
        """Let a replica become the owner of a slot, as an operator would, and wait until all nodes know."""
        before = self.owner(slot)
        replica = next(node for node in self.nodes if self._master_of(node) == before.port)
        again_at = 0.0

        def failed_over() -> bool:
            nonlocal again_at
            if self._master_of(replica) is not None and time.monotonic() > again_at:
                self._ask(replica, "CLUSTER FAILOVER")
                again_at = time.monotonic() + FAILOVER_TIMEOUT_S
            return all(self.owner(slot, asked=node) is replica for node in self.nodes)

        self._wait_until(failed_over, "has failed over")

    def owner(self, slot: int, *, asked: RedisProcess | None = None) -> RedisProcess:
        """Return the node that has a slot, according to the first node that runs, or to ``asked``."""
        for first, last, master, *_ in self._ask(asked or self._running(), "CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise LookupError(f"no node has slot {slot}")

    def _running(self) -> RedisProcess:
        return next(node for node in self.nodes if node.running)

    def _form(self) -> None:
        masters, replicas = self.nodes[: self._size], self.nodes[self._size :]
        share = -(-SLOTS // self._size)
        for number, node in enumerate(self.nodes):
            self._ask(node, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            first = self.nodes[0]
            self._ask(node, "CLUSTER MEET", "127.0.0.1", first.port, self._bus_port(first))
        for number, node in enumerate(masters):
            last = min((number + 1) * share, SLOTS) - 1
            self._ask(node, "CLUSTER ADDSLOTSRANGE", number * share, last)
        size = len(self.nodes)
        self._wait_until(lambda: all(self._known(node) == size for node in self.nodes), "knows its nodes")
        for replica, master in zip(replicas, masters, strict=False):
            self._wait_until(lambda: self._replicates(replica, master), "has replicas")  # noqa: B023

    def _replicates(self, replica: RedisProcess, master: RedisProcess) -> bool:
        try:
            self._ask(replica, "CLUSTER REPLICATE", self._id(master))
        except redis.ResponseError:
            return False
        return True

    def _whole(self, node: RedisProcess) -> bool:
        info = self._ask(node, "CLUSTER INFO")
        role, *rest = self._ask(node, "ROLE")
        return b"cluster_state:ok" in info and (role == b"master" or rest[2] == b"connected")

    def _map(self, node: RedisProcess) -> frozenset[tuple[int, int, int]]:
        """Return the ranges of slots, each with the port of its master, as a node knows them."""
        return frozenset(
            (first, last, master[1]) for first, last, master, *_ in self._ask(node, "CLUSTER SLOTS")
        )

    def _master_of(self, node: RedisProcess) -> int | None:
        """Return the port of the master that a node replicates; ``None`` for a master."""
        role, *rest = self._ask(node, "ROLE")
        return int(rest[1]) if role == b"slave" else None

    def _known(self, node: RedisProcess) -> int:
        return len(self._ask(node, "CLUSTER NODES").strip().splitlines())

    def _id(self, node: RedisProcess) -> str:
        return str(self._ask(node, "CLUSTER MYID").decode())

    def _bus_port(self, node: RedisProcess) -> int:
        return int(self._ask(node, "CONFIG GET", "cluster-port")[1])

    def _ask(self, node: RedisProcess, *command: Any) -> Any:
        with redis.Redis(
            port=node.port, protocol=2, socket_timeout=START_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.response_callbacks.clear()
            asked: Any = client
            return asked.execute_command(*command)

    def _wait_until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise ServiceUnreachableError(f"waited {START_TIMEOUT_S:g} s until the Redis Cluster {what}")
            time.sleep(POLL_INTERVAL_S)
