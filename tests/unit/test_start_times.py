"""The parts of a worker's start add up to the whole, also those that an engine's own processes measured."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.patience import PATIENCE_S

from inferfleet.worker.engines.vllm.core_times import core_times, note_start_times
from inferfleet.worker.start_times import StartPart, StartTimes

WEIGHTS = logging.getLogger("vllm.model_executor.model_loader.default_loader")
COMPILE = logging.getLogger("vllm.compilation.monitor")
CORE = logging.getLogger("vllm.v1.engine.core")
GRAPHS = logging.getLogger("vllm.v1.worker.gpu_model_runner")


@pytest.fixture(autouse=True)
def _quiet_vllm() -> Iterator[None]:
    """vLLM's loggers as a worker sets them, and as they were before."""
    logging.getLogger("vllm").setLevel(logging.WARNING)
    yield
    for log in (logging.getLogger("vllm"), WEIGHTS, COMPILE, CORE, GRAPHS):
        log.setLevel(logging.NOTSET)
        log.filters.clear()


def test_the_parts_inside_another_one_are_taken_out_of_it() -> None:
    times = StartTimes()
    times.ended(StartPart.SERVICES)
    before = times.parts[StartPart.SERVICES]
    times.ended(StartPart.ENGINE_PROCESSES, {StartPart.WEIGHTS: 3.0, StartPart.ENGINE_IMPORTS: 1.0})
    assert times.parts == {
        StartPart.SERVICES: before,
        StartPart.ENGINE_PROCESSES: 0,
        StartPart.WEIGHTS: 3.0,
        StartPart.ENGINE_IMPORTS: 1.0,
    }
    assert str(times) == "4.0 s: services 0.0, engine_imports 1.0, engine_processes 0.0, weights 3.0"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a process started")
def test_the_imports_are_the_time_since_the_process_started() -> None:
    program = (
        "import time; began = time.monotonic()\n"
        "while time.monotonic() < began + 0.5: pass\n"
        "from inferfleet.worker.start_times import StartTimes\n"
        "print(StartTimes.of_process().parts['imports'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    # A clock tick is 10 ms.
    assert 0.49 < float(ended.stdout) < PATIENCE_S


def test_what_vllm_logs_is_noted_and_still_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with core_times() as parts:
        note_start_times()
        WEIGHTS.info("Loading weights took %.2f seconds", 2.5)
        COMPILE.info("%sStarting torch.compile", "")
        COMPILE.info("%storch.compile took %.2f s in total", "", 3.0)
        COMPILE.info("%storch.compile took %.2f s in total", "[draft] ", 1.0)
        GRAPHS.info("Graph capturing finished in %.0f secs, took %.2f GiB", 5.0, 0.5)
        GRAPHS.warning("something else")
        CORE.info("init engine (profile, create kv cache, warmup model) took %.2f s", 10.0)
    assert parts == {
        StartPart.WEIGHTS: 2.5,
        StartPart.COMPILE: 4.0,
        StartPart.GRAPHS: 5.0,
        StartPart.KV_CACHE: 1.0,
    }
    assert caplog.messages == ["something else"]


def test_of_several_processes_the_slowest_counts() -> None:
    program = (
        "import logging, sys; from inferfleet.worker.engines.vllm.core_times import note_start_times\n"
        "note_start_times()\n"
        f"logging.getLogger({WEIGHTS.name!r}).info('Loading weights took %.2f seconds', float(sys.argv[1]))"
    )
    with core_times() as parts:
        for seconds in ("2.0", "7.0", "3.0"):
            subprocess.run([sys.executable, "-c", program, seconds], timeout=PATIENCE_S, check=True)
    assert parts == {StartPart.WEIGHTS: 7.0}


def test_a_line_in_other_words_or_after_the_load_is_only_a_line() -> None:
    with core_times() as parts:
        note_start_times()
        WEIGHTS.info("Loading weights took a while")
        file = os.environ["INFERFLEET_VLLM_START_TIMES"]
    WEIGHTS.info("Loading weights took %.2f seconds", 1.0)
    assert parts == {}
    assert not os.path.exists(file)  # noqa: PTH110


def test_two_models_can_be_loaded_at_once() -> None:
    with core_times() as parts:
        with core_times():
            pass
        note_start_times()
    assert parts == {}
    assert "INFERFLEET_VLLM_START_TIMES" not in os.environ
