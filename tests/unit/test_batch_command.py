"""What ``inferfleet batch`` shows, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from inferfleet.cli import batch_progress
from inferfleet.cli.batch import _copy_of_stdin
from inferfleet.cli.batch_progress import described, showing_progress
from inferfleet.producer.batch import BatchProgress
from inferfleet.schemas.errors import BatchError

STUBBORN = """
import asyncio
from inferfleet.cli.batch import _interrupts

async def main():
    with _interrupts():
        print("ready", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("interrupted", flush=True)

asyncio.run(main())
"""

HALF = BatchProgress(
    lines=2000,
    succeeded=999,
    failed=1,
    in_flight=64,
    limit=128,
    tokens=5000,
    per_s=12.5,
    tokens_per_s=1234.5,
)


def test_the_second_ctrl_c_ends_what_the_first_could_not() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for said in ("ready\n", "interrupted\n"):
                assert process.stdout.readline() == said
                process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE_S) == 130
        finally:
            process.kill()


def test_the_copy_of_stdin_is_on_disk_first_and_goes_if_no_batch_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"One?\nTwo?\n")))
    synced: list[bytes] = []

    def fsync(fd: int) -> None:
        if Path(f"/dev/fd/{fd}").is_file():
            synced.append(copy.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    copy = tmp_path / "out.jsonl.input"
    with _copy_of_stdin(tmp_path / "out.jsonl") as path:
        assert path == copy
        assert synced == [b"One?\nTwo?\n"]
        with pytest.raises(BatchError, match="exists"), _copy_of_stdin(tmp_path / "out.jsonl"):
            pass
        assert copy.read_bytes() == b"One?\nTwo?\n"
    assert not copy.exists()


def test_the_progress_has_rates_and_says_what_is_left_and_what_is_wrong() -> None:
    assert described(HALF) == (
        "12.5 lines/s, 1,234 tokens/s, 0:01:20 left, 64 of at most 128 in flight, 1 failed"
    )
    idle = BatchProgress(lines=10, succeeded=0, failed=0, trouble="RabbitMQ\x1b[2J is\naway")
    assert described(idle).startswith("0.0 lines/s, 0 tokens/s, 0 of at most 0 in flight, waiting: RabbitMQ")
    assert "\x1b" not in described(idle)


def test_without_a_terminal_the_progress_is_a_line_now_and_then_and_at_once_when_something_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with showing_progress() as show:
        show(HALF)
        assert capsys.readouterr().err == ""
        show(BatchProgress(lines=10, succeeded=0, failed=0, trouble="RabbitMQ is away"))
        assert "0 of 10 lines, " in capsys.readouterr().err
        show(BatchProgress(lines=10, succeeded=0, failed=0, trouble="RabbitMQ is away"))
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(batch_progress, "LINE_EVERY_S", 0.0)
    with showing_progress() as show:
        show(HALF)
    assert capsys.readouterr().err == f"inferfleet: 1,000 of 2,000 lines, {described(HALF)}\n"
