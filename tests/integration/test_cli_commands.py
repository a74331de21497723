"""The command line as a person or a script uses it: what is on stdout, on stderr, and in the exit code."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartWorker,
    answer_to,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
    until_running,
)

from inferfleet.agents import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, Job, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import journal_entry
from inferfleet.worker.engines.simulated import expected_text


def said(prompt: str, **body: Any) -> str:
    return expected_text(Endpoint.CHAT, chat(prompt, **body))


# submit


async def test_submit_prints_the_id_and_nothing_else(inferfleet: RunCommand, fleet: Fleet, pool: str) -> None:
    ended = await inferfleet("submit", "hello", "--pool", pool)
    assert (ended.code, ended.err) == (0, "")
    record = await fleet.get(ended.out.strip())
    assert (record.state, record.pool) == (JobState.QUEUED, pool)


async def test_submit_takes_every_option(inferfleet: RunCommand, fleet: Fleet, pool: str) -> None:
    ended = await inferfleet(
        *("submit", "hello", "--pool", pool, "--priority", "high", "--session", "s-1", "--timeout", "30"),
        *("--idempotency-key", pool, "--metadata", "a=1", "--metadata", "b=x=y", "--max-tokens", "5"),
        "--json",
    )
    assert (ended.code, ended.err) == (0, "")
    job = Job.model_validate_json(ended.out)
    assert (job.pool, job.priority, job.session_id, job.timeout_s) == (pool, 7, "s-1", 30)
    assert (job.idempotency_key, job.metadata) == (pool, {"a": "1", "b": "x=y"})
    assert (job.endpoint, job.body) == (Endpoint.CHAT, chat("hello", max_tokens=5))
    ended = await inferfleet(
        *(
            "submit",
            "hello",
            "--pool",
            pool,
            "--session",
            "s-2",
            "--on-busy",
            "interrupt",
            "--system",
            "Be kind.",
        ),
        *("--temperature", "0.5", "--max-attempts", "2", "--expires", "2h", "--on-late", "reject"),
        *("--priority", "9", "--json"),
    )
    assert (ended.code, ended.err) == (0, "")
    job = Job.model_validate_json(ended.out)
    assert (job.on_busy, job.max_attempts, job.priority) == ("interrupt", 2, 9)
    assert job.on_late == "reject"
    assert job.expires_at is not None
    assert timedelta(hours=1) < job.expires_at - job.submitted_at < timedelta(hours=3)
    assert job.body == {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
        "temperature": 0.5,
    }
    ended = await inferfleet(
        "submit", "hello", "--endpoint", "/v1/completions", "--pool", pool, "--max-tokens", "5", "--json"
    )
    job = Job.model_validate_json(ended.out)
    assert (job.endpoint, job.body) == (Endpoint.COMPLETIONS, {"prompt": "hello", "max_tokens": 5})


async def test_submit_and_wait_prints_the_answer(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    ended = await inferfleet("submit", "hello", "--pool", pool, "--wait")
    assert (ended.code, ended.out, ended.err) == (0, said("hello") + "\n", "")
    ended = await inferfleet("submit", "hello", "--pool", pool, "--wait", "--json")
    result = json.loads(ended.out)
    assert (ended.code, ended.err, result["state"]) == (0, "", "succeeded")
    assert result["response"]["choices"][0]["message"]["content"] == said("hello")


async def test_submit_and_stream_prints_the_tokens(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    ended = await inferfleet("submit", "hello", "--pool", pool, "--stream")
    assert (ended.code, ended.out, ended.err) == (0, said("hello") + "\n", "")
    ended = await inferfleet("submit", "hello", "--pool", pool, "--stream", "--json")
    entries = [journal_entry.validate_json(line) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert kinds_of(entries) == ["queued", "running", "tokens", "finished"]


@pytest.mark.parametrize("source", ["file", "stdin"])
async def test_submit_takes_a_whole_request(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str, tmp_path: Path, source: str
) -> None:
    await start_worker()
    request = json.dumps(chat("from a file", max_tokens=7, temperature=0))
    file = tmp_path / "request.json"
    file.write_text(request)
    ended = await inferfleet(
        *("submit", "--body", "-" if source == "stdin" else str(file), "--pool", pool, "--wait"),
        stdin=request if source == "stdin" else "",
    )
    assert (ended.code, ended.out, ended.err) == (0, said("from a file", max_tokens=7) + "\n", "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
async def test_submit_reads_a_request_in_each_encoding_that_editors_write(
    inferfleet: RunCommand, fleet: Fleet, pool: str, tmp_path: Path, encoding: str
) -> None:
    request = chat("grüß Gott 😀", seed=2**62 + 1, big=2**64 - 1)
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request, ensure_ascii=False), encoding=encoding)
    ended = await inferfleet("submit", "--body", str(file), "--pool", pool, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["body"] == request


async def test_submit_refuses_what_it_would_change(
    inferfleet: RunCommand, fleet: Fleet, pool: str, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(chat(big=2**64)))
    ended = await inferfleet("submit", "--body", str(file), "--pool", pool)
    assert (ended.code, ended.out) == (2, "")
    assert "body.big: has a whole number of more than 64 bits" in ended.err


async def test_an_embedding_is_printed_as_the_response_that_it_is(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    ended = await inferfleet("submit", "hello", "--endpoint", "/v1/embeddings", "--pool", pool, "--wait")
    assert ended.code == 0
    assert len(json.loads(ended.out)["data"][0]["embedding"]) == 384


async def test_a_ranking_is_printed_as_the_response_that_it_is(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str, tmp_path: Path
) -> None:
    await start_worker()
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"query": "the sea", "documents": ["oil", "water"], "top_n": 1}))
    for way in ("--wait", "--stream"):
        ended = await inferfleet(
            "submit", "--body", str(file), "--endpoint", "/v1/rerank", "--pool", pool, way
        )
        assert ended.code == 0
        (best,) = json.loads(ended.out)["results"]
        assert best["document"]["text"] in {"oil", "water"}


async def test_a_prompt_alone_is_no_request_for_a_ranking(inferfleet: RunCommand, pool: str) -> None:
    ended = await inferfleet("submit", "the sea", "--endpoint", "/v1/rerank", "--pool", pool)
    assert (ended.code, ended.out) == (2, "")
    assert "/v1/rerank needs more than a prompt" in ended.err


async def test_a_job_that_fails_is_exit_code_1(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str, tmp_path: Path
) -> None:
    await start_worker()
    file = tmp_path / "request.json"
    file.write_text(json.dumps(chat(simulated={"fail": "prompt_too_long"})))
    submit = ("submit", "--body", str(file), "--pool", pool)
    ended = await inferfleet(*submit, "--wait")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("inferfleet: job ")
    assert "failed: prompt_too_long" in ended.err
    ended = await inferfleet(*submit, "--wait", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["error"]["code"] == "prompt_too_long"
    ended = await inferfleet(*submit, "--stream")
    assert (ended.code, ended.out) == (1, "")
    job_id = json.loads((await inferfleet(*submit, "--json")).out)["id"]
    await fleet.wait(job_id, timeout_s=PATIENCE_S)
    ended = await inferfleet("get", job_id, "--json")
    assert (ended.code, json.loads(ended.out)["state"]) == (1, "failed")


async def test_an_unknown_pool_is_exit_code_2(inferfleet: RunCommand) -> None:
    ended = await inferfleet("submit", "hello", "--pool", "nobody-serves-this")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("inferfleet: no queue is bound for the pool 'nobody-serves-this'")
    assert ended.err.count("\n") == 1


# get, stream, cancel


async def test_get_shows_a_job_before_and_after_it_ran(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    ended = await inferfleet("get", job.id)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("queued, attempt 0")
    ended = await inferfleet("get", job.id, "--json")
    assert (ended.code, ended.err, json.loads(ended.out)["state"]) == (0, "", "queued")
    await start_worker()
    ended = await inferfleet("get", job.id, "--wait")
    assert (ended.code, ended.out) == (0, answer_to(job) + "\n")
    ended = await inferfleet("get", job.id, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["result"]["job_id"] == job.id


async def test_get_shows_many_jobs_and_exits_with_1_unless_all_that_ended_succeeded(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    jobs = await fleet.submit_many(["one", "two", "three"], pool=pool)
    ids = [job.id for job in jobs]
    ended = await inferfleet("get", *ids, ids[0])
    assert (ended.code, ended.out) == (0, "")
    assert [line.partition(", ")[0] for line in ended.err.splitlines()] == [f"{id_}: queued" for id_ in ids]

    ended = await inferfleet("get", "-", "--wait", "--timeout", "0.01", stdin="\n".join(ids))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "inferfleet: not all of the 3 jobs have ended within 0.01 s; wait longer, or again\n"
    ended = await inferfleet("get", ids[0], "--wait", "--timeout", "0.01")
    assert (ended.code, ended.err[:60]) == (1, f"inferfleet: job {ids[0]} has not en"[:60])

    await start_worker()
    ended = await inferfleet("get", "-", "--wait", "--json", stdin=" ".join(ids))
    assert (ended.code, ended.err) == (0, "")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert {record["id"]: record["state"] for record in records} == dict.fromkeys(ids, "succeeded")
    ended = await inferfleet("get", *ids)
    assert (ended.code, ended.out) == (0, "".join(f"{answer_to(job)}\n" for job in jobs))

    failed = await fleet.submit(chat(simulated={"fail": "prompt_too_long"}), pool=pool)
    unknown = new_job_id()
    for options in ((), ("--wait",), ("--json",), ("--wait", "--json")):
        ended = await inferfleet("get", ids[0], unknown, failed.id, ids[1], *options)
        assert ended.code == 1
        assert f"inferfleet: no record of job {unknown}" in ended.err
        if "--wait" in options:
            assert f"inferfleet: job {failed.id} failed: prompt_too_long" in ended.err
        shown = [ids[0], failed.id, ids[1]] if "--json" in options else ids[:2]
        assert len(ended.out.splitlines()) == len(shown)


async def test_a_stream_begins_behind_the_entry_that_is_named(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=20, step_s=0.02), pool=pool, stream=True)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    whole = (await inferfleet("stream", job.id, "--json")).out.splitlines(keepends=True)
    ids = [json.loads(line)["id"] for line in whole]
    assert ids == [line.id async for line in fleet.stream(job)]
    assert len(ids) > 5
    said = ""
    for position, line in enumerate(whole):
        said += "".join(chunk["text"] for chunk in json.loads(line).get("chunks", ()))
        if position in {1, 3, len(ids) - 1}:
            ended = await inferfleet("stream", job.id, "--json", "--after", ids[position])
            assert (ended.code, ended.out) == (0, "".join(whole[position + 1 :]))
            ended = await inferfleet("stream", job.id, "--after", ids[position])
            assert (ended.code, said + ended.out) == (0, answer_to(job) + "\n")


async def test_what_is_no_text_is_printed_also_behind_an_entry(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", endpoint=Endpoint.EMBEDDINGS, pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    first = json.loads((await inferfleet("stream", job.id, "--json")).out.splitlines()[0])["id"]
    ended = await inferfleet("stream", job.id, "--after", first)
    assert (ended.code, len(json.loads(ended.out)["data"])) == (0, 1)


async def test_a_pool_that_has_a_worker_completes_with_tab(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    async def has_heartbeat() -> bool:
        return pool in {worker.pool for worker in await fleet.workers()}

    await eventually(has_heartbeat)
    words = f"inferfleet submit --pool {pool[:-1]}"
    ended = await inferfleet(
        environment={"_INFERFLEET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    )
    assert (ended.code, ended.out, ended.err) == (0, f"{pool}\n", "")


async def test_stream_prints_what_was_said_from_its_beginning(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    ended = await inferfleet("stream", job.id)
    assert (ended.code, ended.out, ended.err) == (0, answer_to(job) + "\n", "")
    ended = await inferfleet("stream", job.id, "--json")
    assert (ended.code, ended.err) == (0, "")
    printed = [journal_entry.validate_json(line) for line in ended.out.splitlines()]
    assert printed == await journal_of(store, job)


async def test_cancel_says_what_it_found(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    queued = await fleet.submit("hello", pool=pool, priority=0)
    ended = await inferfleet("cancel", queued.id)
    assert (ended.code, ended.out, ended.err) == (0, "cancelled\n", "")
    ended = await inferfleet("get", queued.id)
    assert (ended.code, ended.out) == (1, "")
    assert "cancelled before it ran" in ended.err
    await start_worker()
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.01), pool=pool)
    await until_running(fleet, running)
    ended = await inferfleet("cancel", running.id)
    assert (ended.code, ended.out) == (0, "it is running, and was told to stop\n")
    assert (await fleet.wait(running, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
    ended = await inferfleet("cancel", running.id, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, {"id": running.id, "state": "cancelled"})


@pytest.mark.parametrize("command", ["get", "stream", "cancel"])
async def test_an_unknown_job_is_an_error(inferfleet: RunCommand, command: str) -> None:
    unknown = new_job_id()
    ended = await inferfleet(command, unknown)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"inferfleet: no record of job {unknown}")
    assert ended.err.count("\n") == 1


# pool, dead


async def test_a_pool_that_was_declared_accepts_jobs(inferfleet: RunCommand, pool: str) -> None:
    assert (await inferfleet("submit", "hello", "--pool", pool)).code == 2
    ended = await inferfleet("pool", "declare", pool)
    assert (ended.code, ended.out, ended.err) == (0, f"inferfleet.jobs.{pool}\n", "")
    assert (await inferfleet("submit", "hello", "--pool", pool)).code == 0


async def test_dead_letters_are_listed_shown_replayed_and_purged(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    body = chat("a secret prompt", simulated={"fail": "engine_error"})
    job = await fleet.submit(body, pool=pool, max_attempts=1)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    ended = await inferfleet("dead", "list", "--pool", pool, "--json")
    (letter,) = json.loads(ended.out)
    assert (ended.code, letter["message_id"], letter["code"]) == (0, job.id, "too_many_attempts")
    assert "a secret prompt" not in ended.out
    ended = await inferfleet("dead", "list", "--pool", pool)
    assert ended.code == 0
    assert ended.out.startswith(f"{job.id}  ")
    assert "too_many_attempts  1 attempt  gave up after 1 attempt;" in ended.out
    assert "a secret prompt" not in ended.out
    ended = await inferfleet("dead", "show", job.id, "--pool", pool)
    assert json.loads(ended.out)["job"]["body"] == job.body
    again = (await inferfleet("dead", "replay", job.id, "--pool", pool)).out.strip()
    assert again != job.id
    await fleet.wait(again, timeout_s=PATIENCE_S)
    ended = await inferfleet("dead", "purge", "--all", "--yes", "--pool", pool, "--json")
    assert json.loads(ended.out) == {"pool": pool, "purged": 1}
    ended = await inferfleet("dead", "show", job.id, "--pool", pool)
    assert (ended.code, ended.out) == (1, "")


async def test_a_list_that_is_cut_off_says_so(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    body = chat(simulated={"fail": "engine_error"})
    await fleet.wait_many(
        [
            await fleet.submit(Job(pool=pool, body=body, max_attempts=1, session_id=f"{pool}-{number}"))
            for number in range(2)
        ],
        timeout_s=PATIENCE_S,
    )
    runs = AgentRuns(fleet)
    for text in ("one", "two"):
        await runs.start("clerk", text, queue=pool)
    for command in (
        ("dead", "list", "--pool", pool),
        ("session", "list"),
        ("agent", "list", "--queue", pool),
    ):
        for as_json in ((), ("--json",)):
            ended = await inferfleet(*command, "--limit", "1", *as_json)
            listed = json.loads(ended.out) if as_json else ended.out.splitlines()
            assert (ended.code, len(listed)) == (0, 1)
            assert ended.err == "inferfleet: there are more than 1; --limit lists more\n"
    for command in (("dead", "list", "--pool", pool), ("agent", "list", "--queue", pool)):
        ended = await inferfleet(*command, "--limit", "2")
        assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 2)


async def test_a_queue_of_runs_has_the_name_of_a_pool(inferfleet: RunCommand) -> None:
    ended = await inferfleet("agent", "list", "--queue", "ZZ")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("inferfleet: pool: 'ZZ' is not a pool name")
    ended = await inferfleet("agent", "start", "clerk", "go", "--queue", "ZZ")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("inferfleet: pool: 'ZZ' is not a pool name")


async def test_a_run_needs_a_queue_that_a_runner_has_declared(
    inferfleet: RunCommand, fleet: Fleet, pool: str
) -> None:
    ended = await inferfleet("agent", "start", "clerk", "go", "--queue", pool)
    assert (ended.code, ended.out) == (2, "")
    assert f"there is no queue {pool!r} of runs: start a runner for it" in ended.err
    assert await AgentRuns(fleet).list(pool) == []
