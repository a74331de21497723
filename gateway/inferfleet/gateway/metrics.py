"""The gateway's Prometheus metrics. Names follow Prometheus' conventions: base units, ``_total`` counters.

The values of every label are bounded, whatever clients send.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from inferfleet.producer.retrieval.counts import SearchCounts
from inferfleet.wire.outage import Outage

SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})

MOST_TENANTS: Final = 100
"""How many tenants have a value of their own, the first ones that come."""

NO_ROUTE: Final = "none"
"""The route of a request that was refused before it had one."""

OTHER: Final = "other"
"""The value for all that have none of their own."""

REFUSALS: Final = frozenset(
    """
    batch_not_cancellable batch_not_found batch_unconfirmed body_timeout body_too_large cancelled
    context_length_exceeded conversation_not_found endpoint_unreachable engine_error expired
    file_not_found file_too_large forbidden_host forbidden_origin gateway_stopping idempotency_conflict
    index_not_found internal invalid_api_key invalid_request job_data_lost job_not_found
    method_not_allowed missing_api_key model_not_found model_unavailable no_storage no_workers not_a_form
    not_found not_json out_of_memory pool_not_allowed pool_not_found previous_response_not_found
    priority_not_allowed publish_unconfirmed queue_full rate_limit_exceeded request_exceeds_limit
    response_not_found retrieval_failed retrieval_timeout run_conflict run_not_found service_refused
    service_unreachable session_busy session_conflict session_not_found session_too_large state_conflict
    storage_unreachable timeout too_late too_many_attempts too_many_batches too_many_endpoints
    too_many_files too_many_open_requests too_many_unfinished_jobs webhook_endpoint_not_found
    """.split()  # noqa: SIM905 - one on each line would take a page
)
"""The codes of refusals, which the guide explains."""

LIMITS: Final = ("requests", "tokens", "unfinished_jobs")
"""What an API key may be limited in."""

LINE_STATES: Final = ("completed", "failed", "cancelled", "expired")
"""How a line of a batch may end."""

SERVICES: Final = ("redis", "rabbitmq")


class GatewayMetrics:
    """The metrics of one gateway, in the registry that it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"inferfleet_gateway_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"inferfleet_gateway_{name}", what, registry=registry)

        def histogram(name: str, what: str) -> Histogram:
            name = f"inferfleet_gateway_{name}"
            return Histogram(name, what, ("method", "route"), buckets=SECONDS, registry=registry)

        build = Info("inferfleet_gateway_build", "The version of this gateway", registry=registry)
        build.info({"version": version("inferfleet")})
        requests = counter("requests", "Requests that have ended", "method", "route", "status")
        by_tenant = counter("tenant_requests", "Requests that have ended, by tenant", "tenant", "status")
        refusals = counter("refusals", "Requests that were refused", "code")
        gone = counter("clients_gone", "Requests whose clients left before the end", "method", "route")
        starts = histogram("response_start_seconds", "From a request to the first byte of its answer")
        durations = histogram("request_duration_seconds", "From a request to the end of its answer")
        limited = counter("limited", "Submissions that a limit of an API key has refused", "limit")
        self.demoted = counter("jobs_demoted", "Jobs that got a lower priority, beyond their key's guarantee")
        self.open_requests = gauge("open_requests", "Requests that have not ended")
        self.open_streams = gauge("open_streams", "Answers that are streams of events and have not ended")

        deliveries = counter("webhook_deliveries", "Tries to deliver an event", "outcome")
        dropped = counter("webhook_events_dropped", "Undelivered events that were dropped", "reason")
        self.webhook_accepted = deliveries.labels("accepted")
        self.webhook_failed = deliveries.labels("failed")
        self.webhook_no_room = dropped.labels("no_room")
        self.webhook_given_up = dropped.labels("given_up")
        self.webhook_expired = dropped.labels("expired")
        self.webhook_disabled = counter("webhook_endpoints_disabled", "Endpoints disabled by their failures")
        self.webhook_overdue = gauge(
            "webhook_overdue_seconds", "How long the oldest delivery that no gateway has begun has been due"
        )

        self.rollouts_aborted = counter("rollouts_aborted", "Rollouts that this gateway has aborted")

        self.batches_open = gauge("batches_open", "Batches of all tenants that have not ended")
        self.batches_running = gauge("batches_running", "Batches that this gateway runs")
        self.batch_claims = counter("batch_claims", "Batches that this gateway has begun or taken over")
        self.batch_lines_submitted = counter("batch_lines_submitted", "Lines that have become jobs")
        lines_ended = counter("batch_lines_ended", "Lines that have ended", "state")

        # Looking up labels takes as long as counting.
        self._requests = cache(requests.labels)
        self._by_tenant = cache(by_tenant.labels)
        self._refusals = {code: refusals.labels(code) for code in sorted({*REFUSALS, OTHER})}
        self._gone = cache(gone.labels)
        self._starts = cache(starts.labels)
        self._durations = cache(durations.labels)
        self._limited = {limit: limited.labels(limit) for limit in LIMITS}
        self._lines_ended = {state: lines_ended.labels(state) for state in LINE_STATES}
        self._tenants: set[str] = set()

    def routed(self, routes: Iterable[tuple[str, str]]) -> None:
        """Expose the metrics of these methods and routes before their first requests."""
        for route in (*routes, (OTHER, NO_ROUTE)):
            for of_route in (self._gone, self._starts, self._durations):
                of_route(*route)

    def watch(self, outages: Mapping[str, Outage], searches: SearchCounts) -> None:
        """Count the outages of the services, and the searches of indexes, and how long these take."""
        self._registry.register(_Outages(outages))
        self._registry.register(_Searches(searches))

    def request_ended(
        self,
        *,
        method: str,
        route: str,
        status: int,
        tenant: str,
        started_s: float | None,
        ended_s: float,
    ) -> None:
        """Count a request, the time until its answer started, if it did, and until it ended."""
        method = method if method in METHODS else OTHER
        self._requests(method, route, status).inc()
        self._by_tenant(self._bounded(tenant), f"{status // 100}xx").inc()
        self._durations(method, route).observe(ended_s)
        if started_s is not None:
            self._starts(method, route).observe(started_s)

    def client_gone(self, *, method: str, route: str) -> None:
        """Count a client that went away before the end of its answer, or did not read it."""
        self._gone(method if method in METHODS else OTHER, route).inc()

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refusals.get(code, self._refusals[OTHER]).inc()

    def limited(self, limit: str) -> None:
        """Count a submission that a limit of an API key has refused."""
        self._limited[limit].inc()

    def line_ended(self, state: str) -> None:
        """Count a line of a batch."""
        self._lines_ended[state].inc()

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _bounded(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                return OTHER
            self._tenants.add(tenant)
        return tenant


class _Outages(Collector):
    """Reads the outages of the services."""

    def __init__(self, outages: Mapping[str, Outage]) -> None:
        self._outages = outages

    @override
    def collect(self) -> Iterable[CounterMetricFamily]:
        count = CounterMetricFamily(
            "inferfleet_gateway_outages", "Times that a service did not answer", labels=["service"]
        )
        seconds = CounterMetricFamily(
            "inferfleet_gateway_outage_seconds", "How long a service did not answer", labels=["service"]
        )
        for service, outage in self._outages.items():
            count.add_metric([service], outage.count)
            seconds.add_metric([service], outage.seconds)
        return count, seconds


class _Searches(Collector):
    """Reads the searches of indexes."""

    def __init__(self, searches: SearchCounts) -> None:
        self._searches = searches

    @override
    def collect(self) -> Iterable[CounterMetricFamily]:
        counts = self._searches
        count = CounterMetricFamily(
            "inferfleet_gateway_searches", "Searches of indexes that have ended", labels=["outcome"]
        )
        count.add_metric(["succeeded"], counts.succeeded)
        count.add_metric(["failed"], counts.failed)
        seconds = CounterMetricFamily("inferfleet_gateway_search_seconds", "How long these took in all")
        seconds.add_metric([], counts.seconds)
        hits = CounterMetricFamily("inferfleet_gateway_search_hits", "The chunks that they have found")
        hits.add_metric([], counts.hits)
        return count, seconds, hits
