"""A private cluster of RabbitMQ nodes from the binaries on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from inferfleet.local.services.rabbitmq_process import PASSWORD, USER, PortMapper, RabbitMQProcess
from inferfleet.local.services.reaper import Reaper


class RabbitMQCluster:
    """Nodes that form a cluster at their first start. Each can be killed and started again on its own.

    A node without a majority pauses, as RabbitMQ recommends for three nodes. Not thread-safe.
    """

    def __init__(self, *, server: str, port_mapper: str, folder: Path, reaper: Reaper, size: int = 3) -> None:
        folder.mkdir()
        self._port_mapper = PortMapper(port_mapper, folder=folder, reaper=reaper)
        self.nodes = [
            RabbitMQProcess(
                server=server,
                port_mapper=self._port_mapper,
                folder=folder / f"node-{number}",
                reaper=reaper,
                configuration=("cluster_partition_handling = pause_minority",),
            )
            for number in range(size)
        ]
        self._cookie = token_hex(10).upper()
        for node in self.nodes:
            node.join(self.nodes, cookie=self._cookie)

    @property
    def url(self) -> str:
        """The AMQP URL with all nodes."""
        return self.url_of(self.nodes)

    def url_of(self, nodes: Sequence[RabbitMQProcess]) -> str:
        """Return the AMQP URL of some of the nodes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return f"amqp://{USER}:{PASSWORD}@{hosts}/"

    def start(self) -> None:
        """Start all nodes at once, and wait until the cluster is whole."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_until_ready()

    def part(self, node: RabbitMQProcess) -> None:
        """Cut a node off from the others. Clients still reach it."""
        node.control(
            "eval", "[begin erlang:set_cookie(N, parted), erlang:disconnect_node(N) end || N <- nodes()]."
        )

    def heal(self, node: RabbitMQProcess) -> None:
        """Let a node that was cut off reach the others again."""
        others = ", ".join(f"'{other.name}'" for other in self.nodes if other is not node)
        node.control("eval", f"[erlang:set_cookie(N, '{self._cookie}') || N <- [{others}]].")

    def close(self) -> None:
        """Kill all nodes and their ``epmd``."""
        for node in self.nodes:
            node.kill()
        self._port_mapper.kill()
