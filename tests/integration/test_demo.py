"""`inferfleet demo` as a person or a script runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.demo.workload import SIMULATED
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.local.services.launcher import source_of

DEMO = [sys.executable, "-m", "inferfleet.cli", "demo"]


def clean_environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    return inherited | {f"INFERFLEET_{name.upper()}": value for name, value in variables.items()}


def demo(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *options],
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def urls(services: Services) -> Mapping[str, str]:
    """Variables that point at the session's services."""
    return {"amqp_url": services.amqp_url, "redis_url": services.redis_url}


@pytest.mark.parametrize("kind", [ServicesChoice.NATIVE, ServicesChoice.EMBEDDED])
def test_every_job_succeeds_and_json_is_one_object(kind: ServicesChoice) -> None:
    if (unavailable_reason := source_of(kind).unavailable_reason()) is not None:
        pytest.skip(f"{kind} services cannot run here: {unavailable_reason}")

    ended = demo("--json", "--jobs", "40", "--services", kind)

    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    assert list(report) == [
        *("services", "jobs", "succeeded", "failed", "lost", "duration_s", "tokens", "tokens_per_s"),
        *("tokens_paid_twice", "killed", "wait_s"),
    ]
    assert kind in report["services"]
    assert (report["jobs"], report["succeeded"], report["failed"], report["lost"]) == (40, 40, 0, 0)
    assert report["duration_s"] > 0
    assert report["tokens_per_s"] > 0
    assert list(report["wait_s"]) == ["urgent", "high", "normal", "batch"]
    assert sum(waits["count"] for waits in report["wait_s"].values()) == 40
    assert report["wait_s"]["urgent"]["count"] == 1
    assert all(0 <= waits["p50"] <= waits["p99"] for waits in report["wait_s"].values())
    assert f"services: {report['services']}\n" in ended.stderr
    assert "urgent job, streamed: first token after" in ended.stderr
    assert "cannot ask Redis" not in ended.stderr


def test_a_worker_is_killed_and_its_answer_goes_on_from_the_same_word(urls: Mapping[str, str]) -> None:
    # Slow enough to be killed in mid-answer, however busy the machine is.
    ended = demo("--json", "--jobs", "5", engine_args='{"speed": 0.3}', **urls)

    assert ended.returncode == 0, ended.stderr
    killed = json.loads(ended.stdout)["killed"]
    assert killed["tokens_seen"] >= SIMULATED.kill_after_tokens
    assert killed["tokens_seen_twice"] == 0
    assert killed["pause_s"] > 0
    assert killed["jobs_resumed"] >= 1
    assert killed["tokens_kept"] >= killed["tokens_seen"]
    victim, heir, *_ = re.findall(r"^    \[worker (\d)\]", ended.stderr, re.MULTILINE)
    assert victim != heir
    assert killed["worker"] == f"worker {victim}"
    assert f"worker {victim} killed with SIGKILL" in ended.stderr
    assert f"worker {heir} went on after token" in ended.stderr


def test_a_single_worker_is_left_alive(urls: Mapping[str, str]) -> None:
    ended = demo("--json", "--jobs", "10", "--workers", "1", **urls)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["killed"] is None


def test_without_json_it_names_the_services_and_prints_a_table(urls: Mapping[str, str]) -> None:
    ended = demo("--jobs", "10", "--workers", "1", **urls)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("services: given, ")
    assert re.search(r"priority +jobs +p50 s +p99 s", ended.stdout)
    assert re.search(r"urgent +1 +\d+\.\d\d +\d+\.\d\d", ended.stdout)
    assert "10 of 10 jobs succeeded, 0 failed; nothing lost" in ended.stdout
    assert "worker 1 was killed" not in ended.stdout


def test_urgent_work_overtakes_what_waits(urls: Mapping[str, str]) -> None:
    # A single worker, which is not killed: what a dead one had held would wait for its lease, too.
    ended = demo(
        *("--json", "--jobs", "60", "--workers", "1"),
        engine_args='{"speed": 4}',
        max_running="4",
        look_ahead="0",
        **urls,
    )

    waits = json.loads(ended.stdout)["wait_s"]
    assert waits["high"]["p50"] < waits["normal"]["p50"] < waits["batch"]["p50"]
    assert waits["urgent"]["p99"] < waits["batch"]["p50"]


def test_on_a_terminal_it_is_a_live_picture(urls: Mapping[str, str]) -> None:
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        # Slow enough to be killed in mid-answer, however busy the machine is.
        [*DEMO, "--jobs", "8"],
        env=clean_environment(engine_args='{"speed": 0.3}', **urls)
        | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        screen = _read_to_the_end(terminal)
        assert process.wait(PATIENCE_S) == 0, screen
    os.close(terminal)

    for seen in (
        *("queued", "tokens/s", "8 of 8 jobs", "worker 2", "urgent job, streamed"),
        *("killed with SIGKILL", "went on after token", "tokens paid twice", "nothing lost"),
    ):
        assert seen in screen
    assert screen.count("queued") > 3
    assert screen.rfind("\x1b[?25h") > screen.rfind("\x1b[?25l"), "the cursor is visible again"


def test_a_failed_job_makes_it_exit_with_1(urls: Mapping[str, str]) -> None:
    ended = demo("--json", "--jobs", "5", engine_args='{"max_model_len": 2}', **urls)

    assert ended.returncode == 1
    report = json.loads(ended.stdout)
    assert (report["succeeded"], report["failed"], report["lost"]) == (0, 5, 0)


def test_a_real_engine_without_a_model_is_wrong_use() -> None:
    ended = demo("--engine", "vllm", "--services", "embedded")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "inferfleet: --engine vllm needs --model, a folder or a name (INFERFLEET_MODEL)\n"


def test_a_worker_that_cannot_start_ends_it_with_the_end_of_the_workers_log(urls: Mapping[str, str]) -> None:
    ended = demo("--json", engine_args='{"nonsense": 1}', **urls)

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "ended with code 2; the end of its log:" in ended.stderr
    assert "the simulated engine has no argument 'nonsense'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_services_out_of_reach_are_exit_code_3() -> None:
    ended = demo("--json", amqp_url="amqp://guest:secret@127.0.0.1:1/", redis_url="redis://127.0.0.1:1/0")

    assert ended.returncode == 3
    assert ended.stdout == ""
    assert "does not answer" in ended.stderr
    assert "secret" not in ended.stderr


def _read_to_the_end(terminal: int) -> str:
    screen = b""
    while select.select([terminal], [], [], PATIENCE_S)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            # Linux says so when the last process has closed its end.
            break
        if not piece:
            break
        screen += piece
    return screen.decode()
