"""The arguments of the remote engine, and the addresses of its servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import Seconds
from inferfleet.worker.engines.engine_args import read_engine_args
from inferfleet.worker.engines.openai.ignored import Member

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)

_HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
_HeaderValue = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$")]


class OpenaiArguments(BaseModel):
    """What ``--engine-args`` may hold; ``docs/how-to/use-a-remote-engine.md`` describes each."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    api_key_file: Path | None = None
    headers: Annotated[dict[_HeaderName, _HeaderValue], Field(repr=False)] = Field(default_factory=dict)
    start_timeout_s: Seconds = 1800.0
    connect_timeout_s: Seconds = 5.0
    silence_timeout_s: Seconds = 300.0
    busy_timeout_s: Seconds = 120.0
    max_first_token_s: Seconds | None = None
    may_ignore: list[Member] = Field(default_factory=list[Member])

    @classmethod
    def from_engine_args(cls, engine_args: Mapping[str, Any]) -> Self:
        """Read the engine's arguments.

        Raises:
            ConfigurationError: An argument is unknown or has an impossible value; the message names it.

        """
        return read_engine_args(cls, engine_args, engine="openai")


def base_urls(setting: str) -> list[str]:
    """Return the addresses in ``--base-url``, which commas separate.

    Raises:
        ConfigurationError: There is none, or one is not a URL like ``http://host:8000/v1``. The message
            quotes no URL that may hold a password.

    """
    urls = [url.strip().rstrip("/") for url in setting.split(",") if url.strip()]
    if not urls:
        raise ConfigurationError(
            "the openai engine needs the address of a server: give --base-url http://host:8000/v1 "
            "(INFERFLEET_BASE_URL)"
        )
    for number, url in enumerate(urls, start=1):
        if not _is_plain(url):
            raise ConfigurationError(
                f"--base-url: address {number} of {len(urls)} has more than a scheme, a host and a path; "
                'a key belongs in a file: --engine-args \'{"api_key_file": "/run/secrets/key"}\''
            )
        if not _is_address(url):
            raise ConfigurationError(
                f"--base-url: {url!r} is not the address of a server; write it as http://host:8000/v1"
            )
    return urls


def _is_plain(url: str) -> bool:
    return not any(mark in url for mark in "@?#")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(_ADDRESS.fullmatch(parts.netloc)) and port != 0
