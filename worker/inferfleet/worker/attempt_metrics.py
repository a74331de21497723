"""What attempts add to the worker's metrics: jobs, tokens, times, tenants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import Metric
from typing_extensions import override

from inferfleet.schemas import Failure, FailureCode, JobState, Result
from inferfleet.schemas.journal import QueuedEntry, RestartReason
from inferfleet.schemas.trace import trace_of_attempts
from inferfleet.worker.broker import Delivery
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.tallies import Counts, Distribution

MAX_TENANTS: Final = 100
"""How many tenants have series of their own; all later ones share those of ``other``."""

OTHER: Final = "other"

DURATIONS_S: Final = tuple(0.01 * 2**step for step in range(23))
"""The buckets of ``gen_ai.server.request.duration`` in OpenTelemetry's conventions for generative AI, 10 ms
to 82 s, and their continuation to 12 h, because a job may wait for a night."""

FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0),
)
"""The buckets of ``gen_ai.server.time_to_first_token`` there, and those that vLLM has above them."""

PER_TOKEN_S: Final = (
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
"""The buckets of ``gen_ai.server.time_per_output_token`` there, and three below for small models."""

FLUSH_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FLUSH_TOKENS: Final = tuple(4.0**step for step in range(9))


class _Tenant:
    """What a tenant has used here. Plain numbers, because every job changes all of them."""

    __slots__ = ("cached", "completion", "engine_s", "jobs", "prompt")

    def __init__(self) -> None:
        self.jobs = {state: 0 for state in JobState if state.terminal}
        self.prompt = self.cached = self.completion = 0
        self.engine_s = 0.0


class AttemptMetrics(Hooks):
    """Counts what happens to attempts. Every series whose labels are known exists from the start, at 0."""

    def __init__(self) -> None:
        codes = [(code.value,) for code in FailureCode]
        restarts = [(reason.value,) for reason in RestartReason]
        self._finished = Counts(
            "inferfleet_jobs_finished",
            "Jobs that reached a terminal state here",
            ("state", "code"),
            known=_possible_ends(),
        )
        self._retried = Counts(
            "inferfleet_jobs_retried",
            "Failed attempts that will be retried",
            ("code",),
            known=[(code.value,) for code in FailureCode if code.retryable],
        )
        self._handed_over = Counts("inferfleet_jobs_handed_over", "Running jobs that the worker handed over")
        self._preempted = Counts(
            "inferfleet_preemptions", "Times that a running job lost its slot to a more urgent one"
        )
        self.promoted = Counts(
            "inferfleet_jobs_promoted", "Jobs that overtook more urgent ones, because they had waited longest"
        )
        self._resumed = Counts(
            "inferfleet_jobs_resumed", "Attempts that continued the tokens of earlier ones"
        )
        self._restarted = Counts(
            "inferfleet_jobs_restarted",
            "Attempts that restarted an answer from its prompt",
            ("reason",),
            known=restarts,
        )
        self._republished = Counts(
            "inferfleet_jobs_republished", "Jobs published again because their messages were lost"
        )
        self._dead = Counts(
            "inferfleet_dead_letters", "Messages that the worker dead-lettered", ("code",), known=codes
        )
        self._undecodable = Counts("inferfleet_messages_undecodable", "Messages that were not a job")
        self.tokens_generated = 0
        self.jobs_finished = 0
        self._reused = Counts(
            "inferfleet_tokens_resumed", "Tokens of earlier attempts that were not generated again"
        )
        self._wasted = Counts(
            "inferfleet_tokens_wasted",
            "Tokens that have to be generated again",
            ("reason",),
            known=[*restarts, ("fenced",)],
        )
        self._queue_wait = Distribution(
            "inferfleet_queue_wait_seconds", "From submission to the start of the attempt", DURATIONS_S
        )
        self._first_token = Distribution(
            "inferfleet_time_to_first_token_seconds",
            "From the start of the attempt to its first token",
            FIRST_TOKEN_S,
        )
        self._per_token = Distribution(
            "inferfleet_time_per_output_token_seconds",
            "Mean time between two tokens of an answer with one choice",
            PER_TOKEN_S,
        )
        self._generation = Distribution(
            "inferfleet_generation_seconds", "From the start of the attempt to its end", DURATIONS_S
        )
        self._end_to_end = Distribution(
            "inferfleet_end_to_end_seconds", "From submission to the result", DURATIONS_S
        )
        self._engine = Distribution(
            "inferfleet_engine_seconds", "How long the engine had an attempt, however it ended", DURATIONS_S
        )
        self._flush = Distribution(
            "inferfleet_journal_flush_seconds", "How long a write of all due journals took", FLUSH_S
        )
        self._flushed = Distribution(
            "inferfleet_journal_flush_tokens", "How many tokens a write of all due journals had", FLUSH_TOKENS
        )
        self._tenants = {OTHER: _Tenant()}

    def families(self, pool: str) -> Iterator[Metric]:
        """Yield all metrics, labelled with the pool."""
        generated = Counts("inferfleet_tokens_generated", "Tokens the engine generated here")
        generated.add(self.tokens_generated)
        for tally in (*vars(self).values(), generated, *self._by_tenant()):
            if isinstance(tally, (Counts, Distribution)):
                yield tally.family(pool)

    def _by_tenant(self) -> Iterator[Counts]:
        """Yield what the tenants have used, and the tokens of all together."""
        prompt = Counts("inferfleet_tokens_prompt", "Prompt tokens of the jobs that ended here")
        cached = Counts(
            "inferfleet_tokens_cached",
            "Prompt tokens of the jobs that ended here, read from the prefix cache",
        )
        jobs = Counts(
            "inferfleet_tenant_jobs_finished",
            "Jobs that ended here, by tenant",
            ("tenant", "state"),
            known=(),
        )
        tokens = Counts(
            "inferfleet_tenant_tokens",
            "Tokens of jobs that ended here, by tenant",
            ("tenant", "kind"),
            known=(),
        )
        engine = Counts(
            "inferfleet_tenant_engine_seconds",
            "How long the engine had attempts of a tenant",
            ("tenant",),
            known=(),
        )
        for name, used in self._tenants.items():
            prompt.add(used.prompt)
            cached.add(used.cached)
            for state, count in used.jobs.items():
                jobs.values[name, state.value] = count
            tokens.values[name, "prompt"] = used.prompt
            tokens.values[name, "cached"] = used.cached
            tokens.values[name, "completion"] = used.completion
            engine.values[(name,)] = used.engine_s
        yield from (prompt, cached, jobs, tokens, engine)

    @override
    def on_start(self, run: JobRun, body: Mapping[str, Any]) -> None:
        if run.answer.tokens:
            self._resumed.add()
            self._reused.add(run.answer.tokens)

    @override
    def on_tokens(self, run: JobRun, tokens: int) -> None:
        self.tokens_generated += tokens

    @override
    def on_engine_end(self, run: JobRun, seconds: float) -> None:
        self._engine.observe(seconds)
        self._tenant(run.job.tenant).engine_s += seconds

    @override
    def on_preempt(self, run: JobRun) -> None:
        self._preempted.add()

    @override
    def on_waste(self, run: JobRun, tokens: int, reason: str) -> None:
        self._wasted.values[(reason,)] += tokens
        if reason != "fenced":
            self._restarted.values[(reason,)] += 1

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        if entry.failure is not None:
            self._retried.values[(entry.failure.code,)] += 1
        else:
            self._handed_over.add()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        self.jobs_finished += 1
        usage = result.usage
        self._finished.values[result.state, result.error.code if result.error else ""] += 1
        used = self._tenant(run.job.tenant if run is not None else OTHER)
        used.jobs[result.state] += 1
        used.prompt += usage.prompt_tokens
        used.cached += usage.cached_tokens
        used.completion += usage.completion_tokens
        if (timings := result.timings) is None:
            return
        trace = None
        if run is not None and run.traced:
            trace = trace_of_attempts(run.job.id, run.job.traceparent)
        self._queue_wait.observe(timings.queue_wait_s, trace=trace)
        self._generation.observe(timings.generation_s, trace=trace)
        self._end_to_end.observe(timings.total_s, trace=trace)
        if (first_s := timings.time_to_first_token_s) is None:
            return
        self._first_token.observe(first_s, trace=trace)
        # Choices are generated side by side, so their tokens say nothing about the time of one.
        if run is not None and (run.job.body.get("n") or 1) == 1 and run.answer.tokens_generated > 1:
            self._per_token.observe((timings.generation_s - first_s) / (run.answer.tokens_generated - 1))

    @override
    def on_dead_letter(self, run: JobRun | None, delivery: Delivery, failure: Failure) -> None:
        self._dead.values[(failure.code,)] += 1
        if run is None:
            self._undecodable.add()

    @override
    def on_republish(self, jobs: int) -> None:
        self._republished.add(jobs)

    @override
    def on_flush(self, tokens: int, seconds: float) -> None:
        self._flush.observe(seconds)
        self._flushed.observe(tokens)

    def _tenant(self, name: str) -> _Tenant:
        """Return a tenant's numbers: its own, or those that it shares."""
        used = self._tenants.get(name)
        if used is None:
            if len(self._tenants) > MAX_TENANTS:
                return self._tenants[OTHER]
            used = self._tenants[name] = _Tenant()
        return used


def _possible_ends() -> list[tuple[str, str]]:
    """Return the states and codes with which a job can end."""
    alone = {FailureCode.CANCELLED: JobState.CANCELLED, FailureCode.EXPIRED: JobState.EXPIRED}
    return [
        (JobState.SUCCEEDED.value, ""),
        *((alone.get(code, JobState.FAILED).value, code.value) for code in FailureCode),
    ]
