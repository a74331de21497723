"""The temporary folders of batches that run here. They hold copies of inputs: none may outlive its process.

Each folder is locked while its process is alive. The kernel releases the lock of a process that is killed, in
whatever container it ran, and the next gateway with the same folder for temporary files removes the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Final

logger = logging.getLogger(__name__)

PREFIX: Final = "inferfleet-batch-run-"


@contextmanager
def scratch() -> Generator[Path]:
    """Make a folder that is removed at the end, or by another gateway after this process has been killed."""
    fd: int | None = None
    while True:
        path = Path(mkdtemp(prefix=PREFIX))
        try:
            fd = _lock(path)
        except (BlockingIOError, FileNotFoundError):
            # Another gateway that has just started has taken it for that of a dead process.
            continue
        except OSError as error:
            # Nobody can lock it, so nobody else removes it either.
            logger.warning("cannot lock %s (%s): if this process is killed, remove the folder", path, error)
        break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if fd is not None:
            os.close(fd)


def remove_abandoned() -> None:
    """Remove the folders of processes that have ended without removing them. This blocks."""
    for path in Path(gettempdir()).glob(f"{PREFIX}*"):
        try:
            fd = _lock(path)
        except OSError:
            continue
        logger.info("removing %s, which a gateway that was killed has left", path)
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _lock(path: Path) -> int:
    """Lock a folder, and return the file descriptor that holds the lock.

    Raises:
        BlockingIOError: Another process has locked it.
        FileNotFoundError: It has been removed.
        OSError: It cannot be locked.

    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Raises if somebody has removed it before it was locked.
        path.stat()
    except OSError:
        os.close(fd)
        raise
    return fd
