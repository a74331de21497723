"""The worker's Prometheus metrics. Names follow Prometheus' conventions: base units, ``_total`` counters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.model_swap import SwapState
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.worker.attempt_metrics import AttemptMetrics
from inferfleet.worker.gpus import GpuReading
from inferfleet.worker.start_times import StartPart

GAUGES: tuple[tuple[str, str, Callable[[Heartbeat], float]], ...] = (
    ("inferfleet_engine_running", "Requests in the engine's batch", lambda it: it.running),
    ("inferfleet_engine_waiting", "Requests waiting inside the engine", lambda it: it.waiting),
    ("inferfleet_worker_held", "Jobs taken by the worker that wait for the engine", lambda it: it.held),
    (
        "inferfleet_engine_kv_cache_usage_ratio",
        "Share of the KV cache in use, 0 to 1",
        lambda it: it.kv_cache_usage,
    ),
)

GPU_GAUGES: tuple[tuple[str, str, Callable[[GpuReading], float | None]], ...] = (
    ("inferfleet_gpu_memory_used_bytes", "GPU memory in use", lambda gpu: gpu.memory_used_bytes),
    ("inferfleet_gpu_memory_total_bytes", "GPU memory", lambda gpu: gpu.memory_total_bytes),
    (
        "inferfleet_gpu_utilization_ratio",
        "Share of the time in which any kernel ran",
        lambda gpu: gpu.utilization,
    ),
    ("inferfleet_gpu_power_watts", "Power of the GPU", lambda gpu: gpu.power_watts),
    ("inferfleet_gpu_temperature_celsius", "Temperature of the GPU", lambda gpu: gpu.temperature_celsius),
)


class WorkerMetrics(Collector):
    """One worker's metrics, all labelled with the worker's pool, in a registry of their own.

    ``attempts`` watches the attempts. The rest is state that others keep, and is read at each scrape.
    """

    def __init__(self, *, pool: str) -> None:
        self.attempts = AttemptMetrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        self.slots: Callable[[], int] = lambda: 0
        """How many jobs the engine may run at once."""
        self.load_s = 0.0
        """How long the engine took to load its model; 0 before that."""
        self.start_parts: Mapping[StartPart, float] = {}
        """How many seconds each part of the start took; empty before the worker is ready."""
        self.swaps = Counter[SwapState]()
        """How many swaps of the model have ended in each of the states in which they can."""
        self._pool = pool
        self._began = time.monotonic()
        self._drain_began: float | None = None
        self._heartbeat: Heartbeat | None = None
        self._ready = False
        self._lines_dropped = 0
        self._gpus: Sequence[GpuReading] = ()
        self._gpu_seconds: float | None = None
        self._watched: dict[str, tuple[Outage, Callable[[], bool]]] = {
            service: (Outage(), lambda: False) for service in ("redis", "rabbitmq")
        }
        self._pipeline: CommandPipeline | None = None

    def watch(self, service: str, outage: Outage, *, circuit_open: Callable[[], bool]) -> None:
        """Show the outages of a service, and whether calls to it fail at once."""
        self._watched[service] = (outage, circuit_open)

    def watch_commands(self, pipeline: CommandPipeline) -> None:
        """Show how many commands Redis answers, and how long they take."""
        self._pipeline = pipeline

    def drain_began(self) -> None:
        """Note that the worker drains."""
        if self._drain_began is None:
            self._drain_began = time.monotonic()

    def observe(
        self,
        heartbeat: Heartbeat,
        *,
        ready: bool,
        lines_dropped: int = 0,
        gpus: Sequence[GpuReading] = (),
    ) -> None:
        """Take the current state. Call this before ``exposition``."""
        self._heartbeat = heartbeat
        self._ready = ready
        self._lines_dropped = lines_dropped
        self._gpus = gpus
        if gpus:
            self._gpu_seconds = len(gpus) * (time.monotonic() - self._began)

    def exposition(self, encode: Callable[[CollectorRegistry], bytes] = generate_latest) -> bytes:
        """Return the metrics as text: in Prometheus' format, or as ``encode`` writes them."""
        return encode(self.registry)

    @override
    def collect(self) -> Iterator[Metric]:
        yield from self.attempts.families(self._pool)
        if self._heartbeat is not None:
            yield from self._worker(self._heartbeat)
        yield from self._services()
        yield from self._gpu_families()

    def _worker(self, heartbeat: Heartbeat) -> Iterator[Metric]:
        for name, what, value_of in GAUGES:
            yield self._gauge(name, what, value_of(heartbeat))
        yield self._gauge("inferfleet_worker_slots", "Jobs that the engine may run at once", self.slots())
        yield self._gauge("inferfleet_worker_ready", "1 while /health/ready answers 200", self._ready)
        yield self._gauge("inferfleet_worker_load_seconds", "How long the model took to load", self.load_s)
        start = GaugeMetricFamily(
            "inferfleet_worker_start_seconds", "How long a part of the start took", labels=("pool", "part")
        )
        for part in StartPart:
            start.add_metric((self._pool, part), self.start_parts.get(part, 0.0))
        yield start
        yield from self._swaps(heartbeat)
        drained_s = 0.0 if self._drain_began is None else time.monotonic() - self._drain_began
        yield self._gauge(
            "inferfleet_worker_drain_seconds", "How long the worker has been draining", drained_s
        )
        yield self._counter(
            "inferfleet_log_lines_dropped",
            "Log lines that were dropped because nobody read them",
            self._lines_dropped,
        )
        info = InfoMetricFamily("inferfleet_worker", "The worker's build and model", labels=("pool",))
        info.add_metric(
            (self._pool,),
            {
                "worker_id": heartbeat.worker_id,
                "version": heartbeat.version,
                "engine": heartbeat.engine,
                "model": heartbeat.model,
                "model_identity": heartbeat.model_identity,
            },
        )
        yield info

    def _swaps(self, heartbeat: Heartbeat) -> Iterator[Metric]:
        labels = ("pool", "state")
        now = GaugeMetricFamily(
            "inferfleet_model_swap_running", "1 for the state of the swap that runs", labels=labels
        )
        for state in SwapState:
            running = heartbeat.swap is not None and heartbeat.swap.busy and heartbeat.swap.state is state
            now.add_metric((self._pool, state), running)
        ended = CounterMetricFamily("inferfleet_model_swaps", "Swaps that have ended", labels=labels)
        for state in SwapState:
            if state.over:
                ended.add_metric((self._pool, state), self.swaps[state])
        yield from (now, ended)

    def _services(self) -> Iterator[Metric]:
        labels = ("pool", "service")
        outages = CounterMetricFamily("inferfleet_outages", "Outages of a service", labels=labels)
        seconds = CounterMetricFamily(
            "inferfleet_outage_seconds", "Total duration of the outages of a service", labels=labels
        )
        circuits = GaugeMetricFamily(
            "inferfleet_breaker_open", "1 while calls to the service fail at once", labels=labels
        )
        for service, (outage, circuit_open) in self._watched.items():
            outages.add_metric((self._pool, service), outage.count)
            seconds.add_metric((self._pool, service), outage.seconds)
            circuits.add_metric((self._pool, service), circuit_open())
        yield from (outages, seconds, circuits)
        pipeline = self._pipeline
        yield self._counter(
            "inferfleet_redis_commands", "Commands that Redis answered", pipeline.answers if pipeline else 0
        )
        yield self._counter(
            "inferfleet_redis_command_seconds",
            "Total time from giving a command to its reply",
            pipeline.answer_seconds if pipeline else 0.0,
        )

    def _gpu_families(self) -> Iterator[Metric]:
        if self._gpu_seconds is None:
            return
        yield self._counter(
            "inferfleet_gpu_seconds", "How long the worker has had its GPUs, summed", self._gpu_seconds
        )
        for name, what, value_of in GPU_GAUGES:
            family = GaugeMetricFamily(name, what, labels=("pool", "gpu"))
            for gpu in self._gpus:
                if (value := value_of(gpu)) is not None:
                    family.add_metric((self._pool, gpu.uuid), value)
            yield family
        throttled = GaugeMetricFamily(
            "inferfleet_gpu_throttled", "1 while a limit lowers the clocks", labels=("pool", "gpu", "reason")
        )
        for gpu in self._gpus:
            for reason, now in (gpu.throttled or {}).items():
                throttled.add_metric((self._pool, gpu.uuid, reason), now)
        yield throttled

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, what, labels=("pool",))
        family.add_metric((self._pool,), value)
        return family

    def _counter(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(name, what, labels=("pool",))
        family.add_metric((self._pool,), value)
        return family
