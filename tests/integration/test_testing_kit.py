"""``inferfleet.testing`` as a project of a user has it: in a folder of its own, run by pytest itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pages import write_files_of

from inferfleet.local.services import ServicesChoice
from inferfleet.local.services.launcher import source_of

ASYNCIO = """
import pytest

from inferfleet.schemas.errors import JobNotFoundError, UnknownPoolError


async def test_workers_repeat_the_prompt_or_say_what_they_are_told(fleet, workers):
    await workers(2)
    workers.reply_to("capital of France", with_text="Paris, of course.")
    workers.fail_with("engine_error", prompt="flaky", times=2)
    workers.fail_with("prompt_too_long", prompt="long")

    jobs = await fleet.submit_many(["The capital of France?", "flaky", "too long", "repeat this"])
    told, flaky, long, repeated = await fleet.wait_many(jobs, timeout_s=60)

    assert told.text == "Paris, of course."
    assert (flaky.text, flaky.attempts) == ("flaky", 3)
    assert long.error.code == "prompt_too_long"
    assert repeated.text == "repeat this"
    assert len(await fleet.workers()) == 2
    global left
    await fleet.declare_pool("another")
    left = await fleet.submit("nobody runs this", pool="another")


async def test_services_are_empty_for_the_next_test(fleet):
    with pytest.raises(JobNotFoundError):
        await fleet.get(left)
    for pool in ("default", "another"):
        with pytest.raises(UnknownPoolError):
            await fleet.submit("no pool is left", pool=pool)
    assert await fleet.workers() == []


async def test_a_worker_that_is_drained_hands_over_what_it_runs(fleet, workers):
    workers.reply_to("story", with_text="once upon a time", hang_after_tokens=2)
    await workers(1, drain_timeout_s=0, pool="stories")
    job = await fleet.submit("tell me a story", pool="stories")
    worker = await workers.until_hung()

    assert await worker.drain() == 0
    await workers(1, pool="stories")

    result = await fleet.wait(job, timeout_s=60)
    assert (result.text, result.attempts) == ("once upon a time", 1)
    assert result.worker_id != worker.id


def test_code_that_blocks_has_the_same(sync_fleet, sync_workers):
    sync_workers(engine="simulated", engine_args={"speed": 0})
    sync_workers(pool="scripted")
    sync_workers.reply_to("x", with_text="y")

    simulated, scripted = sync_fleet.submit("x"), sync_fleet.submit("x", pool="scripted")

    assert sync_fleet.wait(scripted, timeout_s=60).text == "y"
    assert len(sync_fleet.wait(simulated, timeout_s=60).text) > 1
"""

ANYIO = """
import pytest


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_anyio_runs_it(fleet, workers):
    await workers()
    job = await fleet.submit("hello")
    assert (await fleet.wait(job, timeout_s=60)).text == "hello"
"""

UNRELATED = """
import sys


def test_nothing_is_loaded_that_nobody_uses():
    names = {name.partition(".")[0] for name in sys.modules}
    assert not {"aio_pika", "redis", "docker", "testcontainers", "fakeredis", "pydantic"} & names
    assert not {"inferfleet.local", "inferfleet.worker", "inferfleet.producer"} & set(sys.modules)
"""


def run_pytest(project: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=project,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_passed(ended: subprocess.CompletedProcess[str], count: int) -> None:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{count} passed" in ended.stdout


@pytest.mark.parametrize("kind", [ServicesChoice.EMBEDDED, ServicesChoice.NATIVE])
def test_the_tests_of_the_page_pass(kind: ServicesChoice, tmp_path: Path) -> None:
    if (reason := source_of(kind).unavailable_reason()) is not None:
        pytest.skip(f"{kind}: {reason}")
    write_files_of("how-to/test-your-application.md", tmp_path)

    assert_passed(run_pytest(tmp_path, INFERFLEET_TEST_SERVICES=kind), 4)


def test_answers_are_scripted_services_emptied_and_workers_drained(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(ASYNCIO)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "inferfleet_services = embedded\nfilterwarnings = error\n"
    )

    assert_passed(run_pytest(tmp_path), 4)


def test_anyios_plugin_will_do(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(ANYIO)

    assert_passed(run_pytest(tmp_path, "-p", "no:asyncio", "--inferfleet-services", "embedded"), 1)


def test_without_a_plugin_for_asynchronous_tests_the_client_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text("def test_it(fleet):\n    pass\n")

    ended = run_pytest(tmp_path, "-p", "no:asyncio", "-p", "no:anyio")

    assert "`fleet` needs pytest-asyncio or anyio; `sync_fleet` needs neither" in ended.stdout


def test_a_misspelt_kind_of_services_is_told_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text("def test_it(inferfleet_services):\n    pass\n")

    ended = run_pytest(tmp_path, INFERFLEET_TEST_SERVICES="podman")

    assert "inferfleet_services is 'podman' and should be one of auto, docker, native" in ended.stdout


def test_a_project_that_does_not_use_it_loads_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(UNRELATED)

    assert_passed(run_pytest(tmp_path, "-W", "error", "-p", "no:asyncio", "-p", "no:hypothesispytest"), 1)
