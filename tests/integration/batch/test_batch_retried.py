"""The failed lines of a batch run again when somebody asks for it, and no other line does."""

from __future__ import annotations

import pytest
from tests.integration.batch.conftest import Files, expected, request, run_batch
from tests.integration.conftest import RunCommand, StartWorker, chat

from inferfleet.producer import Fleet
from inferfleet.producer.batch import Batch, batch_status
from inferfleet.producer.batch.line_ids import RETRIES, TRIES, line_job_id
from inferfleet.producer.batch.plan import retried
from inferfleet.schemas.batch import BatchLineError, BatchOutputLine
from inferfleet.schemas.errors import BatchError
from inferfleet.schemas.settings import ProducerSettings

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


async def test_only_failed_lines_run_again_and_once_where_the_retry_is_interrupted(
    fleet: Fleet, start_worker: StartWorker, settings: ProducerSettings, pool: str, files: Files
) -> None:
    # Given a batch with an answer and two lines that fail
    await start_worker()
    fails = chat("fails", simulated={"fail": "prompt_too_long"})
    files.write(request("answered"), request("fails", fails), request("bad", chat(temperature="hot")))
    done = await run_batch(files, settings, pool=pool)
    assert (done.succeeded, done.failed) == (1, 2)
    answer, errors = files.output.read_bytes(), files.errors.read_bytes()

    # When they are retried by a process that dies before it has emptied the error file
    with Batch.opened(files.plan(pool=pool), settings, retry_failed=True):
        pass
    files.errors.write_bytes(errors)

    # Then the errors are void, and the next run continues
    status = batch_status(files.output)
    assert (status.record.retries, status.succeeded, status.failed) == (1, 1, 0)
    for retry_failed, retries in ((False, 1), (False, 1), (True, 2)):
        done = await run_batch(files, settings, pool=pool, retry_failed=retry_failed)
        assert (done.succeeded, done.failed) == (1, 2)
        assert batch_status(files.output).record.retries == retries
        assert files.output.read_bytes() == answer
        tries = [retry * TRIES + more for retry in range(retries + 1) for more in (0, 1)]
        ids = [line_job_id(status.record.id, line, number) for line in (1, 2) for number in tries]
        jobs = await fleet.get_many(ids)
        assert {job_id for job_id, job in jobs.items() if job is not None} == {
            line_job_id(status.record.id, 1),
            *(line_job_id(status.record.id, 2, retry * TRIES) for retry in range(retries + 1)),
        }


async def test_a_batch_without_failed_lines_is_left_alone_and_one_with_them_is_retried_by_the_command(
    inferfleet: RunCommand, start_worker: StartWorker, pool: str, files: Files
) -> None:
    await start_worker()
    words = ("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool, "--retry-failed")
    files.write(request("good"))
    for _ in range(2):
        ended = await inferfleet(*words)
        assert (ended.code, "1 answered" in ended.err) == (0, True)
    record = batch_status(files.output).record
    assert record.retries == 0

    files.output.write_bytes(b"")
    cancelled = BatchOutputLine(
        id="batch_req_" + line_job_id(record.id, 1),
        custom_id="good",
        error=BatchLineError(code="cancelled", message="cancelled", line=1),
    )
    files.errors.write_text(cancelled.model_dump_json() + "\n")
    assert (await inferfleet(*words)).code == 0
    assert files.texts() == {"good": expected("good")}
    assert files.errors.read_bytes() == b""
    assert batch_status(files.output).record.retries == 1

    with pytest.raises(BatchError, match="15 times"):
        retried(record.model_copy(update={"retries": RETRIES}))
