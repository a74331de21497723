"""Settings reach a worker process whole, and nothing else of ours does."""

from __future__ import annotations

import os

import pytest

from inferfleet.local.worker_processes import environment
from inferfleet.schemas.settings import LogFormat, QueueType, WorkerSettings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("INFERFLEET_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean_environment")
def test_a_worker_reads_the_settings_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings(
        worker_id="w-1",
        pool="a.pool",
        engine="simulated",
        engine_args={"speed": 0, "nested": {"text": 'a "b"'}},
        queue_type=QueueType.QUORUM,
        queue_max_length=7,
        drain_timeout_s=0.5,
        log_format=LogFormat.CONSOLE,
        log_prompts=True,
    )

    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    assert WorkerSettings() == settings


@pytest.mark.usefixtures("clean_environment")
def test_variables_of_this_process_do_not_leak_into_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings(worker_id="w-1")
    monkeypatch.setenv("INFERFLEET_QUEUE_MAX_LENGTH", "7")
    monkeypatch.setenv("inferfleet_pool", "elsewhere")

    reached = environment(settings)

    assert "INFERFLEET_QUEUE_MAX_LENGTH" not in reached
    assert "inferfleet_pool" not in reached
    assert reached["INFERFLEET_POOL"] == "default"


def test_everything_else_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")

    assert environment(WorkerSettings())["CUDA_VISIBLE_DEVICES"] == "3"
