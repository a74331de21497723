"""The engine core leaves the worker's process group, and ends when the worker is killed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from importlib.metadata import entry_points
from textwrap import dedent

import pytest

from inferfleet.worker.engines.vllm.plugin import WORKER_PID_VARIABLE, exit_with_parent

A_WORKER = """
    import multiprocessing, os, signal, time
    from inferfleet.worker.engines.vllm.plugin import WORKER_PID_VARIABLE, exit_with_parent

    def core():
        exit_with_parent()
        print(os.getpgid(0) != os.getpgid(os.getppid()), flush=True)
        time.sleep(60)

    if __name__ == "__main__":
        os.environ[WORKER_PID_VARIABLE] = str(os.getpid())
        multiprocessing.get_context("spawn").Process(target=core).start()
        signal.pause()
    """


def test_a_core_is_in_its_own_group_and_ends_with_a_killed_worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(dedent(A_WORKER))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        own_group = worker.stdout.readline().strip()

        worker.kill()

        assert own_group == "True"
        # The pipe ends when the last process that could write to it has ended.
        assert worker.stdout.read() == ""


def test_other_processes_are_left_alone(monkeypatch):
    monkeypatch.setenv(WORKER_PID_VARIABLE, str(os.getpid()))
    group = os.getpgid(0)

    exit_with_parent()

    assert os.getpgid(0) == group


@pytest.mark.skipif(
    not any(
        point.value.endswith(":exit_with_parent") for point in entry_points(group="vllm.general_plugins")
    ),
    reason="inferfleet was installed before it had this entry point; install it again",
)
@pytest.mark.asyncio(loop_scope="session")
async def test_ctrl_c_does_not_reach_the_engine_core(engine):
    cores = [child for child in multiprocessing.active_children() if child.name.startswith("EngineCore")]

    assert cores
    assert all(os.getpgid(core.pid or 0) != os.getpgid(0) for core in cores)
