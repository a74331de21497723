"""Settings of a runner of agents."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inferfleet.schemas.job import PoolName
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.run import DEFAULT_AGENT_QUEUE
from inferfleet.schemas.settings import LogFormat, ProducerSettings, Seconds


class RunnerSettings(ProducerSettings):
    """Settings of a runner. ``max_runs`` is how many runs it has at once; those that wait do not count."""

    agent_queue: PoolName = DEFAULT_AGENT_QUEUE
    """The queue whose runs it takes."""
    max_runs: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 32
    lease_s: Annotated[float, Field(ge=1, le=LONGEST_S), NUMBER] = 15.0
    """How long other runners leave a run alone after its runner's last sign of life."""
    sweep_interval_s: Seconds = 30.0
    """How often runs that have lost their messages are looked for."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 30.0
    """How long a stopping runner waits for the tool calls that it makes."""
    http_host: str = "0.0.0.0"  # noqa: S104 - probes come from the kubelet, outside the pod
    http_port: Annotated[int, Field(ge=0, le=65_535), NUMBER] | None = None
    """The port for health and metrics; without it there is none."""
    tracing: bool = False
    """Whether the runner exports the spans of runs."""
    webhook_max_undelivered: Annotated[int, Field(ge=1, le=10_000_000), NUMBER] = 100_000
    """How many events of a webhook endpoint are kept that it has not accepted."""
    patience_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 30.0
    log_format: LogFormat = LogFormat.JSON
    log_level: str = "INFO"
