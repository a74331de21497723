"""Prepares an attempt: reads the tokens that earlier attempts have left, and the history of the session."""

from __future__ import annotations

import time
from dataclasses import replace

from inferfleet.schemas.journal import RestartReason
from inferfleet.schemas.message import read_job
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.attempts import Started, StartStatus, WriteStatus
from inferfleet.wire.redis.journal_lines import generated, head_of
from inferfleet.wire.redis.records import JobRecords
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.outcomes import Defer, Outcome, cancelled
from inferfleet.worker.ports import EngineDeadError, Generation
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.turns import Prompt, Turns


class Preparation:
    """Prepares claimed jobs for the engine."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: ReplaceableEngine,
        records: JobRecords,
        journal: JournalWriter,
        turns: Turns,
        hooks: Hooks,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._records = records
        self._journal = journal
        self._turns = turns
        self._hooks = hooks

    def model_identity(self, run: JobRun) -> str:
        """Return the short identity of the model with which this worker would answer a run.

        Raises:
            EngineDeadError: The engine has no model.

        """
        if run.identity is None:
            raise EngineDeadError("the engine has no model")
        return run.identity.short

    async def prepare(self, run: JobRun, started: Started, generation: Generation) -> Generation | Outcome:
        """Return the generation that resumes the answer where the last attempt stopped."""
        await self._recall_passages(run)
        restart = started.restart
        if started.tokens and restart is None:
            chunks = await self._records.whole_answer(run.job.id, tokens=started.tokens)
            if chunks is None:
                restart = RestartReason.JOURNAL_INCOMPLETE
            else:
                run.answer.resume(chunks)
        # Before a restart: a turn that an earlier attempt has completed keeps its tokens.
        if restart is not None and run.job.session_id is not None:
            await self.recall(run, started)
        begun = await self._turns.begin(run)
        if isinstance(begun, Prompt) and restart is not None:
            begun = await self.restart(run, restart, tokens_wasted=started.tokens)
        if not isinstance(begun, Prompt):
            return begun
        if started.status is StartStatus.INTERRUPTED:
            if restart is None:
                await self.recall(run, started)
            return await self._turns.interrupt(run, cancelled("interrupted by the session's next turn"))
        self._journal.follow(run)
        run.prepared_s = time.monotonic() - run.started
        self._hooks.on_start(run, begun.body)
        if not run.answer.tokens and begun.body is run.job.body:
            return generation
        return replace(
            generation,
            body=begun.body,
            resume_token_ids=run.answer.token_ids,
            resume_chunks=run.answer.journaled,
        )

    async def restart(self, run: JobRun, reason: RestartReason, *, tokens_wasted: int) -> Prompt | Outcome:
        """Restart the answer, unless another attempt has the job."""
        identity, fence = self.model_identity(run), run.fence
        run.answer.resume(())
        run.restart(model_identity=identity)
        written = await self._journal.write(
            run,
            lambda: self._records.restart(
                run.job.id,
                fence=fence,
                worker_id=self._settings.worker_id,
                model_identity=identity,
                reason=reason,
                tokens_wasted=tokens_wasted,
            ),
        )
        if written is WriteStatus.FENCED:
            return Defer()
        self._hooks.on_waste(run, tokens_wasted, reason)
        # The session needs the new fence.
        return await self._turns.begin(run)

    async def _recall_passages(self, run: JobRun) -> None:
        """Give the run the passages with which its job was recorded.

        Callers that submit a job at the same time may find others, and each publishes its own message.
        """
        if run.job.retrieve is not None and (request := await self._records.request(run.job.id)) is not None:
            run.job = run.job.model_copy(update={"passages": read_job(request).passages})

    async def recall(self, run: JobRun, started: Started) -> None:
        """Read the tokens of an answer that will not be resumed, for its result."""
        if started.tokens:
            entries = await self._records.journal(run.job.id)
            run.answer.resume(generated(entries), head_of(entries))
