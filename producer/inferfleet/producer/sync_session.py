"""The blocking twin of ``Session``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from inferfleet.producer.blocking import BlockingCall
from inferfleet.producer.job_making import JobOptions
from inferfleet.producer.sessions import Session
from inferfleet.schemas.job import Job
from inferfleet.schemas.session import SessionExport, SessionRecord, Turn


class SyncSession:
    """A blocking handle on one session, with the methods of ``Session``, and its errors."""

    def __init__(self, session: Session, call: BlockingCall) -> None:
        self.id = session.id
        self._session = session
        self._call = call

    def send(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        body: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a turn with only its new messages; see ``Session.send``."""
        return self._call(partial(self._session.send, messages, body=body, **options))

    def configure(self, *, idle_ttl_s: int | None = None, max_history_tokens: int | None = None) -> None:
        """Set the session's limits; see ``Session.configure``."""
        self._call(
            partial(self._session.configure, idle_ttl_s=idle_ttl_s, max_history_tokens=max_history_tokens)
        )

    def get(self) -> SessionRecord | None:
        """Read the session's record; ``None`` if there is no such session."""
        return self._call(self._session.get)

    def turns(self) -> tuple[Turn, ...]:
        """Read the finished turns, oldest first; see ``Session.turns``."""
        return self._call(self._session.turns)

    def history(self) -> list[dict[str, Any]]:
        """Read all messages of the finished turns, in order, as OpenAI chat messages."""
        return self._call(self._session.history)

    def state(self) -> tuple[int, Any]:
        """Read the version and the state; see ``Session.state``."""
        return self._call(self._session.state)

    def update_state(self, state: Any, *, version: int) -> int:
        """Replace the state if it still has this ``version``; see ``Session.update_state``."""
        return self._call(partial(self._session.update_state, state, version=version))

    def patch_state(self, patch: Any) -> int:
        """Apply a JSON Merge Patch to the current state; see ``Session.patch_state``."""
        return self._call(partial(self._session.patch_state, patch))

    def fork(self, new_id: str, *, turns: int | None = None) -> SyncSession:
        """Copy turns and the current state into a new session; see ``Session.fork``."""
        return SyncSession(self._call(partial(self._session.fork, new_id, turns=turns)), self._call)

    def delete(self) -> bool:
        """Delete the session; see ``Session.delete``."""
        return self._call(self._session.delete)

    def export(self) -> SessionExport:
        """Read the whole session as one document; see ``Session.export``."""
        return self._call(self._session.export)

    def import_(self, export: SessionExport) -> None:
        """Create this session from an exported one; see ``Session.import_``."""
        self._call(partial(self._session.import_, export))
