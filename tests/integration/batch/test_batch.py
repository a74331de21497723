"""A batch from a file: the answers of all lines, whatever interrupts it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import pytest
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    Connect,
    ForeignClient,
    RunCommand,
    StartWorker,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
)

from inferfleet.producer import Fleet
from inferfleet.producer.batch import Batch, BatchPlan, BatchProgress, batch_status, lines, window
from inferfleet.producer.batch.files import ID_PREFIX
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.errors import (
    BatchError,
    JobDataLostError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.names import idempotency_key, job_key, journal_key, request_key, result_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker import Completion, Generation, TokenChunk
from inferfleet.worker.engines.simulated import SimulatedEngine, expected_text

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool

ENDLESS = slow_chat("endless", tokens=10_000, step_s=0.1)


def request(custom_id: str, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    body = chat(custom_id, max_tokens=4) if body is None else body
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **changes,
    }


class Files:
    """The files of one batch."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"

    def write(self, *lines: dict[str, Any] | str) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.source.write_text("".join(f"{text}\n" for text in texts))

    def answers(self) -> dict[str, dict[str, Any]]:
        """The lines of the output, by their ``custom_id``; none is there twice."""
        lines = list(map(json.loads, self.output.read_text().splitlines()))
        assert len({line["custom_id"] for line in lines}) == len({line["id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}

    def texts(self) -> dict[str, str]:
        return {
            custom_id: line["response"]["body"]["choices"][0]["message"]["content"]
            for custom_id, line in self.answers().items()
        }

    def failures(self) -> list[dict[str, Any]]:
        return list(map(json.loads, self.errors.read_text().splitlines()))

    def plan(self, **options: Any) -> BatchPlan:
        return BatchPlan(source=self.source, output=self.output, options=cast("JobOptions", options))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def settings(producer_settings: Any) -> ProducerSettings:
    return producer_settings(state_check_interval_s=0.2)


async def run_batch(files: Files, settings: ProducerSettings, *, pool: str, **limits: Any) -> BatchProgress:
    """Run a batch in this process, from the beginning of its input or from where it is."""
    with Batch.opened(files.plan(pool=pool), settings) as batch:
        async with Fleet.connect(batch.client_settings(settings)) as fleet:
            return await asyncio.wait_for(batch.run(fleet, **limits), PATIENCE_S)


def expected(custom_id: str) -> str:
    return expected_text(Endpoint.CHAT, chat(custom_id, max_tokens=4))


# From one end to the other


async def test_every_line_of_openais_format_gets_a_line_of_output_in_its_format(
    inferfleet: RunCommand, start_worker: StartWorker, pool: str, files: Files
) -> None:
    await start_worker()
    names = [f"request-{number}" for number in range(30)]
    completion = {"prompt": "Once", "max_tokens": 3}
    files.write(*map(request, names), request("completion", completion, url="/v1/completions"))

    ended = await inferfleet("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool)

    assert (ended.code, ended.out) == (0, "")
    assert f"31 lines: 31 answered in {files.output}, 0 failed" in ended.err
    answers = files.answers()
    assert set(answers) == {*names, "completion"}
    text = answers.pop("completion")["response"]["body"]["choices"][0]["text"]
    assert text == expected_text(Endpoint.COMPLETIONS, completion)
    for name, line in answers.items():
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert set(line["response"]) == {"status_code", "request_id", "body"}
        assert (line["response"]["status_code"], line["error"]) == (200, None)
        assert line["id"] == "batch_req_" + line["response"]["request_id"]
        assert line["response"]["body"]["choices"][0]["message"]["content"] == expected(name)
    assert files.failures() == []


async def test_a_line_that_cannot_be_answered_says_why_in_the_error_file_and_stops_no_other(
    inferfleet: RunCommand, start_worker: StartWorker, pool: str, files: Files
) -> None:
    await start_worker()
    files.write(
        request("good"),
        "{not JSON",
        request("elsewhere", url="/v1/images"),
        request("wrong", chat(temperature="hot")),
        request("too long", chat(simulated={"fail": "prompt_too_long"})),
        "",
        request("good too"),
    )

    ended = await inferfleet(*("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool))

    assert ended.code == 1
    assert f"6 lines: 2 answered in {files.output}, 4 failed, see {files.errors}" in ended.err
    assert set(files.answers()) == {"good", "good too"}
    failures = sorted(files.failures(), key=lambda line: line["error"]["line"])
    assert [(line["custom_id"], line["error"]["line"], line["error"]["code"]) for line in failures] == [
        (None, 2, "invalid_request"),
        ("elsewhere", 3, "invalid_request"),
        ("wrong", 4, "invalid_request"),
        ("too long", 5, "prompt_too_long"),
    ]
    messages = [line["error"]["message"] for line in failures]
    assert messages[0].startswith("is not JSON (")
    assert "url: '/v1/images' is not one of" in messages[1]
    assert messages[2] == "body.temperature: must be a number, not a string"
    assert all(line["response"] is None for line in failures)
    # The same command again has nothing to do, and says the same.
    assert await inferfleet(
        *("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool)
    ) == (ended)


async def test_prompts_take_the_options_of_submit(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str, files: Files
) -> None:
    await start_worker()
    files.write("One?", "", "  Two?  ")

    ended = await inferfleet(
        *("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool, "--max-tokens", "5"),
        *("--system", "Be brief.", "--model", "simulated", "--temperature", "0", "--priority", "high"),
        *("--timeout", "30"),
    )

    assert (ended.code, ended.out) == (0, "")
    body = {"max_tokens": 5, "model": "simulated", "temperature": 0}
    assert files.texts() == {
        f"line-{number}": expected_text(
            Endpoint.CHAT,
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": prompt},
                ],
                **body,
            },
        )
        for number, prompt in ((1, "One?"), (3, "Two?"))
    }
    record = await fleet.get(files.answers()["line-1"]["response"]["request_id"])
    assert record.priority == 7


async def test_prompts_from_a_pipe_are_kept_beside_the_output(
    inferfleet: RunCommand, start_worker: StartWorker, pool: str, files: Files
) -> None:
    await start_worker()
    command = ("batch", "run", "-", "-o", str(files.output), "--pool", pool, "--prompts")

    ended = await inferfleet(*command, stdin='{"a": 1}: what is a?\nTwo?\n')

    assert (ended.code, ended.out) == (0, "")
    assert set(files.texts()) == {"line-1", "line-2"}
    copy = files.output.with_name("out.jsonl.input")
    assert copy.read_text() == '{"a": 1}: what is a?\nTwo?\n'
    nowhere = await inferfleet("batch", "run", str(copy), "-o", "-", "--pool", pool)
    assert nowhere.code == 2
    assert "the output has to be a file" in nowhere.err
    again = await inferfleet(*command, stdin="Other?\n")
    assert again.code == 2
    assert f"continue it with {copy}" in again.err
    assert (await inferfleet(*(str(copy) if word == "-" else word for word in command))).code == 0


async def test_a_batch_for_an_unknown_pool_ends_at_once(
    inferfleet: RunCommand, files: Files, pool: str
) -> None:
    files.write("One?")
    ended = await inferfleet(
        "batch", "run", str(files.source), "-o", str(files.output), "--pool", f"{pool}-none"
    )
    assert (ended.code, ended.out) == (2, "")
    assert f"inferfleet pool declare {pool}-none" in ended.err
    assert list(files.output.parent.iterdir()) == [files.source]


# Interrupted


class GatedEngine(SimulatedEngine):
    """Answers some requests, and the others once the gate is open."""

    def __init__(self, answered: int) -> None:
        super().__init__(model="simulated", max_running=4, engine_args=INSTANT)
        self.gate = asyncio.Event()
        self._left = answered

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        if self._left:
            self._left -= 1
        else:
            await self.gate.wait()
        async with aclosing(super().generate(generation)) as events:
            async for event in events:
                yield event


async def test_ctrl_c_leaves_and_the_same_command_continues(
    environment: dict[str, str],
    inferfleet: RunCommand,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    files: Files,
) -> None:
    names = [f"request-{number}" for number in range(50)]
    files.write(*map(request, names))
    engine = GatedEngine(answered=10)
    await start_worker(engine, max_running=4)
    command = ("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool)

    with TemporaryFile() as err:
        process = ForkedProcess(command, env=environment, stdout=err, stderr=err)
        await eventually(lambda: has_lines(files.output, 10))
        process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(process.wait(), PATIENCE_S)
        err.seek(0)
        said = err.read().decode()

    assert code == 130
    assert "Traceback" not in said
    assert "10 of 50 lines are done; jobs in flight continue. Go on with:\n" in said
    assert f"inferfleet {' '.join(command)}\n" in said
    status = await inferfleet("batch", "status", str(files.output))
    assert "10 answered in " in status.out
    assert "40 open; no run is going on" in status.out

    engine.gate.set()
    assert (await inferfleet(*command)).code == 0
    assert files.texts() == {name: expected(name) for name in names}
    await assert_each_ran_once(store, files, len(names))


async def has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


async def assert_each_ran_once(store: aioredis.Redis, files: Files, lines: int) -> None:
    """Every line had one job, which was started once and ended once."""
    batch_id = batch_status(files.output).record.id
    for line in range(1, lines + 1):
        assert kinds_of(await journal_of(store, line_job_id(batch_id, line))) == [
            "queued",
            "running",
            "tokens",
            "finished",
        ]
        assert not await store.exists(job_key(line_job_id(batch_id, line, 1)))


async def test_answers_that_came_while_nobody_ran_the_batch_are_taken(
    start_worker: StartWorker,
    settings: ProducerSettings,
    fleet: Fleet,
    foreign: ForeignClient,
    pool: str,
    files: Files,
) -> None:
    files.write(*(request(name) for name in "abc"))
    running = asyncio.create_task(run_batch(files, settings, pool=pool))

    async def published() -> bool:
        return await foreign.waiting() == 3

    await eventually(published)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert files.answers() == {}
    batch_id = batch_status(files.output).record.id
    await start_worker()
    await fleet.wait_many([line_job_id(batch_id, line) for line in (1, 2, 3)], timeout_s=PATIENCE_S)

    assert (await run_batch(files, settings, pool=pool)).succeeded == 3
    assert files.texts() == {name: expected(name) for name in "abc"}


async def test_jobs_that_still_wait_are_found_and_not_published_again(
    settings: ProducerSettings, foreign: ForeignClient, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(*(request(name) for name in "abc"))
    wait = Fleet.wait
    waited: list[str] = []

    async def noting(self: Fleet, job: str, **options: Any) -> Any:
        waited.append(job)
        return await wait(self, job, **options)

    monkeypatch.setattr(Fleet, "wait", noting)
    for run in (1, 2, 3):
        running = asyncio.create_task(run_batch(files, settings, pool=foreign.pool))
        async with asyncio.timeout(PATIENCE_S):
            while len(waited) < 3 * run:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert len(set(waited)) == 3
    assert await foreign.waiting() == 3


@pytest.mark.parametrize("kept", ["key", "key and record", "nothing"])
async def test_a_line_whose_result_has_expired_runs_again(
    start_worker: StartWorker,
    settings: ProducerSettings,
    store: aioredis.Redis,
    pool: str,
    files: Files,
    kept: str,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "ab"))
    await run_batch(files, settings, pool=pool)
    (first, second) = files.output.read_bytes().splitlines(keepends=True)
    files.output.write_bytes(first)
    job_id = json.loads(second)["id"].removeprefix(ID_PREFIX)
    await store.delete(result_key(job_id))
    if kept != "key and record":
        await store.delete(job_key(job_id), journal_key(job_id), request_key(job_id))
    if kept == "nothing":
        await store.delete(idempotency_key("7:default", job_id))

    assert (await run_batch(files, settings, pool=pool)).succeeded == 2

    assert files.texts() == {name: expected(name) for name in "ab"}


async def test_a_line_runs_again_however_often_its_result_has_expired_between_two_runs(
    start_worker: StartWorker, settings: ProducerSettings, store: aioredis.Redis, pool: str, files: Files
) -> None:
    await start_worker()
    files.write(request("a"))
    await run_batch(files, settings, pool=pool)
    ids: list[str] = []
    for _ in range(3):
        ids.append(files.answers()["a"]["id"].removeprefix(ID_PREFIX))
        await store.delete(*(key(ids[-1]) for key in (job_key, journal_key, request_key, result_key)))
        files.output.write_bytes(b"")
        assert (await run_batch(files, settings, pool=pool)).succeeded == 1

    assert len(set(ids)) == 3
    assert files.texts() == {"a": expected("a")}


async def test_a_result_that_is_lost_again_and_again_is_an_error(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(request("a"))
    submitted: set[str] = set()
    wait = Fleet.wait

    async def losing(self: Fleet, job: str, **options: Any) -> Any:
        submitted.add(job)
        await wait(self, job, **options)
        raise JobDataLostError(job, missing="result")

    monkeypatch.setattr(Fleet, "wait", losing)

    assert (await run_batch(files, settings, pool=pool)).failed == 1
    assert files.failures()[0]["error"]["code"] == "result_lost"
    assert len(submitted) == 2


# Refusals


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(lines, "WAIT_PAUSE_S", 0.02)


async def test_a_full_queue_makes_a_batch_slower_and_loses_nothing(
    start_worker: StartWorker,
    connect: Connect,
    producer_settings: Any,
    foreign: ForeignClient,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = foreign.pool
    limited: dict[str, Any] = {"queue_max_length": 5, "queue_type": "classic"}
    await foreign.channel.queue_delete(f"inferfleet.jobs.{pool}")
    settings = producer_settings(**limited)
    async with connect(**limited) as fleet:
        await fleet.declare_pool(pool)
    refusals = 0
    submit = Fleet.submit

    async def counting(self: Fleet, *arguments: Any, **options: Any) -> Job:
        nonlocal refusals
        try:
            return await submit(self, *arguments, **options)
        except QueueFullError:
            refusals += 1
            raise

    monkeypatch.setattr(Fleet, "submit", counting)
    slow = {"max_tokens": 4, "simulated": {"tokens": 4, "step_delay_s": 0.002}}
    names = [f"request-{number}" for number in range(60)]
    files.write(*(request(name, chat(name, **slow)) for name in names))
    await start_worker(max_running=2, look_ahead=0, **limited)

    progress = await run_batch(files, settings, pool=pool)

    assert (progress.succeeded, progress.failed) == (60, 0)
    assert set(files.answers()) == set(names)
    # The first jobs are refused together; from then on the window is about as large as the queue.
    assert 0 < refusals < 60


@pytest.mark.usefixtures("short_pauses")
async def test_outages_pass_and_a_lasting_refusal_ends_the_batch(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "abcdef"))
    submit, wait = Fleet.submit, Fleet.wait
    troubles: dict[str, Iterator[Exception]] = {
        "submit": iter(
            [
                ServiceUnreachableError("RabbitMQ is away"),
                UnknownPoolError("RabbitMQ has lost its queues"),
                ServiceRefusedError("Redis is full", passing=True),
            ]
        ),
        "wait": iter([ServiceUnreachableError("Redis is away")]),
    }

    async def troubled_submit(self: Fleet, work: Job, **options: Any) -> Job:
        if work.metadata["custom_id"] != "a" and (error := next(troubles["submit"], None)):
            raise error
        return await submit(self, work, **options)

    async def troubled_wait(self: Fleet, job: str, **options: Any) -> Any:
        if error := next(troubles["wait"], None):
            raise error
        return await wait(self, job, **options)

    monkeypatch.setattr(Fleet, "submit", troubled_submit)
    monkeypatch.setattr(Fleet, "wait", troubled_wait)
    told: list[BatchProgress] = []

    progress = await run_batch(files, settings, pool=pool, max_in_flight=1, tell=told.append)

    assert (progress.succeeded, next(troubles["submit"], None)) == (6, None)
    assert told[-1] == progress


@pytest.mark.usefixtures("short_pauses")
async def test_a_job_that_alone_is_refused_is_an_error_and_a_refusal_of_all_ends_the_batch(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "abc"))
    submit = Fleet.submit
    refused = {"a", "b", "c"}
    accepted = asyncio.Event()
    refusals = 0

    async def refusing(self: Fleet, work: Job, **options: Any) -> Job:
        nonlocal refusals
        if work.metadata["custom_id"] in refused:
            refusals += 1
            if len(refused) == 1 and refusals > 1:
                await accepted.wait()
            raise ServiceRefusedError("RabbitMQ refuses it: too large")
        job = await submit(self, work, **options)
        accepted.set()
        return job

    monkeypatch.setattr(Fleet, "submit", refusing)
    with pytest.raises(ServiceRefusedError, match="too large"):
        await run_batch(files, settings, pool=pool)
    assert batch_status(files.output).failed == 0

    refused -= {"a", "c"}
    refusals = 0
    progress = await run_batch(files, settings, pool=pool)

    assert (progress.succeeded, progress.failed) == (2, 1)
    (failure,) = files.failures()
    assert (failure["custom_id"], failure["error"]["message"]) == ("b", "RabbitMQ refuses it: too large")


# Status and cancel


async def test_cancel_ends_every_line_and_keeps_the_answers_that_there_are(
    inferfleet: RunCommand,
    start_worker: StartWorker,
    settings: ProducerSettings,
    fleet: Fleet,
    pool: str,
    files: Files,
) -> None:
    await start_worker(max_running=2)
    files.write(request("done"), *(request(f"endless-{number}", ENDLESS) for number in range(4)))
    running = asyncio.create_task(run_batch(files, settings, pool=pool, max_in_flight=3))
    await eventually(lambda: has_lines(files.output, 1))
    status = await inferfleet("batch", "status", str(files.output), "--json")
    assert (
        json.loads(status.out).items() >= {"succeeded": 1, "failed": 0, "lines": 5, "running": True}.items()
    )
    refused = await inferfleet("batch", "cancel", str(files.output))
    assert refused.code == 2
    assert "another run writes to" in refused.err
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # The answer is in Redis, and in no file.
    whole = files.output.read_bytes()
    files.output.write_bytes(b"")

    ended = await inferfleet("batch", "cancel", str(files.output))

    assert (ended.code, ended.out) == (0, "4 lines cancelled or failed, 1 more answers\n")
    assert files.output.read_bytes() == whole
    failures = files.failures()
    assert {line["custom_id"] for line in failures} == {f"endless-{number}" for number in range(4)}
    assert {line["error"]["code"] for line in failures} == {"cancelled"}
    assert "cancelled before it was submitted" in {line["error"]["message"] for line in failures}
    batch_id = batch_status(files.output).record.id
    states = [
        record.state
        for record in (await fleet.get_many(line_job_id(batch_id, line) for line in range(1, 6))).values()
        if record is not None
    ]
    assert sorted(states) == ["cancelled"] * (len(states) - 1) + ["succeeded"]
    assert (await run_batch(files, settings, pool=pool)).failed == 4


async def test_cancel_stops_the_jobs_of_an_input_that_has_changed(
    start_worker: StartWorker, settings: ProducerSettings, fleet: Fleet, pool: str, files: Files
) -> None:
    await start_worker()
    files.write(request("endless", ENDLESS))
    running = asyncio.create_task(run_batch(files, settings, pool=pool))
    await eventually(lambda: has_lines(files.output.with_name("out.jsonl.batch"), 1))
    job_id = line_job_id(batch_status(files.output).record.id, 1)

    async def submitted() -> bool:
        return (await fleet.get_many([job_id]))[job_id] is not None

    await eventually(submitted)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    files.source.unlink()

    with (
        Batch.reopened(files.output, settings) as batch,
        pytest.raises(BatchError, match="the jobs are cancelled, but"),
    ):
        await batch.cancel(fleet)

    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state == "cancelled"
    assert files.failures() == []
