"""The runner's Prometheus metrics. Names follow Prometheus' conventions: base units, ``_total`` counters.

The values of every label are bounded, whatever runs are started: by the agents that the runner knows, and
their tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inferfleet.agents.agent import Agent
from inferfleet.agents.tool import Tool, ToolOutcome
from inferfleet.schemas.run import ModelAnswered, RunResult, RunState, Step

SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

OTHER: Final = "other"
"""The agent of runs whose agent the runner does not know."""

KINDS: Final = [str(step.model_fields["kind"].default) for step in get_args(get_args(Step)[0])]


class RunnerMetrics:
    """The metrics of one runner, all labelled with its queue, in a registry of their own."""

    def __init__(self, *, queue: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._queue = queue
        self._agents: set[str] = set()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"inferfleet_agent_{name}", what, ("queue", *labels), registry=registry)

        held = Gauge("inferfleet_agent_runs_held", "Runs that the runner has", ("queue",), registry=registry)
        self._held = held.labels(queue)
        self._ended = counter("runs_ended", "Runs that ended on this runner", "agent", "state", "code")
        self._steps = counter("steps", "Steps that were recorded", "kind")
        self._tokens = counter("tokens", "Tokens of the model's prompts and answers", "agent")
        self._cost = counter("cost", "What prompts and answers cost, in the currency of the prices", "agent")
        self._calls = Histogram(
            "inferfleet_agent_tool_call_seconds",
            "How long tool calls took, by outcome",
            ("queue", "tool", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self._events_dropped = counter("events_dropped", "Events of runs that a full endpoint did not get")
        self._events_dropped.labels(queue)
        for kind in KINDS:
            self._steps.labels(queue, kind)

    def know(self, agents: Iterable[Agent]) -> None:
        """Expose the metrics of these agents before their first runs."""
        for agent in agents:
            self._agents.add(agent.name)
            self._ended.labels(self._queue, agent.name, RunState.SUCCEEDED, "")
            self._tokens.labels(self._queue, agent.name)
            if agent.limits.prices is not None:
                self._cost.labels(self._queue, agent.name)
            for tool in agent.tools:
                if isinstance(tool, Tool):
                    for failed in (False, True):
                        self._calls.labels(self._queue, tool.name, _outcome(failed))

    def holding(self) -> AbstractContextManager[object]:
        """Count a run as held while the block runs."""
        return self._held.track_inprogress()

    def step_recorded(self, agent: str, step: Step) -> None:
        """Count a step, and the tokens of an answer, with what they cost."""
        self._steps.labels(self._queue, step.kind).inc()
        if isinstance(step, ModelAnswered):
            self._tokens.labels(self._queue, self._known(agent)).inc(step.tokens)
            if step.cost is not None:
                self._cost.labels(self._queue, self._known(agent)).inc(float(step.cost))

    def tool_called(self, tool: Tool, outcome: ToolOutcome, *, seconds: float) -> None:
        """Count a tool call that was made."""
        self._calls.labels(self._queue, tool.name, _outcome(outcome.failed)).observe(seconds)

    def run_ended(self, agent: str, result: RunResult) -> None:
        """Count a run that has ended."""
        code = result.error.code if result.error else ""
        self._ended.labels(self._queue, self._known(agent), result.state, code).inc()

    def event_dropped(self) -> None:
        """Count an event that a webhook endpoint did not get."""
        self._events_dropped.labels(self._queue).inc()

    def _known(self, agent: str) -> str:
        return agent if agent in self._agents else OTHER


def _outcome(failed: bool) -> str:
    return "failed" if failed else "succeeded"
