"""Answers requests to OpenAI's endpoints through the queue, for the gateway and for ``openai_client``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import orjson

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.openai.chunks import AnswerChunks
from inferfleet.producer.openai.models import Models, Route
from inferfleet.producer.openai.refusals import (
    JOB_HEADER,
    RETRY_AFTER_S,
    Refusal,
    RefusedError,
    not_found,
)
from inferfleet.producer.openai.requests import Asked, apart, read_request
from inferfleet.producer.openai.streams import DONE, EVENT_HEADERS, EventStream, Part, data_event, last_events
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import (
    InferfleetError,
    JobFailedError,
    PublishUnconfirmedError,
    UnknownPoolError,
    WaitTimeoutError,
)
from inferfleet.schemas.job import Job, new_job_id
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, TokensEntry
from inferfleet.schemas.result import JobRecord

logger = logging.getLogger(__name__)

WORKERS_HEADER: Final = "inferfleet-workers"
"""The header with the number of live workers of the job's pool. With 0, the job waits for one to start."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Which job a request became. A job that is ``kept`` goes on when nobody waits for its answer.

    A response that is not ``stored`` cannot be read later. ``forget`` is awaited with the job's id when the
    request has ended in any way, and ``refused`` if it did not become a job.
    """

    kept: bool
    job_id: str = ""
    stored: bool = True
    forget: Callable[[str], Awaitable[object]] | None = None
    refused: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: bytes, or a stream of server-sent events.

    The reader of a stream has to close it. That cancels its job if it has not ended and is not kept.
    """

    content: bytes | EventStream
    headers: Mapping[str, str]
    progress: Progress | None = None


class OpenRequest:
    """A request, and the moment at which its answer has to be complete."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.progress = Progress(kept=asked.named)
        began = asyncio.get_running_loop().time()
        self._deadline = None if asked.timeout_s is None else began + asked.timeout_s

    @asynccontextmanager
    async def in_time(self) -> AsyncGenerator[None]:
        """Run the block until the deadline, and raise ``WaitTimeoutError`` then."""
        limit = asyncio.timeout_at(self._deadline)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            name = f"job {self.progress.job_id}" if self.progress.job_id else "the job"
            then = "it continues" if self.progress.kept else "it is cancelled"
            raise WaitTimeoutError(
                f"{name} did not finish within {self.asked.timeout_s:g} s; {then}"
            ) from error


class OpenAIApi:
    """Answers requests. ``aclose`` waits until the jobs of callers that went away are cancelled.

    With ``needs_workers``, a request to a pool without a live worker is refused, because nobody would start
    one. A stream's first event is awaited for ``start_s``, so that an early failure is a status and not an
    event. A job has to be accepted within ``accept_s``. With ``None``, both may take as long as they take.
    """

    def __init__(
        self,
        fleet: Fleet | TenantFleet,
        *,
        models: Models,
        needs_workers: bool = False,
        start_s: float | None = None,
        accept_s: float | None = None,
    ) -> None:
        self._fleet = fleet
        self._models = models
        self._needs_workers = needs_workers
        self.start_s = start_s
        self._accept_s = accept_s
        self._pools: Collection[str] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def of(self, fleet: TenantFleet, *, pools: Collection[str] | None = None) -> OpenAIApi:
        """Return an API for the requests of a tenant, which may use only ``pools`` if they are given.

        ``aclose`` of either waits for the jobs of both.
        """
        api = copy(self)
        api._fleet = fleet
        api._pools = pools
        return api

    async def answer(self, endpoint: Endpoint, headers: Mapping[str, str], content: bytes) -> Reply:
        """Submit the job that a request asks for, and wait for its answer, or for the first event of it.

        If the caller is cancelled, or closes the stream before its end, the job is cancelled, unless the
        request has an idempotency key.

        Raises:
            RefusedError: The request is invalid, or nobody serves its model.
            InferfleetError: What ``Fleet.submit`` and ``Fleet.run`` raise.

        """
        asked = await apart(partial(read_request, endpoint, headers, content), content)
        request = OpenRequest(asked)
        async with request.in_time():
            route = await self.route(asked)
        with in_words_of_models(route):
            return await (self._stream(request, route) if asked.stream else self._whole(request, route))

    async def route(self, asked: Asked) -> Route:
        """Choose the pool of a job, by its options or its model, and write it into the options.

        A job whose idempotency key is known stays where it is, whoever serves its model meanwhile.

        Raises:
            RefusedError: Nobody serves the model.
            InvalidJobError: The job breaks the contract.

        """
        known = await self._known(asked)
        route = await self._models.route(
            asked.body.get("model"),
            pool=asked.options.get("pool"),
            known=(known.submitted_to or known.pool) if known else None,
            allowed=self._pools,
        )
        asked.options["pool"] = route.pool
        if route.alias:
            del asked.body["model"]
        if route.rule is not None:
            # Without a session and a key, its id decides in which of the two pools it will be.
            asked.options.setdefault("id", new_job_id())
            route = route.of(self._fleet.make(asked.body, **asked.options))
        if self._needs_workers and not route.workers and not known:
            raise _no_workers(route.pool)
        return route

    async def submit(self, asked: Asked) -> Job:
        """Submit a job that goes on whether or not anybody waits for it.

        Raises:
            RefusedError: It was not accepted in time.
            InferfleetError: What ``Fleet.submit`` raises.

        """
        async with self.attended(OpenRequest(asked)) as job:
            return job

    async def list_models(self) -> Reply:
        """List the models and pools."""
        return json_reply({"object": "list", "data": await self._models.list(self._pools)})

    async def get_model(self, name: str) -> Reply:
        """Describe one model or pool.

        Raises:
            RefusedError: There is none with this name.

        """
        return json_reply(await self._models.get(name, self._pools))

    async def aclose(self) -> None:
        """Wait until all jobs that nobody waits for any more are cancelled."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _known(self, asked: Asked) -> JobRecord | None:
        key = asked.options.get("idempotency_key")
        return await self._fleet.find(key) if isinstance(key, str) else None

    async def _whole(self, request: OpenRequest, route: Route) -> Reply:
        async with self.attended(request) as job:
            async with request.in_time():
                result = await self._fleet.wait(job)
            result.raise_for_state()
        return json_reply(result.response, reply_headers(job.id, route))

    async def _stream(self, request: OpenRequest, route: Route) -> Reply:
        progress = request.progress
        stream = EventStream(self._parts(request), last_events=last_events)
        await stream.start(within_s=self.start_s)
        headers = {**EVENT_HEADERS, **reply_headers(progress.job_id, route)}
        return Reply(content=stream, headers=headers, progress=progress)

    async def _parts(self, request: OpenRequest) -> AsyncGenerator[Part]:
        async with self.attended(request) as job, aclosing(self._fleet.stream(job)) as lines:
            chunks = AnswerChunks(job.id, job.endpoint, job.body)
            while True:
                async with request.in_time():
                    line = await anext(lines)
                match line.entry:
                    case TokensEntry() as entry:
                        if made := chunks.add(entry):
                            yield Part(b"".join(map(data_event, made)), line.id)
                    case RestartedEntry(reason=reason):
                        if chunks.begun:
                            raise _restarted(job, reason)
                        chunks.restart()
                    case FinishedEntry():
                        made = chunks.end((await self._fleet.wait(job)).raise_for_state())
                        break
                    case _:
                        pass
        yield Part(b"".join((*map(data_event, made), DONE)), line.id)

    @asynccontextmanager
    async def attended(self, request: OpenRequest) -> AsyncGenerator[Job]:
        """Submit a job, and cancel it if the block is left before it has ended."""
        asked, progress = request.asked, request.progress
        submitting = asyncio.create_task(self._fleet.submit(asked.body, **asked.options))
        try:
            async with request.in_time(), _accepting(self._accept_s):
                job = await asyncio.shield(submitting)
            progress.job_id = job.id
            yield job
        except JobFailedError:
            if progress.forget is not None:
                await asyncio.shield(self._left(submitting, progress))
            raise
        except BaseException:
            self._left(submitting, progress)
            raise
        if progress.forget is not None:
            await asyncio.shield(self._left(submitting, progress))

    def _left(self, submitting: asyncio.Task[Job], progress: Progress) -> asyncio.Task[None]:
        leaving = asyncio.create_task(self._leave(submitting, progress))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        return leaving

    async def _leave(self, submitting: asyncio.Task[Job], progress: Progress) -> None:
        """Cancel a job that nobody waits for any more."""
        try:
            job_id: str | None = (await submitting).id
        except PublishUnconfirmedError as error:
            # RabbitMQ may have it all the same.
            job_id = error.job_id
        except Exception:
            # There is no job, and whoever waited for it has got the error.
            if progress.refused is not None:
                with suppress(InferfleetError):
                    await progress.refused()
            return
        if progress.kept or job_id is None:
            return
        try:
            await (progress.forget or self._fleet.cancel)(job_id)
        except InferfleetError as error:
            logger.warning("cannot cancel job %s, for which nobody waits (%s)", job_id, error)


@contextmanager
def in_words_of_models(route: Route) -> Generator[None]:
    """Turn the error for an unknown pool that a request named as its model into one about the model."""
    try:
        yield
    except UnknownPoolError as error:
        if not route.alias:
            raise
        raise not_found(
            f"the model {route.pool!r} is unknown: no live worker serves it, and no pool has its name",
            code="model_not_found",
            param="model",
        ) from error


@asynccontextmanager
async def _accepting(within_s: float | None) -> AsyncGenerator[None]:
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise RefusedError(
            Refusal(
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                code="service_unreachable",
                message=f"RabbitMQ and Redis did not accept the job within {within_s:g} s; without an "
                "Idempotency-Key it is cancelled if they do later",
                retry=True,
                after_s=RETRY_AFTER_S,
            )
        ) from error


def json_reply(content: Any, headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
    """Make a reply with a JSON body."""
    return Reply(content=orjson.dumps(content), headers={"content-type": "application/json", **headers})


def _restarted(job: Job, reason: str) -> RefusedError:
    return RefusedError(
        Refusal(
            status=HTTPStatus.CONFLICT,
            code="answer_restarted",
            message=f"job {job.id} restarts its answer ({reason}), so what was streamed is void; "
            "send the request again",
            retry=True,
            job_id=job.id,
        )
    )


def reply_headers(job_id: str, route: Route) -> dict[str, str]:
    """Make the headers that name a job, and say how many workers its pool has."""
    headers = {WORKERS_HEADER: str(route.workers)}
    # A stream may begin before the job is accepted.
    return {**headers, JOB_HEADER: job_id} if job_id else headers


def _no_workers(pool: str) -> RefusedError:
    return RefusedError(
        Refusal(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            code="no_workers",
            message=f"the pool {pool!r} has no live worker, and this gateway accepts no request that would "
            "have to wait for one (INFERFLEET_REFUSE_WITHOUT_WORKERS)",
            retry=True,
            after_s=RETRY_AFTER_S,
        )
    )
