"""Cleans up after a launcher that could not do so itself, because of ``kill -9``, SIGTERM or a crash.

The launcher starts this file as a separate process, and lists through a pipe what to clean up. When the
launcher ends, for whatever reason, the pipe closes, and the reaper kills the listed process groups, removes
the listed containers and mounts, and deletes the listed folders. A launcher that ends properly has struck
everything off the list before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

FOLDER_ATTEMPTS = 40
FOLDER_PAUSE_S = 0.05


class Reaper:
    """The launcher's end of the pipe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C at the terminal must not reach it. -I: nothing of the user's
        # environment can break its start.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", __file__], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            # Closes the pipe and waits.
            self._process.communicate()

    def add(self, kind: str, name: str) -> None:
        """List a ``group`` (of processes, by its number), ``container``, ``mount`` or ``folder``."""
        self._tell("add", kind, name)

    def strike(self, kind: str, name: str) -> None:
        """Strike off an item that is gone; a process group at once, because its number may be reused."""
        self._tell("strike", kind, name)

    def _tell(self, *line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the reaper is not running")
        # A killed reaper must not break the launcher, because it only matters after a crash.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()


def reap(listed: list[tuple[str, str]]) -> None:
    """Remove everything on the list, processes first, because a running server would recreate its folder."""
    for kind, name in listed:
        if kind == "group":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(int(name), signal.SIGKILL)
    for kind, name in listed:
        if kind == "container":
            _remove_container(name)
    for kind, name in listed:
        if kind == "mount":
            unmount(Path(name))
    for kind, name in listed:
        if kind == "folder":
            remove_folder(Path(name))


def remove_folder(folder: Path) -> None:
    """Delete a folder to which a server that was just killed may still be writing."""
    for _ in range(FOLDER_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(FOLDER_PAUSE_S)


def unmount(folder: Path) -> None:
    """Unmount a file system, even if a server that was just killed still has files in it."""
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)  # noqa: S603, S607


def _remove_container(name: str) -> None:
    from testcontainers.core.docker_client import DockerClient

    with suppress(Exception):
        DockerClient().client.containers.get(name).remove(force=True, v=True)


def main() -> None:
    """Read the list until the launcher has ended, then clean up."""
    # Ignore signals that the launcher's terminal or supervisor sends to the whole group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    listed: dict[tuple[str, str], None] = {}
    for line in sys.stdin.buffer:
        action, kind, name = json.loads(line)
        if action == "add":
            listed[kind, name] = None
        else:
            listed.pop((kind, name), None)
    reap(list(listed))


if __name__ == "__main__":
    main()
