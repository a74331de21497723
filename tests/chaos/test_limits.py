"""What the faults of an operating system rely on: each limit is seen by a process, and ends."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferfleet.local.chaos.limits import (
    Clock,
    UnreadPipe,
    few_files,
    full_disk,
    no_clocks,
    no_disks,
    no_file_limits,
    small_disk,
)
from inferfleet.local.services.reaper import Reaper


def require(missing: str | None) -> None:
    if missing is not None:
        pytest.skip(missing)


def test_a_process_at_its_limit_opens_no_file_until_the_limit_ends() -> None:
    require(no_file_limits())
    program = """
for line in iter(input, "end"):
    try:
        open("/dev/null").close()
        print("opened", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def tried() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("try\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert tried() == "opened"
        with few_files(process.pid):
            assert tried() == str(errno.EMFILE)
        assert tried() == "opened"
        process.communicate("end\n")


def test_a_full_disk_takes_no_byte_until_it_is_emptied(tmp_path: Path) -> None:
    require(no_disks())
    disk = tmp_path / "disk"
    with Reaper() as reaper, small_disk(disk, reaper=reaper):
        with full_disk(disk), pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"1")
        (disk / "more").write_bytes(b"1")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("ahead_s", [-100, 100])
def test_a_process_has_the_time_of_its_clock(tmp_path: Path, ahead_s: int) -> None:
    require(no_clocks())
    clock = Clock(tmp_path / "clock")
    clock.set(ahead_s)
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=clock.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(told.stdout) - time.time() == pytest.approx(ahead_s, abs=30)


def test_a_pipe_that_nobody_reads_is_full_in_the_end() -> None:
    pipe = UnreadPipe()
    assert not pipe.full
    pipe.writer.write(b"a line of a log\n" * 240)
    assert pipe.full
    pipe.close()
