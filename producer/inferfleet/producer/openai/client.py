"""OpenAI's own SDK on the queue, without a server in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.sync import SyncFleet
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import DEFAULT_POOL

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI


@overload
def openai_client(
    fleet: Fleet, *, pool: str = ..., models: Mapping[str, str] | None = ..., **options: Any
) -> AsyncOpenAI: ...


@overload
def openai_client(
    fleet: SyncFleet, *, pool: str = ..., models: Mapping[str, str] | None = ..., **options: Any
) -> OpenAI: ...


def openai_client(
    fleet: Fleet | SyncFleet,
    *,
    pool: str = DEFAULT_POOL,
    models: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncOpenAI | OpenAI:
    """Make a client of OpenAI's SDK whose requests go to the queue: ``AsyncOpenAI``, or ``OpenAI``.

    It answers chats, completions, embeddings, responses, conversations and the list of models, and raises
    the SDK's own exceptions. ``models`` names the pool of each model that may have no worker; a request
    without a model goes to ``pool``. ``options`` are the SDK's, like ``max_retries``. Close the client before
    the fleet.

    Raises:
        ConfigurationError: The extra ``openai`` is not installed.

    """
    try:
        from inferfleet.producer.openai.transport import async_openai, blocking_openai
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("inferfleet"):
            raise
        raise ConfigurationError(
            f"openai_client needs the package {error.name!r}: pip install 'inferfleet[openai]'"
        ) from error
    if isinstance(fleet, Fleet):
        return async_openai(fleet, pool=pool, models=models, options=options)
    return blocking_openai(fleet, pool=pool, models=models, options=options)
