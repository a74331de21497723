"""Settings of each process. ``main()`` reads them once from ``INFERFLEET_…`` variables and passes them on.

Command-line options override variables; variables override the defaults here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import uuid_utils
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import DEFAULT_POOL, PoolName, Priority
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.schemas.near_match import near_match
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.problems import sentence

logger = logging.getLogger(__name__)

PREFIX = "INFERFLEET_"

_ELSEWHERE = frozenset(
    {
        "agent_queue",
        "allow_anonymous",
        "api_keys_file",
        "batch_in_flight",
        "batches_at_once",
        "file_ttl_s",
        "files_url",
        "management_url",
        "max_batch_lines",
        "max_batches",
        "max_file_bytes",
        "max_files",
        "max_open_requests",
        "max_request_bytes",
        "max_runs",
        "metrics_host",
        "metrics_port",
        "model_pools",
        "pools",
        "read_timeout_s",
        "refuse_without_workers",
        "sample_interval_s",
        "test_services",
        "ui",
        "vllm_worker_pid",
        "webhook_max_undelivered",
        "webhook_networks",
        "webhook_timeout_s",
    }
)
"""Variables that other processes read: the gateway, the exporter, a runner of agents, the autoscaler, an
engine core, pytest."""

_OF_A_SERVICE = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)

Seconds = Annotated[float, Field(gt=0, le=LONGEST_S), NUMBER]
WholeSeconds = Annotated[int, Field(ge=1, le=LONGEST_S), NUMBER]
Bytes = Annotated[int, Field(ge=1, le=MOST), NUMBER]


class QueueType(StrEnum):
    """The kind of RabbitMQ queue a pool uses."""

    CLASSIC = "classic"
    QUORUM = "quorum"


class LogFormat(StrEnum):
    """The format of log lines: a JSON object per line, or text for a person."""

    JSON = "json"
    CONSOLE = "console"


class ServiceSettings(BaseSettings):
    """The services' addresses, and the settings that all processes of a fleet must agree on.

    ``queue_max_length`` is the admission limit of a pool: when so many jobs wait, ``submit`` raises
    ``QueueFullError``; ``None`` is no limit. Both queue settings are fixed once a pool's queue exists;
    RabbitMQ refuses other values. ``turn_publish_grace_s`` is how long a turn may own its session without
    being published; then its producer counts as dead, and another process publishes the turn. Unless
    ``allow_eviction`` is set, a process refuses a Redis that may evict keys.

    Both URLs may name a file that holds them, such as ``file:///run/secrets/amqp-url``. Each new connection
    reads the file again, so a rotated password needs no restart.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    amqp_url: Annotated[str, Field(repr=False)] = "amqp://guest:guest@127.0.0.1:5672/"
    redis_url: Annotated[str, Field(repr=False)] = "redis://127.0.0.1:6379/0"
    connect_timeout_s: Seconds = 10.0
    publish_timeout_s: Seconds = 30.0
    queue_type: QueueType = QueueType.CLASSIC
    queue_max_length: Annotated[int, Field(ge=1, le=MOST), NUMBER] | None = None
    result_ttl_s: WholeSeconds = 24 * 3600
    queued_ttl_s: WholeSeconds = 7 * 24 * 3600
    session_ttl_s: WholeSeconds = 30 * 60
    max_session_bytes: Bytes = 16 * 1024 * 1024
    turn_publish_grace_s: Seconds = 5.0
    keep_requests: bool = True
    """Whether Redis keeps the request of each unfinished job. Without it, a job whose message RabbitMQ has
    lost cannot be published again."""
    preempt_from: Annotated[int, Field(ge=1, le=PRIORITY_LEVELS), NUMBER] = Priority.URGENT
    """Jobs of at least this priority preempt running jobs below it; no job has the priority 10. Whoever
    publishes such a job announces it to the pool's workers."""
    fair_shares: bool = False
    """Whether tenants share each pool by what they have been served lately."""
    warm_prompt_chars: Annotated[int, Field(ge=0, le=MOST), NUMBER] = 0
    """From how many characters on the common beginning of two prompts counts: a job without a session waits
    for the worker that has it in the prefix cache, as a session's next turn does. With 0 it does not wait."""
    allow_eviction: bool = False
    redis_wait_replicas: Annotated[int, Field(ge=0, le=100), NUMBER] = 0
    """On how many replicas of Redis a job's record must be before ``submit`` publishes it, and a job's end
    before its client is told and its message is acked."""
    redis_wait_timeout_ms: Annotated[int, Field(ge=1, le=4000), NUMBER] = 1000
    """How long one ``WAIT`` for the replicas may take: nothing else that a process sends runs meanwhile."""

    @field_validator("amqp_url")
    @classmethod
    def _amqp_scheme(cls, url: str) -> str:
        return _require_scheme(url, ("amqp", "amqps", "file"), "amqp://user:password@host:5672/vhost")

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, url: str) -> str:
        several = [f"{scheme}+{kind}" for kind in ("sentinel", "cluster") for scheme in ("redis", "rediss")]
        return _require_scheme(
            url, ("redis", "rediss", "unix", "file", *several), "redis://:password@host:6379/0"
        )


class ProducerSettings(ServiceSettings):
    """Settings of a client. ``client_id`` names its reply stream; by default each client has a new one.

    ``patience_s`` is how long a call keeps trying while RabbitMQ or Redis is unreachable, before it raises
    ``ServiceUnreachableError``; with 0 it raises at once.
    """

    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = Field(
        default_factory=lambda: f"client-{uuid_utils.uuid7()}"
    )
    max_body_bytes: Bytes = 1024 * 1024
    patience_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 0.0
    state_check_interval_s: Seconds = 15.0
    """How often a waiting client reads the job's record, in case the reply line was lost with a worker."""


class WorkerSettings(ServiceSettings):
    """Settings of one worker process.

    ``engine`` is the name of an installed engine, and ``engine_args`` are that engine's own arguments.
    ``max_running`` is how many jobs the engine runs at once; ``look_ahead`` is how many more the worker
    prefetches, so that no slot stays empty. ``lease_s`` is how long other workers leave a running job alone
    after its worker's last sign of life.

    ``pod_name`` and ``pod_namespace`` come from Kubernetes' downward API. With them, and a service account
    that may patch pods, the worker sets its pod's deletion cost, at most every ``deletion_cost_interval_s``.
    """

    worker_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
    )
    pool: PoolName = DEFAULT_POOL
    engine: str = "vllm"
    model: str = ""
    base_url: str = ""
    """The addresses of the servers that the engine ``openai`` asks, separated by commas."""
    engine_args: Annotated[dict[str, Any], Field(repr=False)] = Field(default_factory=dict)
    adapters_dir: str = ""
    """A folder with LoRA adapters, which jobs name as their model."""
    max_running: Annotated[int, Field(ge=1, le=60_000), NUMBER] = 64
    look_ahead: Annotated[int, Field(ge=0, le=5_000), NUMBER] = 8
    preempt_min_run_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 1.0
    preempt_limit: Annotated[int, Field(ge=0, le=100), NUMBER] = 3
    oldest_share: Annotated[float, Field(ge=0, le=0.5), NUMBER] = 0.05
    """The share of a worker's starts that goes to the job that has waited longest, whatever its priority."""
    warm_wait_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 0.0
    """How long a session's next turn waits for the worker that has its history in the prefix cache, before
    any other worker may take it. With 0 it does not wait."""
    http_host: str = "0.0.0.0"  # noqa: S104 - probes come from the kubelet, outside the pod
    http_port: Annotated[int, Field(ge=0, le=65_535), NUMBER] = 9100
    drain_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 30.0
    journal_flush_streamed_s: Seconds = 0.05
    journal_flush_s: Seconds = 1.0
    heartbeat_interval_s: Seconds = 2.0
    lease_s: Annotated[float, Field(ge=1, le=LONGEST_S), NUMBER] = 15.0
    sweep_interval_s: Seconds = 30.0
    """About how long it takes until a job that has lost its message is published again."""
    retry_base_s: Seconds = 1.0
    retry_cap_s: Seconds = 60.0
    pod_name: str = ""
    pod_namespace: str = ""
    deletion_cost_interval_s: Seconds = 10.0
    kubernetes_url: str = "https://kubernetes.default.svc"
    service_account_dir: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    log_format: LogFormat = LogFormat.JSON
    log_level: str = "INFO"
    log_prompts: bool = False
    tracing: bool = False
    """Whether the worker exports spans with OpenTelemetry, whose own variables say where and which."""

    @field_validator("warm_wait_s")
    @classmethod
    def _can_publish_again(cls, wait_s: float, info: ValidationInfo) -> float:
        if wait_s and not info.data.get("keep_requests", True):
            raise ValueError(
                f"{wait_s:g} needs INFERFLEET_KEEP_REQUESTS: RabbitMQ moves turns between queues without a "
                "confirm, so workers must be able to publish them again"
            )
        return wait_s


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def misspelt_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Describe each ``INFERFLEET_`` variable that no process reads, with the name that may be meant.

    A variable of another process is fine. Those that Kubernetes makes for a service are not settings.
    """
    known = _ELSEWHERE.union(
        *(each.model_fields for each in (ServiceSettings, ProducerSettings, WorkerSettings))
    )
    variables = {PREFIX + name.upper() for name in known}
    for spelt in environment:
        name = spelt.upper()
        of_a_service = _OF_A_SERVICE.search(name)
        if name in variables or (
            of_a_service and f"{name[: of_a_service.start()]}_SERVICE_HOST" in environment
        ):
            continue
        if name.startswith(PREFIX):
            near = near_match(name.removeprefix(PREFIX), known)
            meant = "" if near is None else f" (did you mean {PREFIX}{near.upper()}?)"
            yield f"{spelt} is no setting{meant}: it has no effect"
        elif name.startswith(PREFIX[:5]) and (whole := near_match(name, variables, cutoff=0.9)):
            yield f"{spelt} is no setting (did you mean {whole}?): it has no effect"


def read_settings(
    settings: type[SettingsT], tell: Callable[[str], None] | None = None, /, **options: Any
) -> SettingsT:
    """Read settings from the environment; options that are not ``None`` override it.

    Calls ``tell`` for each variable that is probably misspelt; by default logs each of them once.

    Raises:
        ConfigurationError: A value is invalid. The message names the variable and the reason, and quotes no
            URL.

    """
    for problem in misspelt_variables(os.environ):
        (tell or _warn)(problem)
    try:
        return settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{_variable(problem['loc'])}: {sentence(problem, quoting=True)}"
            for problem in error.errors(include_url=False)
        )
        raise ConfigurationError(f"invalid setting: {problems}") from error
    except SettingsError as error:
        # A variable that should hold JSON. pydantic-settings names the field, and its cause the problem.
        field = next(name for name in settings.model_fields if f'"{name}"' in str(error))
        raise ConfigurationError(
            f"invalid setting: INFERFLEET_{field.upper()}: is not JSON ({error.__cause__})"
        ) from error


def _variable(place: Sequence[int | str]) -> str:
    """Name the variable, and behind it the place in the list or object that it holds."""
    return f"{PREFIX}{place[0]!s}".upper() + "".join(f"[{step}]" for step in place[1:])


@cache
def _warn(problem: str) -> None:
    logger.warning("%s", problem)


def _require_scheme(url: str, schemes: tuple[str, ...], example: str) -> str:
    url = url.strip()
    # Not urlsplit: its errors may quote the password, and so may the text before a mere colon.
    found = re.match(r"([a-z][a-z0-9+.-]*):(?=/|\d+$)", url, re.IGNORECASE)
    scheme = found[1].lower() if found else ""
    if scheme not in schemes:
        raise ValueError(f"the scheme {scheme!r} is not one of {', '.join(schemes)}; write it as {example}")
    return url
