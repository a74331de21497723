"""The pages of a list of unfinished jobs, and the cursors that lead from one to the next."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

from pydantic import Field, TypeAdapter

from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import PoolName
from inferfleet.schemas.names import PRIORITY_LEVELS
from inferfleet.schemas.result import JobRecord
from inferfleet.wire.redis.job_listing import BEGINNING, Entry


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs of a list. ``next`` is the cursor of the next page, ``None`` at the end of the list."""

    jobs: list[JobRecord]
    next: str | None


class Place(NamedTuple):
    """A place in the list: after an entry in the index of a pool and a priority."""

    pool: PoolName
    priority: Annotated[int, Field(ge=0, lt=PRIORITY_LEVELS)]
    entry: Entry = BEGINNING

    def cursor(self) -> str:
        """Return the cursor that ``at`` reads."""
        return urlsafe_b64encode(_PLACE.dump_json(self)).decode().rstrip("=")

    @classmethod
    def at(cls, cursor: str) -> Place:
        """Return the place of a cursor. Raises ``InvalidJobError`` if it is none."""
        try:
            return _PLACE.validate_json(urlsafe_b64decode(cursor + "=="))
        except ValueError as error:
            raise InvalidJobError(
                f"after: {cursor[:64]!r} is not the `next` of a page of this list"
            ) from error


_PLACE: Final = TypeAdapter(Place)
