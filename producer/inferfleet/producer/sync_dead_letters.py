"""The blocking twin of ``DeadLetters``."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.dead_letters import DeadLetters, LetterFilter
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.job import Job


class SyncDeadLetters:
    """The dead letters of all pools, with the methods of ``DeadLetters``, and its errors."""

    def __init__(self, letters: DeadLetters, call: BlockingCall) -> None:
        self._letters = letters
        self._call = call

    def read(self, pool: str, *, ids: Collection[str] | None = None, limit: int = 1000) -> list[DeadLetter]:
        """Read a pool's dead letters; see ``DeadLetters.read``."""
        return self._call(partial(self._letters.read, pool, ids=ids, limit=limit))

    def count(self, pool: str, *, where: LetterFilter | None = None) -> int:
        """Count a pool's dead letters; see ``DeadLetters.count``."""
        return self._call(partial(self._letters.count, pool, where=where))

    def replay(
        self,
        pool: str,
        *,
        ids: Collection[str] | None = None,
        everything: bool = False,
        oldest: int | None = None,
        where: LetterFilter | None = None,
    ) -> list[Job]:
        """Submit dead letters again as new jobs; see ``DeadLetters.replay``."""
        return self._call(
            partial(self._letters.replay, pool, ids=ids, everything=everything, oldest=oldest, where=where)
        )

    def purge(
        self,
        pool: str,
        *,
        ids: Collection[str] | None = None,
        everything: bool = False,
        oldest: int | None = None,
    ) -> int:
        """Delete dead letters; see ``DeadLetters.purge``."""
        return self._call(partial(self._letters.purge, pool, ids=ids, everything=everything, oldest=oldest))
