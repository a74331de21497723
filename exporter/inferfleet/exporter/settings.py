"""Settings of the exporter."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from inferfleet.schemas.job import PoolName
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.settings import LogFormat, Seconds, ServiceSettings


class ExporterSettings(ServiceSettings):
    """Settings of the exporter.

    ``management_url`` is the address of RabbitMQ's HTTP API, ``http://user:password@host:15672``, or a file
    that holds it; ``wire.rabbitmq.management`` documents its options for TLS. The user needs the tag
    ``monitoring``. Without this address some metrics are missing, and the exporter sees only pools that have
    a worker or are in ``pools``.
    """

    management_url: Annotated[str | None, Field(repr=False)] = None
    pools: Annotated[tuple[PoolName, ...], NoDecode] = ()
    """Pools to report even while they have no live worker; separated by commas in the environment."""
    http_host: str = "0.0.0.0"  # noqa: S104 - Prometheus comes from outside the pod
    http_port: Annotated[int, Field(ge=0, le=65_535), NUMBER] = 9101
    sample_interval_s: Seconds = 5.0
    """How often to sample. RabbitMQ updates its statistics every 5 s, so more often shows nothing new."""
    log_format: LogFormat = LogFormat.JSON
    log_level: str = "INFO"

    @field_validator("pools", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        return (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )

    @field_validator("management_url")
    @classmethod
    def _http_scheme(cls, url: str | None) -> str | None:
        url = (url or "").strip()
        if not url:
            return None
        if not url.startswith(("http://", "https://", "file:///")):
            raise ValueError(
                "it must start with http://, https:// or file:///, as http://user:password@host:15672"
            )
        return url
