"""Tells clients which prompts this worker has cached, so that jobs whose prompts begin alike come here."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from typing_extensions import override

from inferfleet.schemas import JobState, Result
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import warm_turns
from inferfleet.schemas.prompt_beginnings import beginnings
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.warm_prompts import WarmPrompts
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun

logger = logging.getLogger(__name__)


class WarmPromptNotes(Hooks):
    """Notes the prompts of jobs that ended while the previous ones were noted, until the worker drains."""

    def __init__(self, settings: WorkerSettings, pipeline: CommandPipeline, leaving: asyncio.Event) -> None:
        self._known = WarmPrompts(pipeline, least=settings.warm_prompt_chars)
        self._least = settings.warm_prompt_chars
        self._pool = settings.pool
        self._routing_key = warm_turns(settings.pool, settings.worker_id)
        self._leaving = leaving
        self._new: set[str] = set()
        self._ended = asyncio.Event()
        self._outage = Outage()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if run is None or result.state is not JobState.SUCCEEDED or run.job.session_id is not None:
            return
        self._new.update(beginnings(run.job, least=self._least))
        self._ended.set()

    async def run(self) -> NoReturn:
        """Note prompts until cancelled. If Redis does not take some, those jobs run on any worker."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            new, self._new = self._new, set()
            if self._leaving.is_set():
                continue
            try:
                await self._known.note(self._pool, new, self._routing_key)
            except (ServiceUnreachableError, ServiceRefusedError) as error:
                if self._outage.began():
                    logger.warning("cannot note which prompts are in the cache (%s)", error)
            else:
                self._outage.ended()
