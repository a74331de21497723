"""Child processes, and what cleans up after a launcher that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.services import child_process
from inferfleet.local.services.child_process import ChildProcess
from inferfleet.local.services.free_port import BLOCK, HIGHEST, LOWEST, free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.schemas.errors import ServiceUnreachableError

LAUNCHER = """
import subprocess, sys, time
from inferfleet.local.services.reaper import Reaper
listed, struck = sys.argv[1:]
with Reaper() as reaper:
    children = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
    for child, folder in zip(children, (listed, struck)):
        reaper.add("group", str(child.pid))
        reaper.add("folder", folder)
    reaper.strike("group", str(children[1].pid))
    reaper.strike("folder", struck)
    print(*(child.pid for child in children), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    with Reaper() as reaper:
        yield reaper


def child(reaper: Reaper, folder: Path, script: str) -> ChildProcess:
    return ChildProcess(
        name="the server",
        command=["sh", "-c", script],
        environment=os.environ,
        log=folder / "log",
        reaper=reaper,
    )


def alive(pid: int) -> bool:
    """Whether it runs. A zombie that nobody has collected yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and ") Z " in status.read_text())


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_listed_goes_with_a_killed_launcher_and_what_is_struck_off_stays(
    tmp_path: Path, number: signal.Signals
) -> None:
    listed, struck = tmp_path / "listed", tmp_path / "struck"
    for folder in (listed, struck):
        folder.mkdir()
        (folder / "data").write_text("x")
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(listed), str(struck)], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        listed_pid, struck_pid = map(int, launcher.stdout.readline().split())
        launcher.send_signal(number)
    wait_until_dead(listed_pid)
    deadline = time.monotonic() + PATIENCE_S
    while listed.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert alive(struck_pid)
    assert struck.exists()
    os.kill(struck_pid, signal.SIGKILL)


def test_a_server_that_does_not_start_shows_the_end_of_its_log(reaper: Reaper, tmp_path: Path) -> None:
    server = child(reaper, tmp_path, "seq 100; echo no room on device; exit 3")
    server.spawn()
    with pytest.raises(ServiceUnreachableError) as error:
        server.wait_until(refuse, timeout_s=PATIENCE_S)
    message = str(error.value)
    assert "the server ended with code 3 while starting" in message
    assert "no room on device" in message
    assert len(message.splitlines()) < 30
    server.kill()


def test_a_server_that_never_serves_is_given_up(reaper: Reaper, tmp_path: Path) -> None:
    server = child(reaper, tmp_path, "echo still loading; sleep 60")
    server.spawn()
    with pytest.raises(ServiceUnreachableError, match=r"did not serve within 0\.2 s \(nobody home\)"):
        server.wait_until(refuse, timeout_s=0.2)
    server.kill()


def test_a_killed_process_can_be_started_again(reaper: Reaper, tmp_path: Path) -> None:
    server = child(reaper, tmp_path, "exec sleep 60")
    server.spawn()
    first = server.pid
    with pytest.raises(RuntimeError, match="runs already"):
        server.spawn()
    server.kill()
    assert not alive(first)
    assert not server.running
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid
    server.spawn()
    assert server.running
    assert server.pid != first
    server.stop()


def test_a_process_that_ignores_the_request_to_end_is_killed(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "STOP_TIMEOUT_S", 0.2)
    server = child(reaper, tmp_path, "trap '' TERM; echo ready; while true; do sleep 0.05; done")
    server.spawn()
    server.wait_until(lambda: require_line(tmp_path / "log", "ready"), timeout_s=PATIENCE_S)
    pid = server.pid
    server.stop()
    assert not alive(pid)


def test_stopping_what_has_ended_by_itself_is_fine(reaper: Reaper, tmp_path: Path) -> None:
    server = child(reaper, tmp_path, "exit 0")
    server.spawn()
    wait_until_dead(server.pid)
    server.stop()
    server.kill()


def test_ports_are_outside_the_range_that_clients_are_given() -> None:
    assert all(LOWEST <= free_port() <= HIGHEST for _ in range(20))


def test_a_port_is_handed_out_once_also_by_several_processes() -> None:
    """The servers that get them start later: until then the ports look free to everybody."""
    script = (
        "from inferfleet.local.services.free_port import free_port; import sys;"
        f"print(*(free_port() for _ in range({3 * BLOCK})), flush=True); sys.stdin.read()"
    )
    with ExitStack() as stack:
        others = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True)
            )
            for _ in range(3)
        ]
        ports = [free_port() for _ in range(3 * BLOCK)]
        for other in others:
            assert other.stdout is not None
            ports += map(int, other.stdout.readline().split())

    assert len(ports) == 12 * BLOCK
    assert len(set(ports)) == len(ports)


def refuse() -> None:
    raise ConnectionRefusedError("nobody home")


def require_line(log: Path, line: str) -> None:
    if line not in log.read_text().splitlines():
        raise ConnectionError("not yet")
