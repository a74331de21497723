"""The processes that the local commands start: none stays behind, whatever ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.services.native import unavailable_reason

needs_native = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"native services: {unavailable_reason()}"
)
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


@contextmanager
def command(*arguments: str, **variables: str) -> Generator[subprocess.Popen[str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    with subprocess.Popen(
        [sys.executable, "-m", "inferfleet.cli", *arguments],
        env=inherited | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read stderr up to the line with this text."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, f"it ended without {text!r}:\n{seen}"
        seen += line


def state_and_parent(pid: int) -> tuple[str, int] | None:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return after_name[0], int(after_name[1])


def descendants(ancestor: int) -> set[int]:
    parents = {
        int(entry.name): found[1]
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and (found := state_and_parent(int(entry.name))) is not None
    }
    family = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {ancestor}


def alive(pids: set[int]) -> set[int]:
    """Those that still run. A zombie has ended; that nobody has reaped it yet is not ours to mend."""
    return {pid for pid in pids if (found := state_and_parent(pid)) is not None and found[0] != "Z"}


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    def is_worker(pid: int) -> bool:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(b"inferfleet.cli\0worker")

    return sorted(pid for pid in descendants(process.pid) if is_worker(pid))


@needs_native
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_up_leaves_no_process_when_it_is_told_to_end(number: signal.Signals) -> None:
    with command("local", "up", "--services", "native") as process:
        read_until(process, "Ctrl-C")
        started = descendants(process.pid)
        assert len(started) >= 3, "at least RabbitMQ, Redis and the reaper"

        process.send_signal(number)

        assert process.wait(PATIENCE_S) == 0
        assert not alive(started)


@needs_native
def test_local_up_says_so_when_a_server_dies() -> None:
    with command("local", "up", "--services", "native") as process:
        read_until(process, "Ctrl-C")
        redis = next(
            pid
            for pid in descendants(process.pid)
            if b"redis-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

        os.kill(redis, signal.SIGKILL)

        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 3
        assert "Redis exited unexpectedly" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals) -> None:
    with command("demo", "--json", "--services", "embedded") as process:
        read_until(process, "running,")
        started = descendants(process.pid)
        assert len(workers_of(process)) == 2

        process.send_signal(number)

        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        assert not alive(started)
        assert out == ""
        assert "Traceback" not in err


def test_a_killed_demo_leaves_no_process() -> None:
    with command("demo", "--json", "--services", "embedded") as process:
        read_until(process, "running,")
        started = descendants(process.pid)
        assert len(workers_of(process)) == 2

        process.kill()

        wait_until_gone(started)


def test_a_killed_worker_costs_the_demo_no_job() -> None:
    # One of them is killed by the demo itself.
    with command(
        *("demo", "--json", "--services", "embedded", "--jobs", "60", "--workers", "3"),
        INFERFLEET_LEASE_S="1",
    ) as process:
        read_until(process, "running,")

        os.kill(workers_of(process)[0], signal.SIGKILL)

        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert '"jobs":60,"succeeded":60,"failed":0,"lost":0' in out
        assert "was ended by SIGKILL; the end of its log:" in err


def test_a_demo_without_any_worker_left_ends() -> None:
    with command("demo", "--json", "--services", "embedded", "--workers", "1") as process:
        read_until(process, "running,")

        os.kill(workers_of(process)[0], signal.SIGKILL)

        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert out == ""
        assert "inferfleet: no workers are left" in err
