"""Answers OpenAI's Responses API through the queue: a response is a chat, and its id is that of its job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final

import orjson

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.journal_view import BEGINNING, JournalLine, JournalView, is_before
from inferfleet.producer.openai.api import (
    OpenAIApi,
    OpenRequest,
    Progress,
    Reply,
    in_words_of_models,
    json_reply,
    reply_headers,
)
from inferfleet.producer.openai.refusals import JOB_HEADER, bad_request
from inferfleet.producer.openai.requests import apart
from inferfleet.producer.openai.response_events import Event, ResponseEvents
from inferfleet.producer.openai.response_items import messages_of, page_of
from inferfleet.producer.openai.response_objects import response_object
from inferfleet.producer.openai.response_requests import (
    AskedResponse,
    ResponseRecord,
    read_response_request,
)
from inferfleet.producer.openai.stored_responses import StoredResponses
from inferfleet.producer.openai.streams import EVENT_HEADERS, EventStream, Part, last_events
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.errors import (
    JobDataLostError,
    WaitTimeoutError,
)
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, RunningEntry, TokensEntry
from inferfleet.wire.redis.journal_lines import parse_line
from inferfleet.wire.redis.streams import NO_LINE
from inferfleet.wire.tasks import cancel_and_wait

CANCEL_S: Final = 5.0
"""How long a caller that cancels a response waits for its end."""

NOTHING_SEEN: Final = -1
"""The number of the last event of a reader that has seen none."""

AT_ONCE_S: Final = 0.05
"""For how long the lines of a journal are read before other requests have their turn."""


class ResponsesApi:
    """Answers requests. All but ``create`` raise ``RefusedError`` for an id that does not exist."""

    def __init__(
        self,
        fleet: Fleet | TenantFleet,
        api: OpenAIApi,
        *,
        accepted: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """``accepted`` is awaited with the job id of each background response, before a caller learns it."""
        self._accepted = accepted
        self._fleet = fleet
        self._records = fleet.response_records
        self._stored = StoredResponses(fleet)
        self._api = api

    async def create(self, headers: Mapping[str, str], content: bytes) -> Reply:
        """Submit the job that a request asks for, and answer as it asks: at once, at the end or as a stream.

        If the caller is cancelled, or closes the stream before its end, the job is cancelled, unless it is a
        background response or the request has an idempotency key.

        Raises:
            RefusedError: The request is invalid, or nobody serves its model.
            InferfleetError: What ``Fleet.submit`` and ``Fleet.run`` raise.

        """
        given = await apart(partial(read_response_request, headers, content), content)
        asked = given.asked
        request = OpenRequest(asked)
        async with request.in_time():
            await self._set_messages(given)
            route = await self._api.route(asked)
        record = ResponseRecord(
            created_at=int(self._records.clock.now().timestamp()),
            shown={**given.shown, "model": given.shown["model"] or route.pool},
            items=tuple(given.items),
        )
        if asked.stream:
            parts = self._created(given, record, request)
            stream = EventStream(parts, last_events=last_events, cursor=str(NOTHING_SEEN))
            with in_words_of_models(route):
                await stream.start(within_s=None)
            return Reply(
                content=stream,
                headers={**EVENT_HEADERS, **reply_headers(request.progress.job_id, route)},
                progress=request.progress,
            )
        with in_words_of_models(route):
            response = await self._whole(given, record, request)
        return json_reply(response, reply_headers(request.progress.job_id, route))

    async def get(self, response_id: str) -> Reply:
        """Read a response."""
        job, record = await self._stored.find(response_id)
        return json_reply(await self._present(job.id, record), {JOB_HEADER: job.id})

    async def events(self, response_id: str, *, starting_after: int | None) -> Reply:
        """Stream the events of a response after the one with this number, even if it has ended.

        The response goes on if its reader disconnects.
        """
        job, record = await self._stored.find(response_id)
        after = NOTHING_SEEN if starting_after is None else starting_after
        parts = self._follow(job.id, record, after=after)
        return Reply(
            content=EventStream(parts, last_events=last_events, cursor=str(after)),
            headers={**EVENT_HEADERS, JOB_HEADER: job.id},
            progress=Progress(kept=True, job_id=job.id),
        )

    async def cancel(self, response_id: str) -> Reply:
        """Cancel a background response, and return it. One that has ended stays as it is."""
        job, record = await self._stored.find(response_id)
        if not record.background:
            raise bad_request(
                "only a response with background: true can be cancelled; to stop another one, close the "
                "connection of its request",
                param="response_id",
            )
        await self._cancel(job.id)
        return json_reply(await self._present(job.id, record), {JOB_HEADER: job.id})

    async def delete(self, response_id: str) -> Reply:
        """Forget a response and its answer. One that has not ended is cancelled."""
        try:
            job, _ = await self._stored.find(response_id)
        except JobDataLostError as error:
            await self._records.forget(error.job_id)
        else:
            if not await self._forget(job.id):
                # Its worker is about to write. What it writes expires as any answer does.
                await self._records.delete(job.id)
        return json_reply({"id": response_id, "object": "response", "deleted": True})

    async def input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        ascending: bool = False,
    ) -> Reply:
        """List the items of a response's request, by default from the last to the first."""
        _, record = await self._stored.find(response_id)
        return json_reply(page_of(record.items, after=after, limit=limit, ascending=ascending))

    async def _present(self, job_id: str, record: ResponseRecord) -> dict[str, Any]:
        """Make a response from the present state of its job. It has no output until the job has ended."""
        job = await self._fleet.get(job_id)
        if not job.state.terminal:
            return response_object(job_id, record, state=job.state)
        return await self._ended(job_id, record)

    async def _ended(self, job_id: str, record: ResponseRecord) -> dict[str, Any]:
        """Make a response whose job has ended: the one in its last event."""
        events = ResponseEvents(job_id, record)
        others = _TurnOfOthers()
        async with aclosing(self._fleet.stream(job_id)) as lines:
            async for line in lines:
                await others.come()
                match line.entry:
                    case TokensEntry() as entry:
                        events.tokens(entry)
                    case RestartedEntry() as entry:
                        events.restarted(entry)
                    case FinishedEntry() as entry:
                        last = events.finished(entry, await self._fleet.wait(job_id))[-1]
                        response: dict[str, Any] = last["response"]
                        return response
                    case _:
                        pass
        raise JobDataLostError(job_id, missing="journal")

    # Creating

    async def _set_messages(self, given: AskedResponse) -> None:
        """Write the messages of the chat: instructions, what came before, and the request's own items."""
        asked = given.asked
        messages = messages_of(given.items)
        instructions: str | None = given.shown["instructions"]
        if (conversation := given.shown["conversation"]) is not None:
            await self._stored.check_conversation(conversation["id"])
            asked.options["session_id"] = conversation["id"]
            asked.options["instructions"] = instructions
        else:
            if (previous := given.shown["previous_response_id"]) is not None:
                messages = [*await self._stored.messages_before(previous), *messages]
            if instructions:
                messages.insert(0, {"role": "system", "content": instructions})
        asked.body["messages"] = messages

    async def _whole(
        self, given: AskedResponse, record: ResponseRecord, request: OpenRequest
    ) -> dict[str, Any]:
        async with self._submitted(given, record, request) as (job_id, kept):
            if kept.background:
                response = await self._present(job_id, kept)
                # From here on the caller can know its id.
                request.progress.kept = True
                return response
            async with request.in_time():
                result = await self._fleet.wait(job_id)
            result.raise_for_state()
            return await self._ended(job_id, kept)

    async def _created(
        self, given: AskedResponse, record: ResponseRecord, request: OpenRequest
    ) -> AsyncGenerator[Part]:
        async with self._submitted(given, record, request) as (job_id, kept):
            if not kept.background:
                async with request.in_time():
                    await self._refused_early(job_id)
            async with aclosing(self._follow(job_id, kept, after=NOTHING_SEEN)) as parts:
                while True:
                    async with request.in_time():
                        part = await anext(parts, None)
                    if part is None:
                        break
                    if kept.background:
                        request.progress.kept = True
                    yield part

    @asynccontextmanager
    async def _submitted(
        self, given: AskedResponse, record: ResponseRecord, request: OpenRequest
    ) -> AsyncGenerator[tuple[str, ResponseRecord]]:
        """Submit the job. Its record comes first, so that whoever knows its id finds the response."""
        progress = request.progress
        progress.stored = given.stored
        if given.stored:
            await self._records.save(given.job_id, record.model_dump_json().encode())
            progress.refused = partial(self._records.delete, given.job_id)
        elif not request.asked.named:
            progress.forget = self._forget
        async with self._api.attended(request) as job:
            if job.id != given.job_id:
                record = await self._joined(job.id, given, record)
            if record.background and self._accepted is not None:
                await self._accepted(job.id)
            yield job.id, record

    async def _joined(self, job_id: str, given: AskedResponse, record: ResponseRecord) -> ResponseRecord:
        """Return the record of the response that an earlier request with the same idempotency key made."""
        if not given.stored:
            return record
        await self._records.delete(given.job_id)
        kept = await self._records.read(job_id)
        # Of a job that has ended, it was deleted or expires: nothing would let a new one expire.
        if kept is None and not (await self._fleet.get(job_id)).state.terminal:
            await self._records.save(job_id, record.model_dump_json().encode())
            kept = await self._records.read(job_id)
        return record if kept is None else ResponseRecord.model_validate_json(kept)

    async def _refused_early(self, job_id: str) -> None:
        """Raise the error of a job that fails before its first token, while the status can still change."""
        waiting = asyncio.create_task(self._until_output(job_id))
        try:
            await asyncio.wait({waiting}, timeout=self._api.start_s)
            if waiting.done():
                waiting.result()
        finally:
            await cancel_and_wait(waiting)

    async def _until_output(self, job_id: str) -> None:
        async with aclosing(self._fleet.stream(job_id)) as lines:
            async for line in lines:
                if isinstance(line.entry, TokensEntry):
                    return
                if isinstance(line.entry, FinishedEntry):
                    (await self._fleet.wait(job_id)).raise_for_state()

    # Following

    async def _follow(self, job_id: str, record: ResponseRecord, *, after: int) -> AsyncGenerator[Part]:
        """Make the events after number ``after``, up to the last one.

        A reader that has seen part of a void answer gets an error event. Any other reader gets only the new
        answer.
        """
        events = ResponseEvents(job_id, record)
        void_until = await self._void_until(job_id)
        seen = after
        made = events.queued()
        others = _TurnOfOthers()
        async with aclosing(self._fleet.stream(job_id)) as lines:
            async for line in lines:
                await others.come()
                over = False
                match line.entry:
                    case RunningEntry():
                        made += events.running()
                    case TokensEntry() as entry if not _is_void(line, void_until):
                        made += [*events.running(), *events.tokens(entry)]
                    case RestartedEntry() as entry:
                        void, told = events.restarted(entry)
                        if over := seen in void:
                            made = [told]
                    case FinishedEntry() as entry:
                        made += events.finished(entry, await self._fleet.wait(job_id))
                        over = True
                        # A reader that asks for events after the last one still gets that one.
                        last = made[-1]["sequence_number"]
                        seen = last - 1 if seen > last else seen
                    case _:
                        pass
                if fresh := [event for event in made if event["sequence_number"] > seen]:
                    seen = fresh[-1]["sequence_number"]
                    yield Part(b"".join(map(_event, fresh)), str(seen))
                made = []
                if over:
                    return

    async def _void_until(self, job_id: str) -> bytes:
        """Find the last line of the journal that makes the answer before it void."""
        view = JournalView.at(BEGINNING)
        last = NO_LINE
        others = _TurnOfOthers()
        for line_id, fields in await self._records.journal(job_id):
            await others.come()
            if any(isinstance(line.entry, RestartedEntry) for line in view.see(line_id, parse_line(fields))):
                last = line_id
        return last

    # Ending

    async def _forget(self, job_id: str) -> bool:
        """Cancel a job, wait a while for its end, and then forget its answer. Return whether it has ended."""
        ended = await self._cancel(job_id)
        if ended:
            await self._records.forget(job_id)
        return ended

    async def _cancel(self, job_id: str) -> bool:
        """Cancel a job, and wait a while for its end. Return whether it has ended."""
        if (await self._fleet.cancel(job_id)).terminal:
            return True
        try:
            await self._fleet.wait(job_id, timeout_s=CANCEL_S)
        except WaitTimeoutError:
            return False
        return True


class _TurnOfOthers:
    """Lets other tasks run during a long loop, every ``AT_ONCE_S``."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._at = self._clock() + AT_ONCE_S

    async def come(self) -> None:
        if self._clock() > self._at:
            await asyncio.sleep(0)
            self._at = self._clock() + AT_ONCE_S


def _is_void(line: JournalLine, void_until: bytes) -> bool:
    return not is_before(void_until, line.id.partition(":")[0].encode())


def _event(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + b"\n\n"
