"""A caller's handle on one session: submit turns, read the history, keep state."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, Unpack, assert_never, cast

from inferfleet.producer.job_making import JobOptions, stored_session
from inferfleet.schemas.errors import (
    InvalidJobError,
    SessionError,
    SessionTooLargeError,
    StateConflictError,
)
from inferfleet.schemas.job import DEFAULT_TENANT, Job
from inferfleet.schemas.json_values import plain_json
from inferfleet.schemas.merge_patch import merge_patch
from inferfleet.schemas.problems import kind
from inferfleet.schemas.session import (
    SessionExport,
    SessionRecord,
    Turn,
    check_export,
    check_limits,
    check_session_id,
)
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_records import ReplaceStatus, SessionRecords


class Submit(Protocol):
    """``Fleet.submit``."""

    def __call__(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Awaitable[Job]:
        """Submit one job."""
        ...


class Session:
    """A handle on one session. Its turns run one at a time, in the order in which they were submitted."""

    def __init__(
        self, session_id: str, *, records: SessionRecords, histories: SessionHistories, submit: Submit
    ) -> None:
        check_session_id(session_id)
        self.id = session_id
        self._records = records
        self._histories = histories
        self._submit = submit

    async def send(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        body: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a turn with only its new messages; the worker adds the history.

        ``body`` holds the other fields of the chat request, such as ``max_tokens`` or ``tools``.

        Raises:
            InvalidJobError: The turn breaks the contract, or its tenant stores this session under another id.
            SessionBusyError: A turn is unfinished and ``on_busy`` is ``reject``.
            SessionTooLargeError: The history is at its size limit.

        """
        options["session_id"] = self.id
        tenant = options.get("tenant", DEFAULT_TENANT)
        if tenant != DEFAULT_TENANT and (stored := stored_session(self.id, tenant)) != self.id:
            raise InvalidJobError(
                f"tenant: {tenant!r} stores this session under the id {stored!r}; use that id"
            )
        return await self._submit({**_fields(body), "messages": _messages(messages)}, **options)

    async def configure(
        self, *, idle_ttl_s: int | None = None, max_history_tokens: int | None = None
    ) -> None:
        """Set how long Redis keeps the idle session, in seconds, and how much of its history enters a prompt.

        ``None`` leaves a limit unchanged. If the history exceeds ``max_history_tokens``, the worker leaves
        the oldest whole turns out of the prompt; they stay in the history.

        Raises:
            InvalidJobError: No session may have such limits.

        """
        check_limits(idle_ttl_s=idle_ttl_s, max_history_tokens=max_history_tokens)
        await self._records.configure(self.id, idle_ttl_s=idle_ttl_s, max_history_tokens=max_history_tokens)

    async def get(self) -> SessionRecord | None:
        """Read the session's record; ``None`` if there is no such session."""
        return await self._records.get(self.id)

    async def turns(self) -> tuple[Turn, ...]:
        """Read the finished turns, oldest first.

        Raises:
            SessionError: Redis no longer has all of them.

        """
        return await self._histories.whole_history(self.id)

    async def history(self) -> list[dict[str, Any]]:
        """Read all messages of the finished turns, in order, as OpenAI chat messages."""
        return [message for turn in await self.turns() for message in turn.messages]

    async def state(self) -> tuple[int, Any]:
        """Read the version and the state. A session without a state has version 0 and the state ``None``.

        Raises:
            SessionError: The session has had a state, but Redis no longer has it.

        """
        return await self._records.state(self.id)

    async def update_state(self, state: Any, *, version: int) -> int:
        """Replace the state if it still has this ``version``, and return the new version.

        Raises:
            InvalidJobError: The state is not JSON; the message names the place.
            StateConflictError: The state has another version, because somebody else has changed it.
            SessionTooLargeError: With this state the session would exceed its size limit.

        """
        state, _ = plain_json(state, "state")
        replaced, present = await self._records.replace_state(self.id, state, version=version)
        match replaced:
            case ReplaceStatus.OK:
                return present
            case ReplaceStatus.CONFLICT:
                raise StateConflictError(self.id, expected=version, present=present)
            case ReplaceStatus.TOO_LARGE:
                raise SessionTooLargeError(
                    f"with this state the session {self.id!r} would exceed its size limit "
                    "(INFERFLEET_MAX_SESSION_BYTES): keep less in it"
                )
            case _:
                assert_never(replaced)

    async def patch_state(self, patch: Any) -> int:
        """Apply a JSON Merge Patch (RFC 7396) to the current state, and return the new version.

        Raises:
            InvalidJobError: The patch is not JSON; the message names the place.
            SessionTooLargeError: With this state the session would exceed its size limit.

        """
        patch, _ = plain_json(patch, "patch")
        while True:
            version, state = await self._records.state(self.id)
            with suppress(StateConflictError):
                return await self.update_state(merge_patch(state, patch), version=version)

    async def fork(self, new_id: str, *, turns: int | None = None) -> Session:
        """Copy the first ``turns`` turns, by default all, and the current state into a new session.

        Raises:
            SessionError: A session with ``new_id`` exists, or this session has fewer turns.

        """
        export = await self.export()
        if turns is not None and not 0 <= turns <= len(export.turns):
            raise SessionError(
                f"session {self.id!r} has {len(export.turns)} turns; it cannot fork after {turns}"
            )
        forked = Session(new_id, records=self._records, histories=self._histories, submit=self._submit)
        await forked.import_(export.model_copy(update={"turns": export.turns[:turns]}))
        return forked

    async def delete(self) -> bool:
        """Delete the session: history, state and limits. Return whether there was one.

        Its running and waiting turns go on, and nothing of them is kept in it. The next turn begins it again.
        """
        return await self._records.delete(self.id)

    async def export(self) -> SessionExport:
        """Read the whole session as one document.

        Raises:
            SessionError: There is no such session.

        """
        record = await self._records.get(self.id)
        if record is None:
            raise SessionError(f"there is no session {self.id!r}: it was never used, or it has expired")
        return SessionExport(
            id=self.id,
            turns=await self._histories.whole_history(self.id),
            state=(await self._records.state(self.id))[1],
            idle_ttl_s=record.idle_ttl_s,
            max_history_tokens=record.max_history_tokens,
        )

    async def import_(self, export: SessionExport) -> None:
        """Create this session from an exported one.

        Raises:
            InvalidJobError: A worker could not read the document; the message names the place.
            SessionError: A session with this id exists.

        """
        export = check_export(export)
        made = await self._records.create(
            self.id,
            export.turns,
            state=export.state,
            idle_ttl_s=export.idle_ttl_s,
            max_history_tokens=export.max_history_tokens,
        )
        if not made:
            raise SessionError(f"session {self.id!r} exists: delete it first, or choose another id")


def _fields(body: object) -> Mapping[str, Any]:
    if body is None:
        return {}
    if not isinstance(body, Mapping):
        raise InvalidJobError(f"body: must be an object, not {kind(body)}")
    return cast("Mapping[str, Any]", body)


def _messages(messages: object) -> object:
    """Return the messages as a request has them. The check of the request reports invalid ones."""
    match messages:
        case str():
            return [{"role": "user", "content": messages}]
        case Sequence():
            return list(cast("Sequence[object]", messages))
        case _:
            return messages
