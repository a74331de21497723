"""What the demo tells its workers."""

from __future__ import annotations

import os

import pytest

from inferfleet.local.demo.worker_settings import worker_settings
from inferfleet.schemas.errors import ConfigurationError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("INFERFLEET_")]:
        monkeypatch.delenv(name)


def test_batches_are_small_so_that_jobs_wait() -> None:
    assert worker_settings("simulated", None, workers=2).max_running == 16


def test_the_environment_wins_over_the_demos_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_MAX_RUNNING", "64")
    monkeypatch.setenv("INFERFLEET_LEASE_S", "3")

    settings = worker_settings("simulated", None, workers=2)

    assert (settings.max_running, settings.lease_s, settings.look_ahead) == (64, 3, 4)


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_ENGINE", "vllm")
    monkeypatch.setenv("INFERFLEET_MODEL", "from-the-environment")

    assert worker_settings("simulated", "other", workers=1).engine == "simulated"
    assert worker_settings("vllm", "other", workers=1).model == "other"
    assert worker_settings("vllm", None, workers=1).model == "from-the-environment"


def test_real_engines_on_one_machine_share_its_memory() -> None:
    settings = worker_settings("vllm", "a-model", workers=2)

    assert settings.engine_args == {"gpu_memory_utilization": 0.4}


def test_a_share_of_memory_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_ENGINE_ARGS", '{"gpu_memory_utilization": 0.2, "dtype": "float32"}')

    settings = worker_settings("vllm", "a-model", workers=2)

    assert settings.engine_args == {"gpu_memory_utilization": 0.2, "dtype": "float32"}


def test_a_real_engine_needs_a_model() -> None:
    with pytest.raises(ConfigurationError, match="needs --model"):
        worker_settings("vllm", None, workers=1)
