"""Finds responses, and the messages up to one."""

from __future__ import annotations

import re
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.openai.refusals import Refusal, RefusedError, bad_request, not_found
from inferfleet.producer.openai.response_items import messages_of
from inferfleet.producer.openai.response_requests import RESPONSE_PREFIX, ResponseRecord
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.errors import JobDataLostError, JobNotFoundError
from inferfleet.schemas.job import JOB_ID, JobState
from inferfleet.schemas.result import JobRecord
from inferfleet.schemas.session import kept_answer

MOST_PREVIOUS: Final = 1000
"""How many responses one may continue."""

_ID: Final = re.compile(f"{RESPONSE_PREFIX}({JOB_ID})")


class StoredResponses:
    """The responses of one caller."""

    def __init__(self, fleet: Fleet | TenantFleet) -> None:
        self._fleet = fleet
        self._records = fleet.response_records

    async def find(self, response_id: str) -> tuple[JobRecord, ResponseRecord]:
        """Read the job of a response, and what is kept of its request.

        Raises:
            RefusedError: There is no such response.
            JobDataLostError: Redis no longer has its result.

        """
        found = _ID.fullmatch(response_id)
        # First the job, because nobody may see that of another tenant.
        with suppress(JobNotFoundError):
            if found is not None:
                try:
                    job = await self._fleet.get(found[1])
                except JobDataLostError:
                    if await self._records.read(found[1]) is not None:
                        raise
                else:
                    if (kept := await self._records.read(job.id)) is not None:
                        return job, ResponseRecord.model_validate_json(kept)
        raise not_found(f"there is no response {response_id[:64]!r}", code="response_not_found")

    async def check_conversation(self, conversation_id: str) -> None:
        """Make sure that a conversation exists.

        Raises:
            RefusedError: It does not.

        """
        if await self._fleet.session(conversation_id).get() is None:
            raise not_found(
                f"there is no conversation {conversation_id[:128]!r}",
                code="conversation_not_found",
                param="conversation",
            )

    async def messages_before(self, response_id: str) -> list[dict[str, Any]]:
        """Read the messages up to a response and its answer, without instructions; keep them for longer.

        Raises:
            RefusedError: There is no such response, or it has no answer.

        """
        turns: list[list[dict[str, Any]]] = []
        read: list[str] = []
        previous: str | None = response_id
        while previous is not None:
            if len(read) == MOST_PREVIOUS:
                raise bad_request(
                    f"previous_response_id: there are more than {MOST_PREVIOUS:,} responses before this one; "
                    "use a conversation",
                    param="previous_response_id",
                )
            job_id, record, answer = await self._previous(previous, of=response_id)
            read.append(job_id)
            if record.conversation is not None:
                turns.append(await self._turns_of(record.conversation, job_id))
                break
            turns.append([*messages_of(record.items), answer])
            previous = record.previous
        await self._records.renew(read)
        return [message for turn in reversed(turns) for message in turn]

    async def _previous(self, response_id: str, *, of: str) -> tuple[str, ResponseRecord, dict[str, Any]]:
        """Read the response ``of``, which the request continues, or one before it."""
        try:
            job, record = await self.find(response_id)
        except (RefusedError, JobDataLostError) as error:
            told = str(error)
            if response_id != of:
                told = f"{of} cannot be continued: a response before it was deleted or has expired ({told})"
            raise RefusedError(
                Refusal(
                    status=HTTPStatus.BAD_REQUEST,
                    code="previous_response_not_found",
                    message=told,
                    param="previous_response_id",
                )
            ) from error
        if job.state is not JobState.SUCCEEDED or job.result is None or job.result.response is None:
            then = "has no answer" if job.state.terminal else "has not ended; wait for it"
            raise bad_request(
                f"previous_response_id: the response {response_id} is {job.state} and {then}",
                param="previous_response_id",
            )
        return job.id, record, kept_answer(job.result.response)

    async def _turns_of(self, conversation_id: str, job_id: str) -> list[dict[str, Any]]:
        """Read the messages of a conversation up to a response and its answer."""
        turns = await self._fleet.session(conversation_id).turns()
        last = next((number for number, turn in enumerate(turns) if turn.job_id == job_id), None)
        if last is None:
            raise bad_request(
                f"previous_response_id: the conversation {conversation_id} no longer has this response",
                param="previous_response_id",
            )
        return [message for turn in turns[: last + 1] for message in turn.messages]
