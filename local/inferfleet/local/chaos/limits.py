"""What an operating system may refuse a process: files, space on a disk, the time, a reader of its log."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import termios
from array import array
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from inferfleet.local.services.reaper import Reaper, unmount

FILES: Final = 3
"""How many files a process may have open at the limit: no new one."""

PIPE_BYTES: Final = 4096
"""The smallest pipe that Linux makes."""

LINE_BYTES: Final = 512
"""About the longest line of a worker's log."""

DISK_BYTES: Final = 1 << 30
"""The size of a disk that can be filled."""

_FAKETIME: Final = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


def no_disks() -> str | None:
    """Say what is missing to mount disks; ``None`` if nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, to mount a tmpfs"
    # In a container, root may lack the right.
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],  # noqa: S607
        check=False,
        capture_output=True,
        text=True,
    )
    return f"cannot mount a tmpfs: {probe.stderr.strip()}" if probe.returncode else None


def no_clocks() -> str | None:
    """Say what is missing to change a process' clock; ``None`` if nothing is."""
    return None if _library() else "needs libfaketime (apt-get install libfaketime)"


def no_file_limits() -> str | None:
    """Say what is missing to limit a running process' files; ``None`` if nothing is."""
    return None if hasattr(resource, "prlimit") else "needs Linux, whose prlimit changes a running process"


@contextmanager
def few_files(pid: int) -> Generator[None]:
    """Let a process open no file or connection during the block."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, before[1]))
    try:
        yield
    finally:
        # The process may have died meanwhile.
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def small_disk(folder: Path, *, reaper: Reaper) -> Generator[None]:
    """Mount a small disk on a folder during the block."""
    folder.mkdir(parents=True)
    subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],  # noqa: S607
        check=True,
        capture_output=True,
    )
    reaper.add("mount", str(folder))
    try:
        yield
    finally:
        unmount(folder)
        reaper.strike("mount", str(folder))


@contextmanager
def full_disk(folder: Path) -> Generator[None]:
    """Fill a small disk during the block."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            block = bytes(1 << 20)
            try:
                while True:
                    # The last write is short, and the next one fails.
                    file.write(block)
            except OSError:
                pass
        yield
    finally:
        filler.unlink()


class Clock:
    """The clock of processes that are started with ``environment``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs from its start."""
        return {
            # With Redis' own allocator, libfaketime calls itself for ever while it starts.
            "LD_PRELOAD": f"{_library()} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: int) -> None:
        """Let the clock be so much ahead of the right time, or behind it, within a second."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.replace(self._path)


class UnreadPipe:
    """A pipe that nobody reads, as a worker's output."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self._reader = os.fdopen(reader, "rb", buffering=0)
        self.writer = os.fdopen(writer, "wb", buffering=0)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def full(self) -> bool:
        """Whether a line of a log has no room."""
        held = array("i", [0])
        fcntl.ioctl(self._reader, termios.FIONREAD, held)
        return held[0] > PIPE_BYTES - LINE_BYTES

    def close(self) -> None:
        """Close both ends."""
        self._reader.close()
        self.writer.close()


def _library() -> str | None:
    found = (path for pattern in _FAKETIME for path in Path("/").glob(pattern.lstrip("/")))
    return next(map(str, found), None)
