"""Settings of the gateway."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, ValidationInfo, field_validator

from inferfleet.producer.batch.line_ids import MAX_LINES
from inferfleet.schemas.job import DEFAULT_POOL, PoolName
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.settings import Bytes, LogFormat, ProducerSettings, Seconds, WholeSeconds


class GatewaySettings(ProducerSettings):
    """Settings of the gateway.

    ``pool`` gets the requests that name no model. ``model_pools`` maps models to their pools; a model that a
    live worker serves needs no entry. Without ``api_keys_file`` the gateway asks nobody who they are, and
    unless ``allow_anonymous`` is set, it then listens on a loopback address only.
    """

    api_keys_file: Path | None = None
    """The file of API keys, which is read again when it changes. Without it, anybody is the tenant
    ``default``."""
    allow_anonymous: bool = False
    """Whether to listen where anybody may connect. It stands before the address, which is checked by it."""
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535), NUMBER] = 8000
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65_535), NUMBER] | None = None
    """The port for Prometheus. Without it there is none: it asks nobody who they are, and names tenants."""
    pool: PoolName = DEFAULT_POOL
    model_pools: dict[str, PoolName] = Field(default_factory=dict)
    refuse_without_workers: bool = False
    """Whether to refuse requests to a pool without a live worker: set it where nobody starts workers."""
    max_request_bytes: Bytes = 16 * 1024 * 1024
    max_open_requests: Annotated[int, Field(ge=1, le=1_000_000), NUMBER] = 2000
    """How many requests may wait or stream at the same time."""
    files_url: str = ""
    """The folder or bucket for files and batches, the same for all gateways; without it there are none."""
    max_file_bytes: Bytes = 512 * 1024 * 1024
    max_files: Annotated[int, Field(ge=1, le=MOST), NUMBER] = 10_000
    """How many files a tenant may have."""
    file_ttl_s: WholeSeconds = 30 * 24 * 3600
    """How long a file is kept whose owner has not said so, and a batch after its deadline."""
    max_batch_lines: Annotated[int, Field(ge=1, le=MAX_LINES), NUMBER] = 1_000_000
    max_batches: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 100
    """How many batches of a tenant may be open, which is before their end."""
    batches_at_once: Annotated[int, Field(ge=0, le=1000), NUMBER] = 4
    """How many batches this gateway runs at a time; with 0 it leaves them to other gateways."""
    batch_in_flight: Annotated[int, Field(ge=1, le=20_000), NUMBER] = 1000
    """How many jobs of a batch are queued or run at once."""
    ui: bool = True
    """Whether there is a web page at ``/ui``."""
    read_timeout_s: Seconds = 30.0
    """How long a client may take to send its headers, and then its body, or to take a part of a stream."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] = 30.0
    """How long a stopping gateway waits for its requests to end."""
    webhook_networks: list[IPvAnyNetwork] = Field(default_factory=list[IPvAnyNetwork])
    """Networks that are not public and have endpoints for webhooks, which may also use http there."""
    webhook_timeout_s: Seconds = 15.0
    """How long an endpoint may take to accept an event."""
    webhook_max_undelivered: Annotated[int, Field(ge=1, le=10_000_000), NUMBER] = 100_000
    """How many events of an endpoint are kept that it has not accepted."""
    log_format: LogFormat = LogFormat.JSON
    log_level: str = "INFO"
    tracing: bool = False
    """Whether the gateway exports spans with OpenTelemetry, whose own variables say where and which."""

    @field_validator("allow_anonymous")
    @classmethod
    def _keys_or_anybody(cls, anybody: bool, info: ValidationInfo) -> bool:
        if anybody and info.data.get("api_keys_file") is not None:
            raise ValueError(
                "with INFERFLEET_API_KEYS_FILE everybody needs a key: leave out INFERFLEET_ALLOW_ANONYMOUS"
            )
        return anybody

    @field_validator("http_host")
    @classmethod
    def _only_loopback_is_anonymous(cls, host: str, info: ValidationInfo) -> str:
        asks_nobody = info.data.get("api_keys_file") is None and not info.data.get("allow_anonymous")
        if asks_nobody and not is_loopback(host):
            raise ValueError(
                f"{host} is not a loopback address, and the gateway asks nobody who they are: set "
                "INFERFLEET_API_KEYS_FILE; or keep others out by other means, and set "
                "INFERFLEET_ALLOW_ANONYMOUS=true"
            )
        return host


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or ``localhost``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
