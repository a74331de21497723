"""vLLM's load, from its own reports.

vLLM reports its scheduler's counts after each step, but not between steps. This module adds what the process
knows about its own requests, so that the numbers are also right after the last request has ended. A request
that is newer than the last report neither runs nor waits: only the scheduler knows whether it has room.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from inferfleet.worker.ports import EngineStats


class SchedulerReports:
    """Keeps the last report of each scheduler. Pass its ``logger`` as one of vLLM's ``stat_loggers``."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._kv_cache_usage: dict[int, float] = {}

    def logger(self, vllm_config: Any, engine_index: int = 0) -> _SchedulerLogger:
        """Make the listener for one scheduler; data parallel engines have several."""
        return _SchedulerLogger(self, vllm_config, engine_index)

    def record(self, engine_index: int, *, running: int, waiting: int, kv_cache_usage: float) -> None:
        """Record one scheduler's counts after a step."""
        self._running[engine_index] = running
        self._waiting[engine_index] = waiting
        self._kv_cache_usage[engine_index] = kv_cache_usage

    def stats(self, unfinished: int) -> EngineStats:
        """Combine the reports with the number of this process' unfinished requests."""
        if not unfinished:
            return EngineStats()
        running = min(sum(self._running.values()), unfinished)
        waiting = min(sum(self._waiting.values()), unfinished - running)
        usage = max(self._kv_cache_usage.values(), default=0.0)
        return EngineStats(running=running, waiting=waiting, kv_cache_usage=min(usage, 1.0))


class _SchedulerLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is untyped here
    def __init__(self, reports: SchedulerReports, vllm_config: Any, engine_index: int = 0) -> None:
        self._reports = reports
        self._engine_index = engine_index

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Record the counts; vLLM calls this after each step."""
        if scheduler_stats is not None:
            self._reports.record(
                self._engine_index,
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs,
                kv_cache_usage=scheduler_stats.kv_cache_usage,
            )

    def log_engine_initialized(self) -> None:
        """Do nothing: the worker itself reports when it is ready."""
