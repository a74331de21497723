"""A private cluster of RabbitMQ nodes from the binaries on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from inferfleet.local.services.rabbitmq_process import PASSWORD, USER, PortMapper, RabbitMQProcess
from inferfleet.local.services.reaper import Reaper
from inferfleet.schemas.errors import ServiceUnreachableError


class RabbitMQCluster:
    """Nodes that form a cluster at their first start. Each can be killed and started again on its own.

    A node without a majority pauses, as RabbitMQ recommends for three nodes. Not thread-safe.
    """

    def __init__(self, *, server: str, port_mapper: str, folder: Path, reaper: Reaper, size: int = 3) -> None:
        folder.mkdir(exist_ok=True)
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

    def start(self, *, keep_data: bool = True) -> None:
        """Start all nodes at once, with their data or empty, and wait until they serve."""
        for node in self.nodes:
            if not keep_data:
                node.wipe()
            node.launch()
        for node in self.nodes:
            node.wait_until_ready()

    def kill(self) -> None:
        """Kill all nodes with SIGKILL."""
        for node in self.nodes:
            node.kill()

    def replace(self, node: RabbitMQProcess) -> None:
        """Let an empty node take the place of one that was killed, as an operator would after a lost disk."""
        other = self._other(node)
        other.control("forget_cluster_node", node.name)
        node.start(keep_data=False)

    def home_of(self, queue: str, *, asked: RabbitMQProcess | None = None) -> RabbitMQProcess:
        """Return the node that leads a quorum queue, or has a classic one.

        Raises:
            subprocess.CalledProcessError: There is no such queue.

        """
        name = (asked or self.nodes[0]).control(
            "eval",
            f"""{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
            amqqueue:qnode(Q).""",
        )
        return next(node for node in self.nodes if node.name == name.strip().strip("'"))

    def running(self, *, asked: RabbitMQProcess) -> int:
        """Return how many nodes a node sees, itself included."""
        return int(asked.control("eval", "length(rabbit_nodes:all_running())."))

    def wait_until_whole(self, *, asked: RabbitMQProcess, timeout_s: float) -> None:
        """Wait until a node sees all nodes, and let each quorum queue have a member on each of them.

        A queue has members only on the nodes that were in the cluster when it was declared. Without members
        on the others, it may not survive the next loss of a node. Operators run ``rabbitmq-queues grow``.

        Raises:
            ServiceUnreachableError: It does not see them.

        """
        # One call, because each costs a start of Erlang.
        whole = asked.control(
            "eval",
            f"""Wait = fun W(0) -> false;
                           W(N) -> case length(rabbit_nodes:all_running()) of
                                       {len(self.nodes)} -> true;
                                       _ -> timer:sleep(200), W(N - 1)
                                   end
                       end,
            Whole = Wait({int(5 * timeout_s)}),
            [rabbit_quorum_queue:grow(N, <<".*">>, <<".*">>, all) || N <- rabbit_nodes:all_running()],
            Whole.""",
        )
        if whole.strip() != "true":
            raise ServiceUnreachableError(f"waited {timeout_s:g} s until the RabbitMQ cluster is whole")

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
        self.kill()
        self._port_mapper.kill()

    def _other(self, node: RabbitMQProcess) -> RabbitMQProcess:
        return next(other for other in self.nodes if other is not node)
