"""What a person sees of the demo."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from inferfleet.local.demo.progress import Progress, UrgentStream
from inferfleet.local.demo.view import PlainLines, picture
from inferfleet.schemas import Result, Usage
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import JobState, new_job_id


def heartbeat(running: int) -> Heartbeat:
    now = datetime.now(UTC)
    return Heartbeat(
        worker_id="demo-1",
        pool="demo",
        phase=WorkerPhase.READY,
        engine="simulated",
        model="simulated",
        version="0",
        running=running,
        waiting=3,
        kv_cache_usage=0.25,
        started_at=now,
        seen_at=now,
    )


def drawn(progress: Progress) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(picture(progress))
    return " ".join(capture.get().split())


def test_the_picture_has_the_queue_the_workers_and_how_far_it_is() -> None:
    progress = Progress(total=300, finished=120, queued=77, workers=[heartbeat(16), heartbeat(15)])

    text = drawn(progress)

    assert "queued running tokens/s seconds 77 31 0" in text
    assert "120 of 300 jobs" in text
    assert "worker 2 15 running 3 waiting in the engine KV memory 25%" in text


def test_what_is_not_known_is_not_made_up() -> None:
    text = drawn(Progress(total=300, queued=None, workers=[None]))

    assert "seconds ? 0" in text
    assert "worker 1 does not answer" in text


def test_the_urgent_jobs_text_grows_in_the_picture() -> None:
    stream = UrgentStream(text="Switch it\noff", first_token_s=0.25)

    text = drawn(Progress(total=2, urgent=stream))

    assert "first token after 0.25 s" in text
    assert "Switch it off" in text


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress(total=2)
    progress.started -= 100

    progress.add(Result(job_id=new_job_id(), state=JobState.SUCCEEDED, usage=Usage(completion_tokens=300)))

    assert progress.tokens_per_s == pytest.approx(100)


def test_plain_lines_are_few_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines()
    progress = Progress(total=300, finished=120, queued=77, workers=[heartbeat(16)])

    for _ in range(20):
        view.show(progress)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["  0.0 s  120 of 300 done, 77 queued, 16 running, 0 tokens/s"]


def test_plain_lines_tell_the_urgent_answer_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines()
    stream = UrgentStream(text="Switch it\noff", first_token_s=0.25, finished_s=1.5)

    for _ in range(2):
        view.show(Progress(total=2, urgent=stream))

    assert capsys.readouterr().err.splitlines()[1:] == [
        "urgent job, streamed: first token after 0.25 s, finished after 1.50 s:",
        "    Switch it off",
    ]
