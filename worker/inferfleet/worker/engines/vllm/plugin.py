"""Prepares vLLM's engine core when an inferfleet worker has started it.

vLLM loads this plugin in each of its processes (entry point ``vllm.general_plugins``). In those that a worker
starts, it notes how long the parts of a load take (``core_times.py``). Otherwise it does nothing except in an
engine core whose parent is an inferfleet worker. There it solves three problems:

- Ctrl-C in a terminal, and an init that signals its whole process group, also reach the core, which then
  aborts every request before the worker can drain. So the core leaves the process group. The worker still
  stops it.
- A core outlives a killed worker, and keeps the GPU's memory. So the core exits with its parent, and ends the
  processes that it has started itself.
- A core that was forked has the worker's log, but not the thread that writes it. So the core logs to stderr,
  which the worker reads.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from logging.handlers import QueueHandler
from multiprocessing.process import BaseProcess
from typing import Final

from inferfleet.worker.engines.vllm.core_times import note_start_times

WORKER_PID_VARIABLE: Final = "INFERFLEET_VLLM_WORKER_PID"
"""The worker sets this variable to its process id, so that the plugin affects no other user of vLLM."""


def exit_with_parent() -> None:
    """Leave the worker's process group and end when the worker ends. Safe to call in any process."""
    note_start_times()
    parent = multiprocessing.parent_process()
    if parent is None or str(parent.pid) != os.environ.get(WORKER_PID_VARIABLE):
        return
    os.setpgid(0, 0)
    _log_to_stderr()
    threading.Thread(target=_end_after, args=(parent,), name="follow-the-worker", daemon=True).start()


def _log_to_stderr() -> None:
    """Log as vLLM does in a core that was not forked."""
    log = logging.getLogger()
    if any(isinstance(handler, QueueHandler) for handler in log.handlers):
        handler = logging.StreamHandler(sys.stderr)
        form = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
        handler.setFormatter(logging.Formatter(form, "%m-%d %H:%M:%S"))
        log.handlers[:] = [handler]


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.killpg(0, signal.SIGKILL)
