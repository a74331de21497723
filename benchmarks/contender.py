"""The contenders: how to start the worker and the client of each, and with what settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from children import Client, Worker

HERE = Path(__file__).parent / "contenders"
PEERS_PYTHON = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
ARQ_PYTHON = Path(__file__).parent.parent / ".venv-peers-arq" / "bin" / "python"
"""arq wants an older redis-py than the others have."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One library, or one way of using it.

    ``script`` is run as ``client`` and, if there is no ``worker_command``, as ``worker``. In a command,
    ``{concurrency}`` is how many jobs should run at once. ``no_op_concurrency`` is that number for jobs that
    do nothing: threads only cost there. ``busy_command`` is what to run then, if it is another one.
    ``source_roots`` come before what is installed, and ``scripts`` is the folder that ``script`` lies in.
    ``environment`` is set for client and worker.
    """

    name: str
    script: str
    python: Path = Path(sys.executable)
    worker_command: tuple[str, ...] = ()
    busy_command: tuple[str, ...] = ()
    concurrency: int = 256
    no_op_concurrency: int = 256
    variant: str = ""
    source_roots: tuple[Path, ...] = ()
    scripts: Path = HERE
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str = ""
    cases: frozenset[str] = frozenset({"submit", "drain", "round trip", "50 ms"})

    def start_worker(self, environment: Mapping[str, str], *, busy: bool, log: Path) -> Worker:
        """Start one worker process for jobs that do nothing, or for ``busy`` ones, with its log in a file."""
        command = self.worker_command or (self.script, "worker")
        if busy:
            command = self.busy_command or command
        concurrency = self.concurrency if busy else self.no_op_concurrency
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(self.python), *(part.format(concurrency=concurrency) for part in command)],
                cwd=self.scripts,
                env=self._environment(environment, concurrency),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Worker(process, log)

    def start_client(self, environment: Mapping[str, str], *, log: Path) -> Client:
        """Start the client; it is connected when this returns."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(self.python), str(self.scripts / self.script), "client"],
                cwd=self.scripts,
                env=self._environment(environment, self.concurrency),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        return Client(process, log)

    def _environment(self, given: Mapping[str, str], concurrency: int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
        path = os.pathsep.join(map(str, (self.scripts, *self.source_roots)))
        ours = {"BENCH_CONCURRENCY": str(concurrency), "BENCH_VARIANT": self.variant, "PYTHONPATH": path}
        return inherited | ours | dict(given) | dict(self.environment)
