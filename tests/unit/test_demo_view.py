"""What a person sees of the demo."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from inferfleet.local.demo.progress import Kill, Passage, Progress, UrgentStream, WorkerView
from inferfleet.local.demo.view import PlainLines, picture
from inferfleet.schemas import Result, Usage
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import JobState, new_job_id


def worker(number: int, *, running: int) -> WorkerView:
    now = datetime.now(UTC)
    heartbeat = Heartbeat(
        worker_id=f"demo-{number}",
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
    return WorkerView(heartbeat.worker_id, heartbeat)


def killed_in_mid_answer() -> UrgentStream:
    """An answer that worker 1 began and worker 2 ended."""
    return UrgentStream(
        question="What now?",
        passages=[Passage("demo-1", 0, "Switch it\n"), Passage("demo-2", 3, "off at once")],
        tokens=6,
        first_token_s=0.25,
        kill=Kill("demo-1", tokens_seen=3, at_s=0.5),
        resumed_s=3.75,
        finished_s=4.5,
    )


def drawn(progress: Progress) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(picture(progress))
    return " ".join(capture.get().split())


def test_the_picture_has_the_queue_the_workers_and_how_far_it_is() -> None:
    progress = Progress(
        total=300, finished=120, queued=77, workers=[worker(1, running=16), worker(2, running=15)]
    )

    text = drawn(progress)

    assert "queued running tokens/s seconds 77 31 0" in text
    assert "120 of 300 jobs" in text
    assert "worker 2 15 running 3 waiting in the engine KV memory 25%" in text


def test_what_is_not_known_is_not_made_up() -> None:
    text = drawn(Progress(total=300, queued=None, workers=[WorkerView("demo-1")]))

    assert "seconds ? 0" in text
    assert "worker 1 does not answer" in text


def test_the_urgent_jobs_text_grows_in_the_picture() -> None:
    stream = UrgentStream("What now?", [Passage("demo-1", text="Switch it\noff")], first_token_s=0.25)

    text = drawn(Progress(total=2, urgent=stream))

    assert "first token after 0.25 s" in text
    assert "What now?" in text
    assert "Switch it off" in text


def test_a_kill_shows_in_the_picture_and_so_does_who_went_on() -> None:
    workers = [worker(1, running=16), worker(2, running=16)]
    workers[0].killed = True

    text = drawn(Progress(total=2, urgent=killed_in_mid_answer(), workers=workers))

    assert "worker 1 killed with SIGKILL worker 2 16 running" in text
    assert "Switch it off at once" in text
    assert "worker 1 killed with SIGKILL, 3 tokens into its answer" in text
    assert "worker 2 went on after token 3, 3.2 s later" in text


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress(total=2)
    progress.started -= 100

    progress.add(Result(job_id=new_job_id(), state=JobState.SUCCEEDED, usage=Usage(completion_tokens=300)))

    assert progress.tokens_per_s == pytest.approx(100)


def test_plain_lines_are_few_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines()
    progress = Progress(total=300, finished=120, queued=77, workers=[worker(1, running=16)])

    for _ in range(20):
        view.show(progress)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["  0.0 s  120 of 300 done, 77 queued, 16 running, 0 tokens/s"]


def test_plain_lines_tell_the_urgent_jobs_story_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines()
    workers = [worker(1, running=16), worker(2, running=16)]

    for _ in range(2):
        view.show(Progress(total=2, urgent=killed_in_mid_answer(), workers=workers))

    assert capsys.readouterr().err.splitlines()[1:] == [
        "  urgent job, streamed: first token after 0.25 s",
        "  worker 1 killed with SIGKILL, 3 tokens into its answer",
        "  worker 2 went on after token 3, 3.2 s later",
        "  urgent job finished after 4.50 s",
        "  What now?",
        "    [worker 1] Switch it",
        "    [worker 2] off at once",
    ]
