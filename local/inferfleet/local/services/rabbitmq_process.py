"""A private RabbitMQ from the binaries on this machine.

It shares nothing with a RabbitMQ service of the machine: it has its own node name, folder, cookie,
configuration and ports, and its own ``epmd`` (Erlang's port mapper), which otherwise would stay behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from inferfleet.local.services.amqp_handshake import amqp_version
from inferfleet.local.services.child_process import ChildProcess
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper

START_TIMEOUT_S = 180.0
USER = "guest"
PASSWORD = "guest"  # noqa: S105 - RabbitMQ's own default, which it accepts from this machine only

# Debian's rabbitmq-server on the PATH changes to the user "rabbitmq" and its folders; the script that it
# calls can run as any user.
_SERVER_WITHOUT_WRAPPER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def server_binary() -> str | None:
    """Find the script that starts RabbitMQ."""
    if os.access(_SERVER_WITHOUT_WRAPPER, os.X_OK):
        return str(_SERVER_WITHOUT_WRAPPER)
    return shutil.which("rabbitmq-server")


def port_mapper_binary() -> str | None:
    """Find ``epmd``, which comes with Erlang."""
    return shutil.which("epmd")


class PortMapper(ChildProcess):
    """``epmd`` on a port of its own, for one server or for the nodes of a cluster."""

    def __init__(self, binary: str, *, folder: Path, reaper: Reaper) -> None:
        self.port = free_port()
        super().__init__(
            name="epmd",
            command=[binary, "-port", str(self.port), "-address", "127.0.0.1"],
            environment=_environment(),
            log=folder / "epmd.log",
            reaper=reaper,
        )


class RabbitMQProcess:
    """RabbitMQ as a child process on 127.0.0.1, always on the same port.

    ``port_mapper`` is the ``epmd`` to start for it, or one that it shares with other nodes. ``management``
    enables the HTTP API on another port; ``configuration`` has more lines for ``rabbitmq.conf``. Not
    thread-safe.
    """

    def __init__(
        self,
        *,
        server: str,
        port_mapper: str | PortMapper,
        folder: Path,
        reaper: Reaper,
        management: bool = False,
        configuration: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.management_port = free_port() if management else None
        self.version = ""
        self.name = f"inferfleet-{self.port}@localhost"
        """The name of its Erlang node."""
        self._folder = folder
        self.data = folder / "data"
        folder.mkdir(exist_ok=True)
        _write_configuration(folder, configuration, port=self.port, management_port=self.management_port)
        self._port_mapper = (
            PortMapper(port_mapper, folder=folder, reaper=reaper)
            if isinstance(port_mapper, str)
            else port_mapper
        )
        self._command = server
        self._settings = _environment() | _settings(folder, self.data, self.name, self._port_mapper.port)
        self._server = ChildProcess(
            name="rabbitmq-server",
            command=[server],
            environment=self._settings,
            log=folder / "rabbitmq.log",
            reaper=reaper,
        )

    @property
    def url(self) -> str:
        """The AMQP URL."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str | None:
        """The base URL of the HTTP API, if it is enabled."""
        if self.management_port is None:
            return None
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.management_port}"

    @property
    def pid(self) -> int:
        """The server's process id. Raises ``RuntimeError`` if the server is not running."""
        return self._server.pid

    @property
    def port_mapper_pid(self) -> int:
        """The process id of its ``epmd``."""
        return self._port_mapper.pid

    @property
    def running(self) -> bool:
        """Whether the server is alive."""
        return self._server.running

    def join(self, nodes: Sequence[RabbitMQProcess], *, cookie: str) -> None:
        """Let the first start form a cluster of these nodes, which know each other by a secret cookie."""
        path = self._folder / ".erlang.cookie"
        path.write_text(cookie)
        path.chmod(0o600)
        members = [
            f"cluster_formation.classic_config.nodes.{n} = {node.name}" for n, node in enumerate(nodes)
        ]
        with (self._folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(
                "\n".join(["cluster_formation.peer_discovery_backend = classic_config", *members, ""])
            )

    def launch(self) -> None:
        """Start the server without waiting until it serves."""
        if not self._port_mapper.running:
            self._port_mapper.spawn()
        self._server.spawn()

    def wait_until_ready(self) -> None:
        """Return when a whole AMQP handshake has succeeded, about 4 s after the launch on two cores.

        Raises:
            ServiceUnreachableError: The server did not start; the message has the end of its log.

        """
        self.version = self._server.wait_until(
            lambda: amqp_version("127.0.0.1", self.port, user=USER, password=PASSWORD),
            timeout_s=START_TIMEOUT_S,
        )

    def start(self, *, keep_data: bool = True) -> None:
        """Start on the same port, with the durable queues or empty, and wait until the server serves."""
        if not keep_data:
            self.wipe()
        self.launch()
        self.wait_until_ready()

    def wipe(self) -> None:
        """Delete the data of a server that does not run."""
        shutil.rmtree(self.data, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server with SIGKILL. Clients are not told, and only data on disk remains."""
        self._server.kill()

    def stop(self) -> None:
        """Stop the server as an operator would: it tells its clients, and writes its data. Takes a second."""
        self._server.stop()

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on the server, and return its output.

        Raises:
            subprocess.CalledProcessError: ``rabbitmqctl`` failed.

        """
        return self.tool("rabbitmqctl", *arguments)

    def tool(self, name: str, *arguments: str) -> str:
        """Run another tool of RabbitMQ on the server, and return its output. Raises as ``control``."""
        command = [str(Path(self._command).with_name(name)), "--silent", *arguments]
        answer = subprocess.run(  # noqa: S603
            command, env=self._settings, check=True, capture_output=True, text=True
        )
        return answer.stdout

    def close(self) -> None:
        """Kill the server and its ``epmd``."""
        self._server.kill()
        self._port_mapper.kill()


def _write_configuration(
    folder: Path, more: Sequence[str], *, port: int, management_port: int | None
) -> None:
    lines = [f"listeners.tcp.1 = 127.0.0.1:{port}", "log.console = true", "log.file = false", *more]
    if management_port is not None:
        lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {management_port}"]
    plugins = "" if management_port is None else "rabbitmq_management"
    (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
    (folder / "enabled_plugins").write_text(f"[{plugins}].\n")
    # No further configuration files, in particular none of the machine's own RabbitMQ.
    (folder / "conf.d").mkdir()


def _environment() -> dict[str, str]:
    """Return this process' environment without variables that point at another RabbitMQ."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}


def _settings(folder: Path, data: Path, name: str, port_mapper_port: int) -> dict[str, str]:
    return {
        "HOME": str(folder),  # Erlang makes its cookie there
        "ERL_EPMD_PORT": str(port_mapper_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_NODENAME": name,
        # With this set, the script becomes the server instead of waiting beside it, so that the process
        # we know is the server itself.
        "RABBITMQ_ALLOW_INPUT": "true",
        # `rabbitmqctl` runs for a moment: threads for more than one core would be most of its work.
        "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +SDio 1 +A 1 +sbwt none +sbwtdcpu none +sbwtdio none",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
    }
