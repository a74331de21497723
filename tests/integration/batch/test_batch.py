"""A batch from a file: each line gets its answer or its error, and whoever wants may look or stop it."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.integration.batch.conftest import ENDLESS, Files, expected, has_lines, request, run_batch
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartWorker,
    chat,
    eventually,
)

from inferfleet.producer import Fleet
from inferfleet.producer.batch import Batch, batch_status, stop_run
from inferfleet.producer.batch.files import stop_path
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import (
    BatchError,
)
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


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
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # The answer is in Redis, and in no file.
    whole = files.output.read_bytes()
    files.output.write_bytes(b"")

    ended = await inferfleet("batch", "cancel", str(files.output))

    assert (ended.code, ended.out) == (0, "4 lines cancelled or failed, 1 more answer\n")
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


async def test_cancel_stops_a_run_that_it_knows_only_by_its_files(
    inferfleet: RunCommand, start_worker: StartWorker, settings: ProducerSettings, pool: str, files: Files
) -> None:
    await start_worker(max_running=2)
    files.write(request("done"), *(request(f"endless-{number}", ENDLESS) for number in range(4)))
    running = asyncio.create_task(run_batch(files, settings, pool=pool, max_in_flight=3))
    await eventually(lambda: has_lines(files.output, 1))

    ended = await inferfleet("batch", "cancel", str(files.output))

    assert (ended.code, ended.out) == (0, "4 lines cancelled or failed, 0 more answers\n")
    with pytest.raises(BatchError, match="was stopped, because somebody is cancelling the batch"):
        await running
    assert {path.name for path in files.output.parent.iterdir()} == {
        *("in.jsonl", "out.jsonl", "out.errors.jsonl", "out.jsonl.batch")
    }
    # What a cancel leaves that is killed stops no later run, and no cancel.
    stop_path(files.output).touch()
    assert (await run_batch(files, settings, pool=pool)).failed == 4
    stop_path(files.output).touch()
    with Batch.reopened(files.output, settings) as batch:
        async with Fleet.connect(batch.client_settings(settings)) as client:
            assert (await batch.cancel(client)).failed == 4


async def test_cancel_does_not_wait_for_ever_for_a_run_that_cannot_see_it(
    settings: ProducerSettings, pool: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferfleet.producer.batch.batch.STOP_S", 0.1)
    files.write(request("waits"))
    with (
        Batch.opened(files.plan(pool=pool), settings),
        pytest.raises(BatchError, match="end its process, and cancel again"),
    ):
        await asyncio.wait_for(stop_run(files.output), PATIENCE_S)
    assert not stop_path(files.output).exists()


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
