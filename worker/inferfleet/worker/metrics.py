"""The worker's Prometheus metrics. Names follow Prometheus' conventions: base units, ``_total`` counters."""

from __future__ import annotations

from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from typing_extensions import override

from inferfleet.schemas import Failure, Result
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.wire.outage import Outage
from inferfleet.worker.broker import Delivery
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class WorkerMetrics(Hooks):
    """One worker's metrics in their own registry, all labelled with the worker's pool."""

    def __init__(self, *, pool: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.tokens_generated = 0
        """A plain number, because every chunk changes it; ``exposition`` copies it to the metric."""
        self.jobs_finished = 0
        self._exposed = 0
        self._pool = pool

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, ("pool", *labels), registry=registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(name, what, ("pool",), buckets=SECONDS, registry=registry).labels(pool)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(name, what, ("pool",), registry=registry)

        self._finished = counter(
            "inferfleet_jobs_finished", "Jobs that reached a terminal state here", "state", "code"
        )
        self._retried = counter(
            "inferfleet_jobs_retried", "Attempts that failed and will be repeated", "code"
        )
        self._handed_over = counter("inferfleet_jobs_handed_over", "Running jobs given back to the queue")
        self._dead = counter("inferfleet_dead_letters", "Messages put among the dead letters", "code")
        self._undecodable = counter("inferfleet_messages_undecodable", "Messages that were not a job")
        self._generated = counter("inferfleet_tokens_generated", "Tokens the engine generated here")
        self._wasted = counter("inferfleet_tokens_wasted", "Tokens that have to be generated again", "reason")
        self._queue_wait = histogram(
            "inferfleet_queue_wait_seconds", "From submission to the start of the attempt"
        )
        self._first_token = histogram(
            "inferfleet_time_to_first_token_seconds", "From that start to the first token"
        )
        self._generation = histogram("inferfleet_generation_seconds", "From that start to the end")
        self._running = gauge("inferfleet_engine_running", "Requests in the engine's batch")
        self._waiting = gauge("inferfleet_engine_waiting", "Requests waiting inside the engine")
        self._held = gauge("inferfleet_worker_held", "Jobs taken by the worker that wait for the engine")
        self._kv_usage = gauge(
            "inferfleet_engine_kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1"
        )
        self._ready = gauge("inferfleet_worker_ready", "1 while /health/ready answers 200")

        self._outages = counter("inferfleet_outages", "Times that a service did not answer", "service")
        self._outage_seconds = counter(
            "inferfleet_outage_seconds", "How long a service did not answer", "service"
        )
        self._lines_dropped = counter(
            "inferfleet_log_lines_dropped", "Log lines that were dropped, since nobody read them"
        )
        self._lines_dropped.labels(pool)
        self._watched: dict[str, Outage] = {"redis": Outage(), "rabbitmq": Outage()}
        self._outages_exposed: dict[str, tuple[int, float]] = {}
        self._dropped = 0

        # Looking up labels takes as long as counting.
        self._finished_as = cache(partial(self._finished.labels, pool))

    @override
    def on_tokens(self, run: JobRun, tokens: int) -> None:
        self.tokens_generated += tokens

    @override
    def on_waste(self, run: JobRun, tokens: int, reason: str) -> None:
        if tokens:
            self._wasted.labels(self._pool, reason).inc(tokens)

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        if entry.failure is not None:
            self._retried.labels(self._pool, entry.failure.code).inc()
        else:
            self._handed_over.labels(self._pool).inc()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        self.jobs_finished += 1
        self._finished_as(result.state, result.error.code if result.error else "").inc()
        if result.timings is not None:
            self._queue_wait.observe(result.timings.queue_wait_s)
            self._generation.observe(result.timings.generation_s)
            if result.timings.time_to_first_token_s is not None:
                self._first_token.observe(result.timings.time_to_first_token_s)

    @override
    def on_dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> None:
        self._dead.labels(self._pool, failure.code).inc()
        if run is None:
            self._undecodable.labels(self._pool).inc()

    def watch(self, service: str, outage: Outage) -> None:
        """Count the outages of a service, and their duration."""
        self._watched[service] = outage

    def dropped(self, lines: int) -> None:
        """Set the number of dropped log lines."""
        self._lines_dropped.labels(self._pool).inc(lines - self._dropped)
        self._dropped = lines

    def observe(self, heartbeat: Heartbeat, *, ready: bool) -> None:
        """Set the gauges from a heartbeat. Call this before ``exposition``."""
        generated, self._exposed = self.tokens_generated - self._exposed, self.tokens_generated
        self._generated.labels(self._pool).inc(generated)
        self._running.labels(self._pool).set(heartbeat.running)
        self._waiting.labels(self._pool).set(heartbeat.waiting)
        self._held.labels(self._pool).set(heartbeat.held)
        self._kv_usage.labels(self._pool).set(heartbeat.kv_cache_usage)
        self._ready.labels(self._pool).set(ready)
        for service, outage in self._watched.items():
            count, seconds = self._outages_exposed.get(service, (0, 0.0))
            self._outages_exposed[service] = now = (outage.count, outage.seconds)
            self._outages.labels(self._pool, service).inc(now[0] - count)
            self._outage_seconds.labels(self._pool, service).inc(now[1] - seconds)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
